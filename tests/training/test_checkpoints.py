"""Checkpoints: whole or not there, and nothing but whole ones is read."""
import json
import os
import shutil

import pytest
import torch

from finetune_lib.core import ResourceError
from finetune_lib.lora.adapter import LoRAConfig, attach_lora
from finetune_lib.training.checkpoints import (
    CheckpointError,
    find_latest,
    load_checkpoint,
    prune,
    save_checkpoint,
    sweep,
    trainable_tensors,
    verify,
    write_atomically,
    write_manifest,
)
from finetune_lib.training.schedule import make_optimizer, parameter_groups

FILES = ("manifest.json", "optimizer.safetensors", "random.json", "state.json", "trainable.safetensors")


def moved(model):
    """An optimizer that has memory."""
    optimizer = make_optimizer(parameter_groups(model, 1e-2))
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
        optimizer.step()
    return optimizer


@pytest.fixture
def run(tmp_path, model):
    """A folder with checkpoints of steps 5 and 10."""
    tiny = model(hidden=16, layers=1)
    for step in (5, 10):
        save_checkpoint(tmp_path, step, tiny, moved(tiny), {"note": step})
    return tmp_path


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, flip, empty, os.remove], ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_named_and_the_older_checkpoint_taken(run, damage, name):
    damage(run / "checkpoint-000010" / name)
    with pytest.raises(CheckpointError, match=f"checkpoint-000010/{name}"):
        verify(run / "checkpoint-000010")
    path, broken = find_latest(run)
    assert path == run / "checkpoint-000005" and name in broken["checkpoint-000010"]


def test_parts_of_two_steps_are_not_mixed(run):
    for name in FILES:
        copy = run.parent / f"{run.name}-{name}"
        shutil.copytree(run, copy)
        shutil.copy(copy / "checkpoint-000005" / name, copy / "checkpoint-000010" / name)
        same = (run / "checkpoint-000005" / name).read_bytes() == (run / "checkpoint-000010" / name).read_bytes()
        assert same or find_latest(copy)[0] == copy / "checkpoint-000005", name


def test_a_planted_file_and_a_renamed_folder_are_refused(run):
    (run / "checkpoint-000010" / "optimizer.pt").write_bytes(b"a pickle")
    assert "not in the manifest" in find_latest(run)[1]["checkpoint-000010"]
    shutil.rmtree(run / "checkpoint-000010")
    (run / "checkpoint-000005").rename(run / "checkpoint-000020")
    path, broken = find_latest(run)
    assert path is None and "holds step 5" in broken["checkpoint-000020"]


def test_a_manifest_that_was_edited_does_not_pass(run):
    place = run / "checkpoint-000010"
    (place / "state.json").write_text(json.dumps({"step": 10, "note": "mine"}))
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["files"].pop("state.json")
    (place / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="sealed"):
        verify(place)


def test_the_newest_is_the_highest_step_not_the_latest_file(run):
    os.utime(run / "checkpoint-000005")
    assert find_latest(run) == (run / "checkpoint-000010", {})


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert find_latest(tmp_path) == (None, {})
    (tmp_path / "checkpoint-000001").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    path, broken = find_latest(tmp_path)
    assert path is None and list(broken) == ["checkpoint-000001"]


def test_there_is_no_pickle_in_a_checkpoint(run):
    assert {path.name for path in (run / "checkpoint-000010").iterdir()} == set(FILES)
    for path in (run / "checkpoint-000010").glob("*.json"):
        json.loads(path.read_text())


def test_everything_comes_back(tmp_path, model, equal, weights_of):
    tiny = model()
    optimizer = moved(tiny)
    path = save_checkpoint(tmp_path, 3, tiny, optimizer, {"note": [1, None, "x"]})
    drawn = torch.rand(4)
    other = model(seed=1)
    fresh = make_optimizer(parameter_groups(other, 5e-3))
    assert load_checkpoint(path, other, fresh) == {"step": 3, "note": [1, None, "x"]}
    assert torch.equal(torch.rand(4), drawn)
    assert equal(weights_of(other), weights_of(tiny))
    assert {group["lr"] for group in fresh.param_groups} == {5e-3}  # a setting, not memory
    for ours, theirs in zip(other.parameters(), tiny.parameters(), strict=True):
        for name, value in optimizer.state[theirs].items():
            assert torch.equal(fresh.state[ours][name], value)


