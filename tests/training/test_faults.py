"""Faults injected into a run: what it does, what events.jsonl says, and what the terminal says."""
import json
import math
import subprocess
from collections.abc import Sequence

import pytest
import torch

from finetune_lib.core import ResourceError, TrainingError
from finetune_lib.qlora.memory import estimate_memory
from finetune_lib.training import memory
from finetune_lib.training.checkpoints import find_latest
from finetune_lib.training.curves import read_records
from finetune_lib.training.loop import TrainingConfig, train
from finetune_lib.training.stability import Guard
from finetune_lib.training.step import target_loss
from finetune_lib.training.watch import Watch, judge_scaled

SETTINGS = dict(learning_rate=1e-3, per_device_train_batch_size=4, max_steps=16, lr_scheduler_type="constant")


class At:
    """Does something to the loss at one step: the callback counts, the loss function acts."""

    def __init__(self, step, change):
        self.step, self.change, self.done = step, change, 0

    def __call__(self, kind, record):
        self.done += kind == "step"

    def loss(self, model, batch):
        value = target_loss(model, batch)
        return self.change(value) if self.done + 1 == self.step else value


def told(caplog, folder):
    """(step, kind, action) in events.jsonl, after making sure that the terminal heard of the same."""
    events = read_records(folder / "events.jsonl")
    for event in events:
        assert any(f"step {event['step']}: {event['kind']}" in line and event["action"] in line
                   for line in caplog.messages)
    return [(event["step"], event["kind"], event["action"]) for event in events]


def explode(factor):
    """Leave the loss as it is and make its gradient so many times larger."""
    def change(loss):
        same = loss * 1
        same.register_hook(lambda gradient: gradient * factor)
        return same
    return change


@pytest.mark.parametrize(("change", "kind", "action"), [
    (lambda loss: loss * math.nan, "nan_loss", "skip"),
    (lambda loss: loss * math.inf, "nan_loss", "skip"),
    (explode(math.inf), "nan_gradient", "skip"),
    (explode(1e4), "explosion", "skip"),
    (lambda loss: loss * 4, "spike", "step"),
], ids=["nan", "inf", "inf gradient", "explosion", "spike"])
def test_a_bad_step_is_judged_recorded_and_told(change, kind, action, model, samples, tmp_path, caplog):
    fault = At(13, change)
    result = train(model(), samples(40), TrainingConfig(**SETTINGS), 0, folder=tmp_path, callbacks=[fault],
                   loss_function=fault.loss)
    assert told(caplog, tmp_path) == [(13, kind, action)]
    assert [record.step for record in result.history if record.skipped] == ([13] if action == "skip" else [])
    [event] = result.events
    assert len(event["sample_ids"]) == 4 and event["evidence"] and event["timestamp"] > 0
    assert ("module" in event["evidence"]) == kind.startswith("nan_")
    assert ("layer_norms" in event["evidence"]) == (kind == "explosion")


def test_a_poisoned_sample_is_named_alone(model, samples, tmp_path, caplog):
    data = samples(12)
    poison = data[7].input_ids

    def loss(model, batch):
        rows = [row[:len(poison)].tolist() for row in batch["input_ids"]]
        return target_loss(model, batch) * (math.nan if poison in rows else 1.0)

    train(model(), data, TrainingConfig(**{**SETTINGS, "max_steps": 6}), 0, folder=tmp_path, loss_function=loss)
    events = read_records(tmp_path / "events.jsonl")
    assert len(events) == 2 and all(event["evidence"]["culprits"] == [data[7].id] for event in events)
    assert data[7].id in caplog.text


class Sick(torch.nn.Module):
    """A layer whose output, or whose gradient, is not finite while it is told to be so."""

    def __init__(self, layer, way):
        super().__init__()
        self.layer, self.way, self.bad = layer, way, False

    def forward(self, x):
        if self.bad and self.way == "forward":
            return self.layer(x) * math.nan
        return self.layer(x) + (torch.sqrt(x.sum() * 0) if self.bad else 0)  # a root's slope at zero is infinite


