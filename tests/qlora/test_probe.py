"""One step that corrects an estimate: what it measures, what it corrects, and what it is refused for."""
import json
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from finetune_lib.pipeline.command import main
from finetune_lib.pipeline.config import load_config
from finetune_lib.pipeline.doctor import memory_needed
from finetune_lib.pipeline.fitting import half_of
from finetune_lib.pipeline.probing import Point, estimate_of, probed_peak
from finetune_lib.qlora.memory import MIB, MemoryEstimate, estimate_memory
from finetune_lib.qlora.probe import Probe, corrected, probe_step, smaller

from .conftest import tiny_config


def test_half_a_training_is_half_its_batch_or_its_length():
    assert [smaller(*size) for size in ((16, 128), (3, 100), (1, 2048), (1, 7), (1, 1))] \
        == [(8, 128), (2, 100), (1, 1024), (1, 4), (1, 1)]


KNOWN = """
import json
from contextlib import contextmanager
from dataclasses import asdict
import torch
from finetune_lib.qlora.probe import probe_step

@contextmanager
def known_training():  # a weight of 32 MiB with AdamW, and 48 MiB of results that are kept for each 1,024 rows
    layer = torch.nn.Linear(2048, 4096, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters())

    def step(batch, length):
        y = layer(torch.ones(batch * length, 2048))  # 8 MiB, and 16
        (y.exp().exp() * 2.0).sum().backward()  # 2 x 16 MiB
        optimizer.step()

    yield step, optimizer

probe_step(known_training, 1, 1)  # the first warms up
print(json.dumps(asdict(probe_step(known_training, 1024, 1))))
"""


def test_a_step_of_known_sizes_is_measured_part_by_part():
    alone = subprocess.run([sys.executable, "-c", KNOWN], capture_output=True, text=True, check=True).stdout
    probe = Probe(**json.loads(alone))  # in a process of its own: what other tests gave back would be used again
    assert (probe.batch, probe.length) == (1024, 1)
    kept = 3 * 32  # the weight and its two moments
    assert kept - 4 < probe.kept / MIB < kept + 12
    assert 56 - 12 < probe.passes / MIB < 56 + 60  # and at the end the gradients of results and of the weight
    assert kept + 32 - 4 < probe.peak / MIB < kept + 32 + 64 + 32  # the gradient, and two temporaries of AdamW


def test_a_step_that_fails_leaves_no_hook_behind():
    seen = []

    @contextmanager
    def broken():
        layer = nn.Linear(2, 2)
        seen.append(torch.optim.SGD(layer.parameters()))

        def step(batch, length):
            if length == 512:
                raise KeyError("of the step")
        yield step, seen[0]

    with pytest.raises(KeyError, match="of the step"):
        probe_step(broken, 1, 512)
    assert not seen[0]._optimizer_step_pre_hooks


def sizes(kept, passes, overhead=0):
    return MemoryEstimate({"weights": kept, "activations": passes, "overhead": overhead}, "start of backward", passes)


def test_what_is_kept_is_taken_as_measured_and_the_passes_are_scaled():
    full, half = sizes(100, 400), sizes(100, 200)
    assert corrected(full, half, Probe(1, 1, 100, 200, 0)).total == full.total
    assert corrected(full, half, Probe(1, 1, 130, 220, 0)).total == 130 + 440
    highest = corrected(full, half, Probe(1, 1, 130, 220, 900))
    assert highest.total == 900 and highest.moment == "optimizer's step"
    assert corrected(sizes(100, 400, 50), sizes(100, 200, 50), Probe(1, 1, 100, 200, 0)).total == 550


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_passes_are_what_the_estimate_has_beyond_what_is_kept(method, checkpointing):
    one, two = (estimate_memory(tiny_config("llama"), method, batch, 64, r=4, gradient_checkpointing=checkpointing)
                for batch in (8, 16))
    kept = sum(two.parts[name] for name in ("weights", "constants", "adapters", "optimizer"))
    assert two.total == kept + two.passes and one.passes < two.passes <= 2 * one.passes


def test_a_probe_that_finds_what_was_foretold_changes_no_point():
    point = Point("wide", "lora", 8, 256, True)
    half = estimate_of(Point("wide", "lora", 4, 256, True))
    exact = Probe(4, 256, half.total - half.passes, half.passes, 0)
    assert probed_peak(point, exact) == estimate_of(point).total


def test_a_configuration_is_halved_and_else_unchanged():
    config = load_config("tiny", ["training.per_device_train_batch_size=6"])
    half = half_of(config)
    assert half.training.per_device_train_batch_size == 3 and half.data.max_length == config.data.max_length
    assert memory_needed(half).total < memory_needed(config).total
    assert half.model_copy(update={"training": config.training}) == config


@pytest.mark.slow
def test_fit_with_a_probe_prints_the_corrected_parts(capsys):
    assert main(["fit", "tiny", "--probe", "--set", "data.max_length=128"]) == 0
    text = capsys.readouterr().out
    assert "kept" in text and "passes" in text and "total" in text


def test_a_probe_says_nothing_about_a_card_elsewhere(capsys):
    assert main(["fit", "tiny", "--probe", "--card", "T4"]) == 2
    assert "--probe measures this machine" in capsys.readouterr().err


def test_a_step_that_cannot_fit_is_not_begun(monkeypatch, capsys):
    monkeypatch.setattr("finetune_lib.pipeline.doctor.memory_free", lambda cpu: MIB)
    assert main(["fit", "tiny", "--probe"]) == 4
    assert "a step of half the size must fit to be tried" in capsys.readouterr().err
