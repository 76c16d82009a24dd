"""Memory that runs out ends with 4 and names the setting to change, from what to what, by the estimate."""
import json
import os
import re
import subprocess
import sys

import pytest

from finetune_lib.core import ResourceError
from finetune_lib.pipeline.config import load_config
from finetune_lib.pipeline.doctor import memory_needed
from finetune_lib.pipeline.fitting import advised, changes, way_out, with_settings

# A process that has imported all it needs, and then may take a little more memory and not one page above it.
STARVED = """
import json, resource, sys
import psutil
from finetune_lib.pipeline.command import main
from finetune_lib.pipeline.run import FineTuningPipeline
import finetune_lib.training.loop, peft, pyarrow.parquet, torch, transformers

overrides, more = json.loads(sys.argv[1]), int(sys.argv[2])
FineTuningPipeline("tiny", overrides).run(until="baseline")
torch.ones(64, 64) @ torch.ones(64, 64)
limit = psutil.Process().memory_info().vms + more
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main(["train", *(word for one in overrides for word in ("--set", one))]))
"""


@pytest.fixture
def long_samples(tmp_path, model_folder):
    """A model with room for 2,048 tokens, and conversations that fill it."""
    import shutil

    from finetune_lib.core import read_json, write_json

    folder = shutil.copytree(model_folder("llama"), tmp_path / "model")
    write_json(folder / "config.json", read_json(folder / "config.json") | {"max_position_embeddings": 4096})
    rows = [{"instruction": f"Say {n}.", "output": " ".join(f"{n} and {m} is {n + m}." for m in range(150))}
            for n in range(40)]
    (tmp_path / "long.json").write_text(json.dumps(rows))
    return [f"model={folder}", f"data={tmp_path / 'long.json'}", "data.validation=null", "data.test=null",
            "data.near_duplicates=null", "data.max_length=4096", "data.limit=null"]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is held by Linux")
def test_a_training_that_starves_ends_with_4_and_the_number_to_set(settings, long_samples):
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}  # each thread and arena takes some
    overrides = settings(*long_samples)
    done = subprocess.run([sys.executable, "-c", STARVED, json.dumps(overrides), str(60 * 2**20)], text=True,
                          capture_output=True, env=one_thread)
    assert done.returncode == 4, done.stdout[-2000:] + done.stderr[-2000:]
    what, why, fix = done.stderr.splitlines()[-3:]
    assert what == "error: train must fit into memory" and "bytes more were refused" in why
    needed, length = (int(number) for number in re.search(r"about (\d+) MiB .* samples of (\d+) tokens", why).groups())
    name, value, less = re.search(r"change (.*) → (\S+): about (\d+) MiB", fix).groups()
    assert name.split(", ")[-1].split()[0] in ("training.gradient_checkpointing", "data.max_length") and value
    assert int(less) <= 0.8 * needed and length > 1000


def test_a_micro_batch_that_does_not_fit_is_halved_and_the_training_stays_the_same():
    config = load_config("tiny", ["training.per_device_train_batch_size=8",
                                  "training.gradient_accumulation_steps=2"], {})
    why, fix = way_out(config, 8, 512)
    assert "micro-batches of 8 and samples of 512 tokens" in why
    assert "training.per_device_train_batch_size 8 → 4, training.gradient_accumulation_steps 2 → 4" in fix
    half = with_settings(config, next(changes(config, 8, 512)))
    assert half.training.effective_batch_size == config.training.effective_batch_size
    assert f"about {memory_needed(half).total / 2**20:.0f} MiB" in fix


def test_each_change_is_a_setting_and_takes_no_more_than_the_one_before():
    config = load_config("tiny", environment={})
    steps = [with_settings(config, one) for one in changes(config, 16, 512)]
    needed = [memory_needed(one).total for one in (config, *steps)]
    assert len(steps) > 6 and needed == sorted(needed, reverse=True)
    for one in changes(config, 16, 512):
        assert load_config("tiny", [f"{name}={str(value).lower()}" for name, value in one.items()], {})


def test_answers_that_do_not_fit_are_made_fewer_at_a_time(tmp_path):
    config = load_config("tiny", ["evaluation.batch_size=32"], {})
    with pytest.raises(ResourceError, match="change evaluation.batch_size 32 → 16"):
        with advised("evaluate", config, tmp_path):
            raise MemoryError


def test_what_torch_was_refused_is_told(tmp_path):
    said = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 512 bytes. Error code 12"
    with pytest.raises(ResourceError, match="32 at a time, and 512 bytes more were refused; change"):
        with advised("evaluate", load_config("tiny", ["evaluation.batch_size=32"], {}), tmp_path):
            raise RuntimeError(said)


def test_an_error_that_is_none_of_memory_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="^shapes$"):
        with advised("train", load_config("tiny", environment={}), tmp_path):
            raise RuntimeError("shapes")
