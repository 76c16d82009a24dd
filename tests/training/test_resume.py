"""Resuming equals never having stopped."""
import json
import os
import random
import signal

import pytest
import torch

from finetune_lib.core import ConfigError
from finetune_lib.training.checkpoints import CheckpointError, find_latest, trainable_tensors
from finetune_lib.training.loop import TrainingConfig, train

SETTINGS = dict(learning_rate=3e-3, per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=2,
                warmup_steps=0.1, eval_steps=5, save_steps=3, weight_decay=0.01, neftune_noise_alpha=5.0)
TIMES = ("timestamp", "samples_per_second", "tokens_per_second", "eval_runtime")


@pytest.fixture(scope="session")
def data(samples):
    return {"samples": samples(50), "eval_samples": samples(6, 1), "replay": samples(9, 2, all_targets=True)}


def learn(model, data, folder, stop_at=None, how=lambda: "stop", **settings):
    """Train a fresh tiny model with dropout; at `stop_at` steps, `how` happens."""
    callback = lambda kind, record: how() if kind == "step" and record.step == stop_at else None  # noqa: E731
    tiny = model(hidden=16, layers=1, dropout=0.2)
    return tiny, train(tiny, config=TrainingConfig(**{**SETTINGS, **settings}), pad_token_id=0, folder=folder,
                       callbacks=[callback], **data)


def records(folder, name):
    """What was recorded, but for the clock."""
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def everything(folder):
    """Weights, optimizer, generators and records of a finished run, as bytes and values."""
    path, broken = find_latest(folder)
    assert not broken
    names = ("trainable.safetensors", "optimizer.safetensors", "random.json")
    files = {name: (path / name).read_bytes() for name in names}
    return path.name, files, records(folder, "metrics.jsonl"), records(folder, "evaluations.jsonl")


@pytest.fixture(scope="session")
def uninterrupted(model, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    learn(model, data, folder)
    return everything(folder)


@pytest.mark.parametrize("stop_at", [1, 3, 6, 7, 8, 13])  # 7 windows an epoch, the last of them short; 14 in all
def test_a_stopped_run_goes_on_as_if_it_had_not(model, data, uninterrupted, tmp_path, stop_at):
    first, result = learn(model, data, tmp_path, stop_at)
    assert result.stopped_by == "callback" and result.steps == stop_at
    random.seed(), torch.manual_seed(random.randrange(10**6))
    _, result = learn(model, data, tmp_path)
    assert result.stopped_by == "end" and result.steps == 14
    end, files, metrics, evaluations = everything(tmp_path)
    assert (end, files, metrics) == uninterrupted[:3]
    # stopping evaluates once more, at the step where it stopped; otherwise they are the same
    assert [record for record in evaluations if record["eval_step"] != stop_at] == [
        record for record in uninterrupted[3] if record["eval_step"] != stop_at]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_lets_the_run_go_on(model, data, uninterrupted, tmp_path, number, caplog):
    before = signal.getsignal(number)
    _, result = learn(model, data, tmp_path, 4, lambda: os.kill(os.getpid(), number))
    assert result.stopped_by == signal.Signals(number).name and result.steps == 4
    assert find_latest(tmp_path)[0].name == "checkpoint-000004" and "again to go on" in caplog.text
    assert signal.getsignal(number) == before
    learn(model, data, tmp_path)
    assert everything(tmp_path) == uninterrupted


def test_a_second_signal_interrupts_at_once(model, data, tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        learn(model, data, tmp_path, 4, twice)


def test_killed_at_any_moment_a_run_goes_on_as_if_it_had_not(model, data, uninterrupted, tmp_path):
    chance = random.Random()
    seed = chance.randrange(10**6)
    chance.seed(seed)
    for kill in range(6):
        folder, tries = tmp_path / str(kill), 0
        while not (folder / "checkpoint-000014").exists() and tries < 30:
            tries += 1
            child = os.fork()
            if child == 0:  # the child trains, a checkpoint each step; its alarm ends it at once, wherever it is
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.01, 0.3 * tries))
                learn(model, data, folder, save_steps=1)
                os._exit(0)
            chance.random()
            os.waitpid(child, 0)
        learn(model, data, folder, save_steps=1)
        assert everything(folder) == uninterrupted, f"seed {seed}, kill {kill}"


