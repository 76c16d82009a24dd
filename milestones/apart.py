"""Work on a learner's folder done apart, in a box: export its notebooks, run the checks. Nothing here imports its code.

`python -m milestones.apart` is the process in the box. It takes one request from its standard input, works in forked
children, and says on its standard output what it found, a line at a time: what was said before it ended is not lost.
"""
import ctypes
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from milestones.checking import ERROR, KIT, Check, CheckResult, check_files, import_checks, settle
from milestones.children import TEXT
from milestones.exporting import FILES, export_one
from milestones.listed import AUTHORS_FILES
from milestones.running import Guard, Limits, in_child, run_in_folder, warm_up
from milestones.sandbox import CHECKOUT, limit_here, run_boxed
from milestones.seal import NEEDED
from milestones.tasks import Task, notebook_paths

WHOLE = 1800.0  # seconds for a whole run: the limits of the single checks end it long before
NOTEBOOK = 2**24  # bytes of a notebook: ours, with their pictures, have less than a twentieth of it
MODULE = 2**20  # bytes of a module: ours have less than a fiftieth of it
NOTEBOOKS = 500
NO_RESULTS = "the run gave no results"  # how it is said that the process in the box ended too early
EXPORT = Limits(seconds=20, start=20, memory=2**30)
NOT_DUMPABLE = (4, 0)  # prctl(2): PR_SET_DUMPABLE; other processes of this user cannot open what this one holds
DUMPABLE = (4, 1)
Say = Callable[[dict[str, Any]], None]


def prepare(folder: Path, place: Path, kit: Path) -> tuple[Path, dict[str, str]]:
    """Copy the learner's notebooks and the grader's kit apart; export. Returns (work folder, failures)."""
    place.chmod(0o755)
    work, failures = place / "work", copy_notebooks(folder, place / "work")
    (work / "finetune_lib").mkdir(parents=True)
    for name in (*FILES, "finetune_lib/__init__.py"):  # the grader's own: kept by hand, not exported
        if (kit.parent / name).exists():
            shutil.copy(kit.parent / name, work / name)
    hidden = shutil.ignore_patterns("__pycache__", *AUTHORS_FILES)
    shutil.copytree(KIT, place / "kit/milestones", ignore=hidden)
    if kit != KIT:
        shutil.copytree(kit, place / "kit/milestones", ignore=hidden, dirs_exist_ok=True)
    said, ended = ask({"do": "export", "work": str(work)}, place, kit, work, writable=[work])
    found = {name: what for message in said for name, what in message.get("failures", {}).items()}
    if not any("failures" in message for message in said):
        found = {path.relative_to(work / "nbs").as_posix(): ended for path in notebook_paths(work)}
    return work, failures | found


def changed_checks(folder: Path, kit: Path) -> list[str]:
    """Which of the checks that a learner was given are other now, or gone: of no effect, since the kit's are run."""
    if not (folder / "milestones").exists() and not (folder / ".work").exists():
        return []  # notebooks alone were handed in
    names = [path.relative_to(kit) for path in check_files(kit)]
    same = {name for name in names if (folder / "milestones" / name).is_file()
            and (folder / "milestones" / name).read_bytes() == (kit / name).read_bytes()}
    return [f"milestones/{name} was changed or deleted; the grader's own was run" for name in names if name not in same]


def copy_notebooks(folder: Path, work: Path) -> dict[str, str]:
    """Copy the notebooks that are plain files of a size that can be; returns what is wrong with the others.

    A link could show the grader's own solution, and a device or a pipe would never end.
    """
    failures: dict[str, str] = {}
    for path in notebook_paths(folder)[:NOTEBOOKS]:
        name, size = path.relative_to(folder / "nbs").as_posix(), path.lstat().st_size
        plain, target = is_plain(path, folder), work / "nbs" / name
        if plain and size <= NOTEBOOK:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        else:
            failures[name] = (f"a notebook has at most {NOTEBOOK >> 20} MiB, this one has {size >> 20}" if plain else
                              "a notebook must be a file of its own, this one leads elsewhere or is no file")
    return failures


def is_plain(path: Path, folder: Path) -> bool:
    """Whether a notebook is a file, and its own: no link on the way to it, no device, no pipe."""
    return path.is_file() and path.resolve() == folder.resolve() / path.relative_to(folder)


def run_apart(work: Path, place: Path, kit: Path, tasks: list[Task], checks: list[Check], seed: int,
              limits: Limits) -> tuple[list[CheckResult], list[str]]:
    """Run the checks in a fresh process; returns the results and the limits that could not be set."""
    here = place / "kit/milestones"
    moved = [replace(check, file=str(here / Path(check.file).relative_to(kit))) for check in checks]
    request = {"do": "check", "work": str(work), "kit": str(here), "seed": seed, "limits": asdict(limits),
               "tasks": [asdict(replace(task, source="")) for task in tasks],
               "checks": [asdict(check) for check in moved]}
    said, ended = ask(request, place, kit, work, limits=limits)
    results = [CheckResult.from_dict(result) for message in said for result in message.get("results", [])]
    found = {result.check.name for result in results}
    results += [CheckResult(check, ERROR, what=ended) for check in moved if check.name not in found]
    missing = next((message["missing"] for message in said if "missing" in message), ["any: the run did not begin"])
    return settle(results), missing