@pytest.mark.parametrize("backend", ["own", "peft"])
def test_an_adapter_is_saved_as_peft_writes_it(tmp_path, model, backend, equal):
    from peft import PeftModel

    tiny = attach_lora(model(), LoRAConfig(r=2, init_lora_weights=False), backend=backend)
    for name, parameter in tiny.named_parameters():
        if name.endswith("model.norm.weight"):
            parameter.requires_grad_(True)  # something beside the adapter trains too
    optimizer = moved(tiny)
    path = save_checkpoint(tmp_path, 1, tiny, optimizer, {})
    other = attach_lora(model(), LoRAConfig(r=2), backend=backend)
    for name, parameter in other.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or name.endswith("model.norm.weight"))
    load_checkpoint(path, other, make_optimizer(parameter_groups(other, 1e-2)))
    assert equal(trainable_tensors(other), trainable_tensors(tiny))
    theirs, ids = PeftModel.from_pretrained(model(), path), torch.arange(5, 20)[None]
    assert not torch.allclose(theirs(ids).logits, model()(ids).logits, atol=1e-3)


def test_a_checkpoint_of_another_model_changes_nothing(run, model, equal, weights_of):
    for other in (model(hidden=32, layers=1), model(hidden=16, layers=2)):
        before = weights_of(other)
        with pytest.raises(CheckpointError, match="does not fit"):
            load_checkpoint(run / "checkpoint-000010", other)
        assert equal(weights_of(other), before)


def test_a_failed_write_leaves_the_old_folder_and_no_rest(tmp_path):
    place = tmp_path / "thing"
    write_atomically(place, lambda folder: (folder / "a").write_text("old"))

    def fail(folder):
        (folder / "a").write_text("new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        write_atomically(place, fail)
    assert (place / "a").read_text() == "old" and list(tmp_path.iterdir()) == [place]
    write_atomically(place, lambda folder: (folder / "b").write_text("new"))
    assert [path.name for path in place.iterdir()] == ["b"] and list(tmp_path.iterdir()) == [place]


def test_nothing_stands_in_the_place_before_all_is_written(tmp_path):
    seen = []
    write_atomically(tmp_path / "thing", lambda folder: seen.append((tmp_path / "thing").exists()))
    assert seen == [False]


def test_a_full_disk_is_an_error_that_leaves_the_former_checkpoint(run, model, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    tiny = model(hidden=16, layers=1)
    with pytest.raises(ResourceError, match="make room"):
        save_checkpoint(run, 15, tiny, moved(tiny), {})
    assert find_latest(run) == (run / "checkpoint-000010", {})


def test_old_checkpoints_go_but_the_best_and_the_newest_stay(run):
    for step in (15, 20, 1000000):
        shutil.copytree(run / "checkpoint-000010", run / f"checkpoint-{step:06d}")
    assert prune(run, None) == []
    gone = prune(run, 2, best=5)
    assert sorted(path.name for path in gone) == ["checkpoint-000010", "checkpoint-000015"]
    left = sorted(path.name for path in run.iterdir())
    assert left == ["checkpoint-000005", "checkpoint-000020", "checkpoint-1000000"]


def test_rests_of_a_killed_process_are_swept_and_never_read(run):
    rest = run / ".checkpoint-000015.abc"
    shutil.copytree(run / "checkpoint-000010", rest)
    write_manifest(rest, 15)
    assert find_latest(run)[0] == run / "checkpoint-000010"
    sweep(run)
    assert not rest.exists() and (run / "checkpoint-000010").exists()


def test_the_git_revision_is_read_without_starting_git(tmp_path):
    from finetune_lib.training.checkpoints import git_revision

    git, inside = tmp_path / ".git", tmp_path / "a" / "b"
    (git / "refs/heads").mkdir(parents=True)
    inside.mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert git_revision(inside) is None  # no commit yet
    (git / "packed-refs").write_text("# pack-refs\nabc refs/heads/main\n")
    assert git_revision(inside) == "abc"
    (git / "refs/heads/main").write_text("def\n")
    assert git_revision(inside) == "def"
    (git / "HEAD").write_text("123\n")
    assert git_revision(inside) == "123"