def test_a_broken_newest_checkpoint_is_passed_over_by_name(model, data, uninterrupted, tmp_path):
    learn(model, data, tmp_path, 7)
    (tmp_path / "checkpoint-000007" / "optimizer.safetensors").write_bytes(b"")
    _, result = learn(model, data, tmp_path)
    assert [event["evidence"]["name"] for event in result.events] == ["checkpoint-000007"]
    assert records(tmp_path, "events.jsonl")[0]["kind"] == "broken_checkpoint"
    assert everything(tmp_path)[:3] == uninterrupted[:3]


def test_with_nothing_but_broken_checkpoints_the_run_does_not_silently_begin_anew(model, data, tmp_path):
    learn(model, data, tmp_path, 1)
    (tmp_path / "checkpoint-000001" / "state.json").unlink()
    with pytest.raises(CheckpointError, match="state.json is missing.*resume=False"):
        learn(model, data, tmp_path)


def test_a_finished_run_is_not_trained_again(model, data, tmp_path, equal):
    first, result = learn(model, data, tmp_path)
    called = []
    second, again = learn(model, data, tmp_path, 1, lambda: called.append(1))
    assert not called and equal(trainable_tensors(first), trainable_tensors(second))
    assert [record.loss for record in again.history] == [record.loss for record in result.history]
    assert again.stopped_by == "end" and len(again.evaluations) == len(result.evaluations)


@pytest.mark.parametrize("settings", [{"learning_rate": 1e-3}, {"seed": 1}, {"per_device_train_batch_size": 8},
                                      {"max_steps": 20}, {"lr_scheduler_type": "linear"}], ids=str)
def test_a_run_does_not_go_on_with_settings_that_change_the_training(model, data, tmp_path, settings):
    learn(model, data, tmp_path, 2)
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} was .* resume=False"):
        learn(model, data, tmp_path, **settings)


def test_settings_that_do_no_harm_may_change_and_are_noted(model, data, uninterrupted, tmp_path):
    learn(model, data, tmp_path, 2)
    _, result = learn(model, data, tmp_path, save_steps=2, logging_steps=1)
    assert {next(iter(event["evidence"])) for event in result.events} == {"save_steps", "logging_steps"}
    assert everything(tmp_path)[:3] == uninterrupted[:3]


def test_a_run_does_not_go_on_with_other_data_or_another_base(model, data, samples, tmp_path):
    from finetune_lib.lora.adapter import LoRAConfig, attach_lora

    def start(seed, rows, **more):
        tiny = attach_lora(model(seed, hidden=16, layers=1), LoRAConfig(r=2))
        return train(tiny, rows, TrainingConfig(**SETTINGS), 0, folder=tmp_path, **more)

    rows = data["samples"]
    start(0, rows, callbacks=[lambda kind, record: "stop" if kind == "step" else None])
    with pytest.raises(ConfigError, match="the data is another"):
        start(0, rows[1:] + rows[:1])
    with pytest.raises(ConfigError, match="the model is another"):
        start(7, rows)


def test_beginning_anew_sets_the_former_run_aside(model, data, tmp_path):
    learn(model, data, tmp_path, 2)
    tiny = model(hidden=16, layers=1, dropout=0.2)
    result = train(tiny, config=TrainingConfig(**{**SETTINGS, "learning_rate": 1e-3}), pad_token_id=0, folder=tmp_path,
                   resume=False, **data)
    assert result.steps == 14 and (tmp_path / "earlier-1" / "checkpoint-000002").exists()
    assert len(records(tmp_path, "metrics.jsonl")) == 14