@pytest.mark.parametrize(("way", "kind", "module"), [("forward", "nan_loss", "model.layers.1.mlp"),
                                                     ("backward", "nan_gradient", "model.layers.1")])
def test_a_nan_names_the_first_module_that_made_it(way, kind, module, model, samples, tmp_path, caplog):
    tiny = model()
    sick = tiny.model.layers[1].mlp = Sick(tiny.model.layers[1].mlp, way)

    def fault(kind, record):
        sick.bad = kind == "step" and record.step in (4, 5)  # through step 5, and while the loop looks closer

    train(tiny, samples(40), TrainingConfig(**SETTINGS), 0, folder=tmp_path, callbacks=[fault])
    assert told(caplog, tmp_path) == [(5, kind, "skip")]
    assert read_records(tmp_path / "events.jsonl")[0]["evidence"]["module"] == module


def door(rows):
    """The allocator's door: a batch of more than so many rows asks it for four exbibytes, which it refuses."""
    def loss(model, batch):
        if len(batch["input_ids"]) > rows:
            torch.empty(2**60)
        return target_loss(model, batch)
    return loss


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_effective_batch(model, samples, tmp_path, caplog):
    config = TrainingConfig(**{**SETTINGS, "per_device_train_batch_size": 8}, save_steps=4)
    roomy, tight, again = model(), model(), model()
    easy = train(roomy, samples(40), config, 0)
    hard = train(tight, samples(40), config, 0, folder=tmp_path, loss_function=door(2), callbacks=[
        lambda kind, record: "stop" if kind == "step" and record.step == 6 else None])
    words = "the effective batch is the same"
    assert [(step, kind) for step, kind, action in told(caplog, tmp_path)] == [(0, "out_of_memory")] * 2
    assert words in caplog.text and "micro-batches of 2 instead of 4, 4 of them" in caplog.text
    hard = train(again, samples(40), config, 0, folder=tmp_path, loss_function=door(2))
    assert len(hard.events) == 2, "a resumed run knows what fits"
    assert [a.loss for a in hard.history] == pytest.approx([a.loss for a in easy.history], abs=1e-5)
    for ours, theirs in zip(roomy.parameters(), again.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_the_first_micro_batch_is_as_large_as_the_estimate_says(model, samples, tmp_path, monkeypatch, caplog):
    config, data = TrainingConfig(**{**SETTINGS, "per_device_train_batch_size": 8}), samples(40)
    easy = train(model(), data, config, 0)
    whole = estimate_memory(model().config, "full", batch=8, length=max(len(sample.input_ids) for sample in data))
    monkeypatch.setattr(memory, "room", lambda device: whole.total // 3)
    hard = train(model(), data, config, 0, folder=tmp_path)
    [(step, kind, action)] = told(caplog, tmp_path)
    assert (step, kind) == (0, "memory_estimate") and "the effective batch is the same" in action
    evidence = hard.events[0]["evidence"]
    assert evidence["estimates"][-1] <= evidence["room"] < evidence["estimates"][-2]
    assert f"micro-batches of {8 >> len(evidence['estimates']) - 1} instead of 8" in action
    assert [a.loss for a in hard.history] == pytest.approx([a.loss for a in easy.history], abs=1e-5)


def test_what_will_not_fit_at_all_fails_before_the_first_step(model, samples, tmp_path):
    heard = []
    with pytest.raises(ResourceError, match="gradient_checkpointing=True, or a shorter max_length"):
        train(model(), samples(8), TrainingConfig(**SETTINGS), 0, folder=tmp_path, loss_function=door(0),
              callbacks=[lambda kind, record: heard.append(kind)])
    assert "step" not in heard


def test_an_error_that_is_not_about_memory_is_not_taken_for_one(model, samples):
    def broken(model, batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        train(model(), samples(8), TrainingConfig(**SETTINGS), 0, loss_function=broken)


def test_the_trial_of_the_longest_batch_leaves_no_trace(model, samples, equal, weights_of):
    longest = []

    def loss(model, batch):
        longest.append(batch["input_ids"].shape[1])
        return target_loss(model, batch)

    tiny = model(dropout=0.3)
    train(tiny, samples(40), TrainingConfig(**{**SETTINGS, "max_steps": 3}), 0, loss_function=loss)
    assert longest[0] == max(longest)


def pressure(monkeypatch, shares):
    """Memory that is taken at each look, as shares of the limit; the last one stays."""
    left = list(shares)

    def measured(stage, device="cpu", **details):
        share = left.pop(0) if len(left) > 1 else left[0]
        return memory.MemoryMetrics(stage, int(share * 1000), 0, 0, 0, 0.0, {"limit": 1000, **details})

    monkeypatch.setattr(memory, "measure_memory", measured)


def test_memory_bands_act_once_each_and_the_last_one_leaves_a_checkpoint(model, samples, tmp_path, monkeypatch, caplog):
    pressure(monkeypatch, [0.5, 0.82, 0.83, 0.87, 0.88, 0.92, 0.5, 0.96])
    result = train(model(), samples(40), TrainingConfig(**SETTINGS), 0, folder=tmp_path)
    kinds = [(step, kind) for step, kind, action in told(caplog, tmp_path)]
    assert kinds == [(2, "memory_log"), (4, "memory_smaller"), (6, "memory_collect"), (8, "memory_stop")]
    assert result.stopped_by == "memory" and result.steps == 8 and "gradient_checkpointing=True" in caplog.text
    assert [record["step"] for record in read_records(tmp_path / "checkpoints.jsonl")] == [6, 8]
    pressure(monkeypatch, [0.5])
    assert train(model(), samples(40), TrainingConfig(**SETTINGS), 0, folder=tmp_path).steps == 16


def test_a_leak_is_noticed_and_a_plateau_is_none(model, samples, tmp_path, monkeypatch, caplog):
    config = TrainingConfig(**{**SETTINGS, "max_steps": 45})
    gib = 2**30
    for name, growth, expected in (("leak", 2 ** 23, [(40, "memory_leak")]), ("flat", 0, [])):
        sizes = iter([gib + growth * step for step in range(100)])
        monkeypatch.setattr(memory, "measure_memory", lambda stage, device="cpu", sizes=sizes, **details:
                            memory.MemoryMetrics(stage, next(sizes), 0, 0, 0, 0.0, {"limit": 100 * gib}))
        train(model(), samples(40), config, 0, folder=tmp_path / name)
        assert [(step, kind) for step, kind, action in told(caplog, tmp_path / name)] == expected


class FromWorker(Sequence):
    """Samples whose numbers go through a process of its own, which can be killed."""

    def __init__(self, rows):
        self.rows = rows
        self.worker = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        if self.worker.poll() is not None:
            raise EOFError("the data worker is gone")
        self.worker.stdin.write(f"{range(len(self.rows))[number]}\n")
        return self.rows[int(self.worker.stdout.readline())]


def test_a_dead_data_worker_ends_the_run_with_a_checkpoint_and_it_goes_on(model, samples, tmp_path, caplog):
    data = FromWorker(samples(20))

    def kill(kind, record):
        if kind == "step" and record.step == 5:
            data.worker.kill()
            data.worker.wait()

    with pytest.raises(TrainingError, match="got EOFError after step 5.*call train on the same folder"):
        train(model(dropout=0.2), data, TrainingConfig(**SETTINGS), 0, folder=tmp_path, callbacks=[kill])
    assert told(caplog, tmp_path) == [(5, "data_lost", "saved after step 5")]
    assert find_latest(tmp_path)[0].name == "checkpoint-000005"
    resumed = train(model(dropout=0.2), data.rows, TrainingConfig(**SETTINGS), 0, folder=tmp_path)
    whole = train(model(dropout=0.2), data.rows, TrainingConfig(**SETTINGS), 0)
    assert [record.loss for record in resumed.history] == [record.loss for record in whole.history]


def test_frozen_adapters_are_named(model, samples, tmp_path, caplog):
    tiny = model()
    tiny.register_parameter("lora_forgotten", torch.nn.Parameter(torch.ones(2)))
    train(tiny, samples(40), TrainingConfig(**{**SETTINGS, "max_steps": 20}), 0, folder=tmp_path)
    [(step, kind, action)] = told(caplog, tmp_path)
    assert (step, kind) == (20, "frozen") and "enable_input_require_grads" in action
    assert read_records(tmp_path / "events.jsonl")[0]["evidence"]["first"] == ["lora_forgotten"]


def later(start, factor):
    """A loss that is so many times larger after a step, gradients unchanged."""
    fault = At(0, None)
    fault.loss = lambda model, batch: (lambda value: value + (factor(fault.done) - 1) * value.detach())(
        target_loss(model, batch))
    return fault


def test_a_jump_that_lasts_goes_back_to_before_it_with_half_the_rate(model, samples, tmp_path, caplog):
    fault = later(20, lambda done: 2.8 if 20 <= done < 40 else 1.0)
    config = TrainingConfig(**{**SETTINGS, "max_steps": 42}, save_steps=5, save_total_limit=None)
    result = train(model(), samples(40), config, 0, folder=tmp_path, callbacks=[fault], loss_function=fault.loss)
    kinds = [(step, kind) for step, kind, action in told(caplog, tmp_path)]
    assert kinds == [(40, "jump"), (20, "rolled_back")]
    assert result.steps == 42 and result.history[-1].learning_rate == pytest.approx(5e-4)


def test_a_loss_that_keeps_rising_lowers_the_rate_and_a_resumed_run_knows_it(model, samples, tmp_path):
    losses = [1.0 + 0.004 * step + 0.01 * math.sin(step) for step in range(80)] + [1.0 - 0.002 * s for s in range(80)]
    whole, first, second = Watch(), Watch(), Watch()
    found = [whole.look(loss) for loss in losses]
    begun = [first.look(loss) for loss in losses[:53]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert begun + [second.look(loss) for loss in losses[53:]] == found
    assert [kind for kind, _ in found if kind] == ["rising", "rising"]
    assert second.rate_share == whole.rate_share and 0.25 < whole.rate_share < 1  # given back, slowly


def test_a_constant_loss_is_a_collapse_and_a_swing_an_oscillation():
    assert {kind for kind, _ in map(Watch().look, [0.0] * 20)} == {"", "collapse"}
    swing = [mean + 0.01 * (step % 3) for mean in (2.0, 3.0, 2.0, 3.0) for step in range(20)]
    assert [kind for kind, _ in map(Watch().look, swing) if kind] == ["oscillation"]


def test_an_overflow_of_fp16_is_the_scalers_and_is_not_counted_until_its_scale_is_at_the_end():
    guard, scaler = Guard(1), torch.amp.GradScaler("cpu", init_scale=4.0)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for _ in range(2):
        decision = judge_scaled(guard, scaler, 1.0, math.inf)
        assert (decision.action, decision.kind) == ("step", "fp16_overflow")
        scaler.scale((weight * math.inf).sum()).backward()
        scaler.step(optimizer)  # what the loop does next: the scaler leaves it out, and halves its scale
        scaler.update()
        optimizer.zero_grad()
    assert weight.tolist() == [1.0, 1.0] and scaler.get_scale() == 1.0 and guard.skipped_in_a_row == 0
    assert judge_scaled(guard, scaler, 1.0, math.inf).action == "roll back"
    assert judge_scaled(guard, torch.amp.GradScaler("cpu", init_scale=4.0), math.nan, 1.0).kind == "nan_loss"
