"""Checks of milestone 4, second part: nothing that was saved is lost, and trouble is judged before it is applied."""
import json
import math
import os
import shutil
from pathlib import Path

import pytest

from milestones.expecting import expect, same


@pytest.mark.task("4.6", points=5, hint="write beside it, then rename")
def test_a_folder_is_there_whole_or_not_at_all(lib, tmp_path, seed, monkeypatch):
    place, seen, flushed, fsync = tmp_path / "run" / "checkpoint-1", [], [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(place.exists()) or fsync(handle))

    def write(folder):
        seen.append((place.exists(), folder.exists() and not any(folder.iterdir()), folder.parent == place.parent))
        (folder / "weights").write_text(str(seed))
    made = lib.write_atomically(place, write)
    same(made, place, "what is returned: the folder's path")
    visible, empty, beside = seen[0]
    expect(not visible, "the folder has no name before it is whole", "nothing under the final name while writing",
           "the folder is there already", {"the files are written in place": True})
    expect(empty and beside, "writing happens in an empty folder beside the final place", "an empty folder beside it",
           f"empty: {empty}, beside: {beside}", {"the folder lies on another disk, where a rename copies": not beside})
    same(sorted(path.name for path in place.parent.iterdir()), ["checkpoint-1"], "what is left beside it", {
        "the unfinished folder is not moved, but copied": True})
    same((place / "weights").read_text(), str(seed), "the file's content")
    expect(False in flushed and True in flushed, "the disk has the files before the rename, and the name after it",
           "fsync before and after the rename", f"fsync before: {False in flushed}, after: {True in flushed}", {
               "nobody waits for the disk": not flushed,
               "the files may still be in memory when the folder gets its name": False not in flushed,
               "the folder's new name may still be in memory": True not in flushed})


@pytest.mark.task("4.6", points=4)
def test_a_write_that_fails_leaves_what_was_there(lib, tmp_path, seed, monkeypatch):
    place, removed, rmtree = tmp_path / "checkpoint-1", [], shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, *a, **k: removed.append(str(path)) or rmtree(path, *a, **k))
    place.mkdir()
    (place / "weights").write_text("old")

    for error in (OSError("disk full"), KeyboardInterrupt()):
        def fail(folder, error=error):
            (folder / "weights").write_text("half")
            raise error
        try:
            lib.write_atomically(place, fail)
            raised = None
        except (OSError, KeyboardInterrupt) as caught:
            raised = caught
        expect(raised is error, "the error is raised again", repr(error), repr(raised),
               {"the error is swallowed": raised is None})
    there = (place / "weights").read_text() if (place / "weights").exists() else "nothing"
    same(
        there,
        "old",
        "the old folder's file",
        {
            "the old folder is deleted before the new one is whole": there == "nothing",
            "the files are written in place": there == "half",
        },
    )
    same(sorted(path.name for path in tmp_path.iterdir()), ["checkpoint-1"], "what is left beside it", {
        "the unfinished folder is not cleared away": True})
    lib.write_atomically(place, lambda folder: (folder / "weights").write_text("new"))
    same(
        (place / "weights").read_text(),
        "new",
        "the file after the next write",
        {"a folder that stands there is not replaced": True},
    )
    expect(str(place) not in removed, "the old folder stays until the new one has its name", "it is moved aside",
           "deleted in its place", {"a machine that dies between the two has neither": True})


