"""A run and its folder: a full disk, one that may not be written, a second process, a clock that goes backwards."""
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune_lib.core import ResourceError
from finetune_lib.training.checkpoints import find_latest
from finetune_lib.training.curves import read_records
from finetune_lib.training.loop import TrainingConfig, train

ROOT = Path(__file__).parents[2]
SETTINGS = dict(learning_rate=1e-3, per_device_train_batch_size=4, max_steps=8, save_steps=2)


def learn(model, samples, folder, callback=None, **more):
    tiny = model(hidden=16, layers=1, dropout=0.2)
    return train(tiny, samples(20), TrainingConfig(**SETTINGS), 0, folder=folder,
                 callbacks=[callback] if callback else [], **more)


def losses(folder):
    return [record["loss"] for record in read_records(folder / "metrics.jsonl")]


def in_child(work):
    """What `work` raised in a process of its own, as text; empty when it raised nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
            said = ""
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.slow
def test_killed_twenty_times_also_while_saving_it_resumes_and_nothing_differs(tmp_path):
    out = tmp_path / "report.json"
    done = subprocess.run([sys.executable, str(ROOT / "tests/benchmark/soak.py"), "--kills", "20", "--out", str(out)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert (report["kills"], report["resumed"], report["different"]) == (20, 20, 0) and report["while_saving"] > 0


def test_a_disk_that_fills_up_ends_with_words_and_the_former_checkpoint_is_whole(model, samples, tmp_path):
    def until_full():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        def fill(kind, record):  # from step 3 on no file may grow beyond 3 kB: a write fails in the middle of a file
            if kind == "step" and record.step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

        learn(model, samples, tmp_path / "run", fill)

    said = in_child(until_full)
    assert said.startswith("ResourceError: the checkpoint of step 4 could not be written") and "make room" in said
    assert find_latest(tmp_path / "run") == (tmp_path / "run" / "checkpoint-000002", {})
    assert not list((tmp_path / "run").glob(".checkpoint-*"))
    learn(model, samples, tmp_path / "run")
    learn(model, samples, tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_folder_that_may_not_be_written_is_refused_before_the_first_step(model, samples, tmp_path):
    place = tmp_path / "closed"
    place.mkdir()
    place.chmod(0o555)

    def refused():
        if os.geteuid() == 0:
            os.seteuid(65534)  # root may write everywhere: go on as nobody
        learn(model, samples, place / "run")

    said = in_child(refused)
    assert said.startswith("ResourceError: a run writes into its folder") and "make it writable" in said
    assert list(place.iterdir()) == []


def test_a_second_process_is_refused_and_the_first_one_goes_on(model, samples, tmp_path):
    said = []

    def second(kind, record):
        if kind == "step" and record.step == 3:
            said.append(in_child(lambda: learn(model, samples, tmp_path)))

    result = learn(model, samples, tmp_path, second)
    assert said[0].startswith("ResourceError: only one process may write") and str(os.getpid()) in said[0]
    assert result.stopped_by == "end" and len(losses(tmp_path)) == 8


def test_a_folder_is_free_again_after_its_process_was_killed(model, samples, tmp_path):
    child = os.fork()
    if child == 0:
        learn(model, samples, tmp_path, lambda kind, record: os.kill(os.getpid(), signal.SIGKILL)
              if kind == "step" and record.step == 5 else None)
    os.waitpid(child, 0)
    assert (tmp_path / ".lock").read_text() == str(child)
    assert learn(model, samples, tmp_path).stopped_by == "end" and len(losses(tmp_path)) == 8


def test_a_clock_that_goes_backwards_changes_nothing(model, samples, tmp_path, monkeypatch):
    learn(model, samples, tmp_path / "whole")
    now = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    learn(model, samples, tmp_path / "back", lambda kind, record: "stop" if kind == "step" and record.step == 5 else 0)
    os.utime(tmp_path / "back" / "checkpoint-000004", (4e9, 4e9))  # the older one looks newer
    result = learn(model, samples, tmp_path / "back")
    stamps = [record.timestamp for record in result.history]
    assert stamps == sorted(stamps, reverse=True) and losses(tmp_path / "back") == losses(tmp_path / "whole")
    assert all(record.tokens_per_second > 0 for record in result.history)


def test_every_checkpoint_leaves_a_record(model, samples, tmp_path):
    learn(model, samples, tmp_path)
    records = read_records(tmp_path / "checkpoints.jsonl")
    assert [(record["step"], record["path"]) for record in records] == [
        (step, f"checkpoint-{step:06d}") for step in (2, 4, 6, 8)]
    assert all(record["optimizer_bytes"] > 0 and record["config"]["max_steps"] == 8 for record in records)


def test_a_folder_without_a_lock_of_ours_is_not_needed_where_nothing_is_written(model, samples):
    tiny = model(hidden=16, layers=1)
    assert train(tiny, samples(8), TrainingConfig(**SETTINGS), 0).stopped_by == "end"


def test_a_lock_is_refused_with_what_to_do(tmp_path):
    from finetune_lib.training.processes import only_one

    with only_one(tmp_path), pytest.raises(ResourceError, match="wait for it, stop it, or name another folder"):
        with only_one(tmp_path):
            pass