def ask(request: dict[str, Any], place: Path, kit: Path, work: Path, writable: list[Path] | None = None,
        limits: Limits = EXPORT, module: str = "milestones.apart") -> tuple[list[dict[str, Any]], str]:
    """Have a request done in the box; returns what was said, and how it ended where that was too early."""
    data = Path(os.environ.get("FINETUNE_DATA") or kit.parent / "data").resolve()
    scratch, hidden = place / "scratch", sorted({kit.parent.resolve(), KIT.parent.resolve()})
    scratch.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "USER": "learner",
        "PYTHONPATH": str(place / "kit"),
        "PYTHONSAFEPATH": "1",
        "FINETUNE_DATA": str(data),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    request |= {"scratch": str(scratch), "hidden": [str(folder) for folder in hidden], "limits": asdict(limits)}
    try:
        done = run_boxed([sys.executable, "-m", module], scratch, [place / "kit", work, data],
                         writable or [], hidden, environment, json.dumps(request), limits.space, WHOLE)
        output, last = done.stdout, done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    except subprocess.TimeoutExpired as error:
        output, last = (error.stdout or b"").decode(), [f"stopped after {WHOLE:g} s"]
    return [json.loads(line) for line in output.splitlines()], f"{NO_RESULTS}: {last[0]}"


def export_notebooks(request: dict[str, Any], say: Say, alone: bool) -> None:
    """Export each notebook in a child of its own, then write the index of what all of them define."""
    import nbdev.doclinks  # here, so that no child has to

    work, failures = Path(request["work"]), {}
    left = [path.relative_to(work / "nbs").as_posix() for path in notebook_paths(work)]
    while left:  # a child does all that are left; where it ends early, the one after that goes on
        messages, ended = in_child(functools.partial(export_all, work=work, names=left), EXPORT, alone)
        done = {message["exported"]: message["broken"] for message in messages if "exported" in message}
        if len(done) < len(left):
            done[left[len(done)]] = ended or "it was left out"
        failures |= {name: broken for name, broken in done.items() if broken}
        left = left[len(done):]
    for part in {path.parent for path in (work / "finetune_lib").rglob("*.py")}:
        (part / "__init__.py").touch()
    os.chdir(work)
    _, ended = in_child(lambda send: nbdev.doclinks._build_modidx(), EXPORT, alone)
    say({"failures": failures | ({"the index of all": ended} if ended else {})})


def export_all(send: Say, work: Path, names: list[str]) -> None:
    """Export these notebooks, and say of each what is wrong with it, if anything."""
    for name in names:
        try:
            export_small(work, name)
            send({"exported": name, "broken": ""})
        except Exception as error:  # whatever a learner's notebook holds is told, and the others go on
            send({"exported": name, "broken": f"{type(error).__name__}: {error}"[:TEXT]})


def export_small(work: Path, name: str) -> None:
    """Export one notebook, and refuse a module that would take its readers minutes."""
    export_one(work, name)
    for path in (work / "finetune_lib").rglob("*.py"):
        if (size := path.stat().st_size) > MODULE:
            path.unlink()
            raise ValueError(f"a module has at most {MODULE >> 20} MiB, {path.name} has {size / 2**20:.1f}")


def run_checks_apart(request: dict[str, Any], say: Say, alone: bool) -> None:
    """Run the checks, file by file, so that a part that hangs on import takes no other with it."""
    tasks = [Task(**{**task, "targets": tuple(task["targets"])}) for task in request["tasks"]]
    checks = [Check(**check) for check in request["checks"]]
    import_checks(sorted({Path(check.file) for check in checks}))
    warm_up(NEEDED)
    hidden = tuple(Path(folder) / name for folder in request["hidden"] for name in CHECKOUT)
    scratch = Path(request["scratch"])
    guard = Guard((scratch,), scratch, hidden, alone)
    for file in dict.fromkeys(check.file for check in checks):
        own = [check for check in checks if check.file == file]
        found = run_in_folder(Path(request["work"]), tasks, own, Path(request["kit"]), request["seed"],
                              Limits(**request["limits"]), guard)
        say({"results": [result.to_dict() for result in found]})


def serve(works: dict[str, Callable[[dict[str, Any], Say, bool], None]]) -> None:
    """In the box: take the request, set limits, do what it asks for."""
    request, answers = json.load(sys.stdin), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the only signal that Python takes from others when it is process 1
    limits = Limits(**request["limits"])
    hidden, closed = [Path(folder) for folder in request["hidden"]], [Path(request["work"]).parent]
    say({"missing": limit_here(limits.processes, limits.file, hidden, closed)})
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(*NOT_DUMPABLE)
    works[request["do"]](request, say, os.getpid() == 1)


if __name__ == "__main__":
    serve({"export": export_notebooks, "check": run_checks_apart})