def checkpoint(lib, folder, step):
    """A whole checkpoint with two files and its sealed manifest."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(200)))
    (folder / "trainer.json").write_text(json.dumps({"step": step}))
    lib.write_manifest(folder, step)
    return folder


def damage(path, kind):
    """Break one thing about a checkpoint."""
    file, manifest = path / "model.safetensors", path / "manifest.json"
    if kind == "a changed byte":
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    elif kind == "a file cut short":
        file.write_bytes(file.read_bytes()[:100])
    elif kind == "a missing file":
        file.unlink()
    elif kind == "a file too many":
        (path / "extra.bin").write_bytes(b"x")
    elif kind == "a file too many in a subfolder":
        (path / "adapter").mkdir()
        (path / "adapter/extra.bin").write_bytes(b"x")
    elif kind == "no manifest":
        manifest.unlink()
    elif kind == "a manifest cut short":
        manifest.write_text(manifest.read_text()[:40])
    else:
        value = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**value, "step": value["step"] + 1}))


DAMAGES = (
    "a changed byte",
    "a file cut short",
    "a missing file",
    "a file too many",
    "a file too many in a subfolder",
    "no manifest",
    "a manifest cut short",
    "a manifest that was edited",
)


@pytest.mark.task("4.7", points=5)
def test_every_kind_of_damage_is_found(lib, tmp_path, seed):
    for number, kind in enumerate(DAMAGES):
        path = checkpoint(lib, tmp_path / f"checkpoint-{number}", number)
        damage(path, kind)
        try:
            lib.verify(path)
        except lib.CheckpointError:
            continue
        except NotImplementedError:
            raise
        except Exception as error:
            expect(False, f"{kind} is a CheckpointError", "CheckpointError", f"{type(error).__name__}: {error}",
                   {"errors of reading are passed on as they are": True})
        expect(False, f"{kind} is refused", "CheckpointError", "no error", {
            "the content is not looked at: sizes can be right and bytes wrong": kind == "a changed byte",
            "only the files that are there are looked at": kind == "a missing file",
            "only the files in the manifest are looked at": kind == "a file too many",
            "subfolders are not looked into": kind == "a file too many in a subfolder",
            "the seal of the manifest is not checked": kind == "a manifest that was edited"})


@pytest.mark.task("4.7", points=3)
def test_a_whole_checkpoint_gives_its_manifest(lib, tmp_path, seed):
    place = checkpoint(lib, tmp_path / "checkpoint-3", 3 + seed % 100)
    want = json.loads((place / "manifest.json").read_text())
    want.pop("seal")
    got = lib.verify(place)
    expect(isinstance(got, dict), "the manifest is returned", "a dict", str(got)[:80], {
        "the return is missing": got is None, "the answer is a yes, not the manifest": got is True,
        "the folder is returned": got == place})
    same({name: value for name, value in got.items() if name != "seal"}, want, "the manifest", {
        "only the table of files is returned": got == want["files"]})


def latest_of(lib, folder):
    """(path, reasons) as `find_latest` gives them; anything else is said."""
    got = lib.find_latest(folder)
    whole = isinstance(got, tuple) and len(got) == 2 and isinstance(got[1], dict)
    expect(whole and (got[0] is None or isinstance(got[0], Path)), "two things are returned",
           "(a Path or None, a dict of reasons)", str(got)[:120], {
               "the reasons are not returned": got is None or isinstance(got, Path),
               "the name stands for the path": whole and isinstance(got[0], str)})
    return got


@pytest.mark.task("4.8", points=5, hint="numbers, not names: 9 comes before 10")
def test_the_highest_number_is_the_latest_whatever_the_clock_says(lib, tmp_path, seed):
    for step, age in ((9, 100), (10, 300), (100, 200), (11, 0), (2, 150)):  # neither by name nor by time is it the last
        path = checkpoint(lib, tmp_path / f"checkpoint-{step}", step)
        for file in (*path.iterdir(), path):
            os.utime(file, (1_700_000_000 - age, 1_700_000_000 - age))
    (tmp_path / "checkpoint-best").mkdir()
    path, broken = latest_of(lib, tmp_path)
    same((path and path.name, broken), ("checkpoint-100", {}), "the latest checkpoint", {
        "the latest is taken by the time of its files": path is not None and path.name == "checkpoint-11",
        "names are compared as text, and 9 comes behind 100": path is not None and path.name == "checkpoint-9",
        "the oldest is taken": path is not None and path.name == "checkpoint-2", "none is found": path is None})


@pytest.mark.task("4.8", points=4)
def test_broken_checkpoints_are_passed_over_with_their_reason(lib, tmp_path, seed):
    for step, kind in ((1, None), (2, None), (3, "a file cut short"), (4, "no manifest")):
        path = checkpoint(lib, tmp_path / f"checkpoint-{step}", step)
        if kind:
            damage(path, kind)
    checkpoint(lib, tmp_path / "checkpoint-7", 6)
    path, broken = latest_of(lib, tmp_path)
    same((path and path.name, sorted(broken)), ("checkpoint-2", ["checkpoint-3", "checkpoint-4", "checkpoint-7"]),
         "the latest whole checkpoint, and those passed over", {
             "a step that is not that of its name is accepted": path is not None and path.name == "checkpoint-7",
             "the oldest is taken": path is not None and path.name == "checkpoint-1",
             "the search ends at the first broken one": path is None and bool(broken),
             "what is broken is not reported": path is not None and len(broken) < 3})
    expect(
        all(isinstance(reason, str) and reason for reason in broken.values()),
        "each has its reason",
        got=str(broken)[:120],
    )
    same(latest_of(lib, tmp_path / "nothing"), (None, {}), "the answer where there is no checkpoint")


def judged(lib, guard, steps):
    """The decisions on (loss, norm) one after the other."""
    decisions = [lib.decide(guard, loss, norm) for loss, norm in steps]
    expect(all(hasattr(decision, "action") for decision in decisions), "every way through returns a Decision",
           "a Decision", str(decisions)[:120], {"a way through the function ends without `return`": None in decisions,
                                                "the action alone is returned": True})
    return decisions


@pytest.mark.task("4.9", points=5, hint="a step that is left out teaches the guard nothing")
def test_bad_steps_are_left_out_and_several_in_a_row_roll_back(lib, seed):
    bad, good = (math.nan, 1.0), (2.0, 1.0)
    guard = lib.Guard(max_skipped_steps=3)
    decisions = judged(lib, guard, [good, bad, bad, good, bad, (2.0, math.inf), bad])
    actions = [decision.action for decision in decisions]
    same(actions, ["step", "skip", "skip", "step", "skip", "skip", "roll back"], "the decisions", {
        "a NaN step is applied": "step" in (actions[1], actions[2]),
        "the first bad step rolls back": actions[1] == "roll back",
        "steps that are left out are not counted": guard.skipped_in_a_row == 0 and "roll back" not in actions,
        "a good step does not begin the count again": actions[4] == "roll back",
        "patience ends one step late": actions[-1] == "skip", "only the loss is looked at": actions[5] == "step"})
    expect(len(guard.losses) == 2, "the medians know only what was applied", "2 losses", f"{len(guard.losses)} losses",
           {"numbers of steps that were left out are remembered": len(guard.losses) > 2,
            "steps that are applied are not remembered": not guard.losses})
    same((decisions[5].kind, decisions[5].evidence), ("nan_gradient", {"loss": 2.0, "grad_norm": "inf"}),
         "(kind, evidence) of an infinite gradient", {"the evidence is left out": not decisions[5].evidence})


@pytest.mark.task("4.9", points=4)
def test_an_explosion_is_left_out_and_a_spike_is_only_noted(lib, seed):
    guard = lib.Guard(at_least=5)
    judged(lib, guard, [(2.0, 1.0)] * 6)
    decisions = judged(lib, guard, [(2.0, 500.0), (20.0, 1.0)])
    same(
        [(d.action, d.kind) for d in decisions],
        [("skip", "explosion"), ("step", "spike")],
        "(action, kind)",
        {
            "an exploding gradient is applied": decisions[0].action == "step",
            "a spike is left out": decisions[1].action == "skip",
        },
    )
    same([d.evidence for d in decisions], [{"grad_norm": 500.0, "median": 1.0}, {"loss": 20.0, "median": 2.0}],
         "the evidence", {"the evidence is left out": not any(d.evidence for d in decisions)})
    expect(max(guard.norms) < 100, "an exploding gradient stays out of the median", got=f"{max(guard.norms)}",
           reasons={"numbers of steps that were left out are remembered": True})


@pytest.mark.task("4.9", points=1)
def test_gradients_of_zero_are_noticed_once(lib, seed):
    guard = lib.Guard(at_least=4)
    decisions = judged(lib, guard, [(2.0, 0.0)] * 7)
    kinds = [decision.kind for decision in decisions]
    same(kinds.count("no_gradient"), 1, "how often seven gradients of zero are said", {
        "it is said at every step": kinds.count("no_gradient") > 1, "it is never said": "no_gradient" not in kinds})
    told = decisions[kinds.index("no_gradient")]
    same((told.action, told.evidence.get("steps", 4)), ("step", 4), "(action, number of steps) when it is said", {
        "a step without a gradient is left out: it does no harm": told.action != "step"})
    guard = lib.Guard(at_least=4)
    kinds = [decision.kind for decision in judged(lib, guard, [(2.0, norm) for norm in (0.0, 0.0, 1.0, 0.0, 0.0, 0.0)])]
    expect("no_gradient" not in kinds, "zeros that are not in a row are no sign", got=str(kinds),
           reasons={"the count does not begin again": True})
    kinds = [decision.kind for decision in judged(lib, lib.Guard(at_least=4), [(2.0, 1e-6)] * 7)]
    expect("no_gradient" not in kinds, "a small gradient is not none", got=str(kinds),
           reasons={"small gradients are taken for zero": True})
