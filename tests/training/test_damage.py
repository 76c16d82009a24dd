"""Every kind of damage to a checkpoint: named, never loaded, and the newest whole one taken."""
import json
import pickle
import shutil

import pytest

from finetune_lib.core import ConfigError
from finetune_lib.training.checkpoints import CheckpointError, find_latest, load_checkpoint, verify, write_manifest
from finetune_lib.training.loop import TrainingConfig, train

SETTINGS = dict(learning_rate=1e-3, per_device_train_batch_size=4, max_steps=6, save_steps=2, save_total_limit=None)
NEWEST, OLDER = "checkpoint-000004", "checkpoint-000002"
FILES = ("manifest.json", "optimizer.safetensors", "random.json", "state.json", "trainable.safetensors")


def cut(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * keep)] if keep < 1 else data[:-3])


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[min(int(len(data) * place), len(data) - 1)] ^= 1
    path.write_bytes(data)


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


def plant(path):
    path.write_bytes(pickle.dumps({"weights": [1, 2, 3]}))


def folder_instead(path):
    path.unlink()
    path.mkdir()


def swap(path):
    other = path.parent.parent / OLDER / path.name
    path.write_bytes(other.read_bytes())


def trailing_name(path):
    path.rename(path.with_name(f"{path.name}.bak"))


DAMAGES = {
    **{f"{name} cut to {keep:.0%}": (name, cut, keep) for name in FILES for keep in (0, 0.1, 0.5, 1)},
    **{f"{name} one bit at {place:.0%}": (name, flip, place) for name in FILES for place in (0.05, 0.5, 1)},
    **{f"{name} missing": (name, lambda path: path.unlink()) for name in FILES},
    **{f"{name} one byte more": (name, grow) for name in FILES if name != "manifest.json"},
    **{f"{name} is a pickle": (name, plant) for name in FILES},
    **{f"{name} of another step": (name, swap) for name in FILES},
    **{f"{name} is a folder": (name, folder_instead) for name in FILES},
    **{f"{name} renamed": (name, trailing_name) for name in FILES},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model, samples):
    """A run stopped after step 5: whole checkpoints of steps 2, 4 and 5, of which the last is taken away."""
    place = tmp_path_factory.mktemp("run")
    train(model(hidden=16, layers=1, dropout=0.2), samples(20), TrainingConfig(**SETTINGS), 0, folder=place,
          callbacks=[lambda kind, record: "stop" if kind == "step" and record.step == 5 else None])
    shutil.rmtree(place / "checkpoint-000005")
    return place


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_the_table_is_long_enough_and_the_undamaged_checkpoint_passes(run):
    assert len(DAMAGES) >= 25
    assert find_latest(run) == (run / NEWEST, {})


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_not_loaded_and_the_older_checkpoint_taken(run, damage, model, equal, weights_of):
    name, harm, *how = DAMAGES[damage]
    harm(run / NEWEST / name, *how)
    path, broken = find_latest(run)
    named = "" if damage == "manifest.json of another step" else name  # every other file differs from that one
    assert path == run / OLDER and f"{NEWEST}/{named}" in broken[NEWEST]
    tiny = model(hidden=16, layers=1, dropout=0.2)
    before = weights_of(tiny)
    with pytest.raises(CheckpointError, match=NEWEST):
        load_checkpoint(run / NEWEST, tiny)
    assert equal(weights_of(tiny), before)


@pytest.mark.parametrize("name", ["model.pt", "optimizer.bin", "rng_state.pth"])
def test_a_pickle_beside_the_files_is_refused(run, name):
    plant(run / NEWEST / name)
    path, broken = find_latest(run)
    assert path == run / OLDER and f"{NEWEST}/{name} is not in the manifest" in broken[NEWEST]


def test_an_empty_folder_and_one_that_took_another_steps_name_are_passed_over(run):
    shutil.copytree(run / OLDER, run / "checkpoint-000008")
    (run / "checkpoint-000009").mkdir()
    path, broken = find_latest(run)
    assert path == run / NEWEST
    assert "holds step 2" in broken["checkpoint-000008"] and "manifest.json" in broken["checkpoint-000009"]


def test_a_damaged_run_goes_on_from_the_older_checkpoint_and_says_why(run, model, samples):
    flip(run / NEWEST / "optimizer.safetensors", 0.5)
    result = train(model(hidden=16, layers=1, dropout=0.2), samples(20), TrainingConfig(**SETTINGS), 0, folder=run)
    assert result.steps == 6 and [record.step for record in result.history] == list(range(1, 7))
    [event] = [event for event in result.events if event["kind"] == "broken_checkpoint"]
    assert event["step"] == 2 and f"{NEWEST}/optimizer.safetensors" in event["evidence"]["reason"]


def resealed(run, **changes):
    """Both checkpoints with another state, sealed again: whole, but not of this run."""
    for name in (NEWEST, OLDER):
        state = json.loads((run / name / "state.json").read_text())
        for key, value in changes.items():
            state[key] = {**state[key], **value}
        (run / name / "state.json").write_text(json.dumps(state))
        (run / name / "manifest.json").unlink()
        write_manifest(run / name, int(name[-6:]))
        verify(run / name)


@pytest.mark.parametrize(("changes", "words"), [
    ({"config": {"learning_rate": 5e-3}}, "learning_rate was 0.005"),
    ({"config": {"seed": 7}}, "seed was 7"),
    ({"identity": {"model": "0" * 64}}, "the model is another"),
    ({"identity": {"data": "0" * 64}}, "the data is another"),
    ({"identity": {"number of processes": "2"}}, "the number of processes is another"),
], ids=["rate", "seed", "model", "data", "ranks"])
def test_a_whole_checkpoint_of_another_run_is_refused_by_name(run, changes, words, model, samples, equal, weights_of):
    resealed(run, **changes)
    tiny = model(hidden=16, layers=1, dropout=0.2)
    before = weights_of(tiny)
    with pytest.raises(ConfigError, match=words):
        train(tiny, samples(20), TrainingConfig(**SETTINGS), 0, folder=run)
    assert equal(weights_of(tiny), before)


def test_a_checkpoint_of_a_model_of_another_shape_is_refused(run, model, samples):
    with pytest.raises(ConfigError, match="the model is another"):
        train(model(hidden=32, layers=1), samples(20), TrainingConfig(**SETTINGS), 0, folder=run)
