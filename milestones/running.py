"""Run checks on a folder's library in forked children of one warm process, under limits on time and memory.

Where a child dies or hangs, that check has failed, and the rest go on in a new one. A sealed child is also watched:
what judges must stay as it is (seal.py), checks that must fail do fail (canary.py), no act reaches out (acts.py), and
what it sends comes in turn (account.py).

What this cannot exclude: checks and graded code share a process, because a check calls the learner's objects and reads
their tensors. Code written against this kit can reach, through Python's own introspection or through C, the function
that sends results, or the tables of the seal, change them and change them back. It can also take the right answer out
of the frames of the check that calls it. Secret, seal, canaries, audit hook and the order of messages make that long,
deliberate and plain to see in the notebook; they do not make it impossible. Where a grade matters, read the notebooks.
"""
import errno
import functools
import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from milestones.account import TAMPERED, understood
from milestones.acts import lingering, watch
from milestones.checking import (
    FAILED,
    KIT,
    Check,
    CheckResult,
    Engine,
    check_files,
    collect,
    part_of,
    run_checks,
    settle,
)
from milestones.children import LIMITS, TOO_LONG, Limits, Send, in_child, warm_up
from milestones.seal import Seal
from milestones.tasks import Task
from milestones.wrong import WRONG, unsound

__all__ = ["LIMITS", "Guard", "Limits", "all_checks", "choose", "in_child", "library_modules", "run_in_folder",
           "use_library", "warm_up"]
SECOND_CHANCE = 0.25  # of the time for a check, for each that follows one which ran out of it
CANARIES = 1 + len(WRONG)  # checks in canary.py


@dataclass(frozen=True)
class Guard:
    """How a sealed run is watched."""

    writable: tuple[Path, ...] = ()  # where graded code may write
    scratch: Path | None = None  # a folder made for this run alone, emptied before each child
    hidden: tuple[Path, ...] = ()  # folders of the checkout, in which it has no business
    alone: bool = False  # whether this process is the first of a namespace: then nothing outlives a child


def run_in_folder(
    folder: Path,  # holds the finetune_lib that is checked
    tasks: list[Task],
    checks: list[Check],  # which to run
    kit: Path = KIT,  # where the checks come from
    seed: int | None = None,
    limits: Limits = LIMITS,
    guard: Guard | None = None,  # how the child is watched; None where the code is trusted, as in the audit
) -> list[CheckResult]:
    """Results of all `checks`, in their order, whatever the code under them does."""
    left, results, allowed = list(checks), [], limits
    while left:
        work = functools.partial(child_run, folder=folder, tasks=tasks, checks=left, seed=seed, guard=guard)
        if guard and guard.scratch:
            empty(guard.scratch)
        messages, ended = in_child(work, allowed, alone=guard is not None and guard.alone)
        found = understood(messages, left, ended)
        results += found
        names = {result.check.name for result in found}
        left = [check for check in left if check.name not in names]
        if ended.startswith(TOO_LONG):  # likely again in each check that is left; a right one needs a fraction of that
            allowed = replace(limits, seconds=limits.seconds * SECOND_CHANCE)
    order = {check.name: place for place, check in enumerate(checks)}
    return settle(sorted(results, key=lambda result: order[result.check.name]))


def child_run(send: Send, folder: Path, tasks: list[Task], checks: list[Check], seed: int | None,
              guard: Guard | None) -> None:
    """In the child: take the folder's library, run the checks, send each result."""
    names = {check.name for check in checks}
    options = {"seed": seed, "listener": lambda result: send({"result": result.to_dict()}),
               "begin": lambda check: send({"begin": check.name})}
    files = sorted({Path(check.file) for check in checks})
    if guard is None:
        use_library(folder)
        run_checks(files, Engine(tasks, lambda check: check.name in names, **options), capture="fd")
        return
    judge = Judge(send, folder)
    watch(judge.tell, folder, guard.writable, guard.hidden)
    use_library(folder)
    import_parts(folder, {part_of(file.parent) for file in files}, send)
    judge.look()
    judge.run_canaries()
    run_checks(files, SealedEngine(tasks, lambda check: check.name in names, judge=judge, **options), capture="fd")
    judge.run_canaries()


class Judge:
    """Looks whether the judge is still what it was; says so and leaves where it is not."""

    def __init__(self, send: Send, folder: Path, leave: Callable[[int], None] = os._exit):
        self.send, self.folder, self.leave, self.seal = send, folder, leave, Seal()

    def tell(self, act: str) -> None:
        self.send({"act": act})

    def look(self) -> None:
        if changed := self.seal.broken():
            self.stop(f"{changed} is not what it was")
        if passed := unsound():
            self.stop(f"a check that must fail did not ({passed})")

    def stop(self, what: str) -> None:
        self.send({"tampered": TAMPERED + what})
        self.leave(0)

    def run_canaries(self) -> None:
        """Run checks that must fail, through pytest."""
        results = run_checks([KIT / "canary.py"], Engine(seed=0), capture="fd")
        wrong = [result for result in results if result.state != FAILED or result.what.startswith("the code stops")]
        if wrong or len(results) != CANARIES:
            self.stop("a check that must fail did not ("
                      + (", ".join(result.check.claim for result in wrong) or "it was not run") + ")")
        if changed := self.seal.broken():
            self.stop(f"{changed} is not what it was")


class SealedEngine(Engine):
    """The engine that looks at the judge before it believes what a check found."""

    def __init__(self, *arguments: Any, judge: Judge, **options: Any):
        super().__init__(*arguments, **options)
        self.judge = judge

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        super().pytest_collection_modifyitems(items)
        seal = self.judge.seal
        for module in {item.module for item in items}:
            seal.note(module.__name__, vars(module))
        for item in items:
            seal.note(item.name, {"function": item.function})
        seal.note("the engine", vars(self), dir(Engine))

    def record(self, item: pytest.Item) -> None:
        self.judge.look()
        left_running = lingering(self.judge.folder)
        if left_running:
            self.judge.tell("the code left a thread running, which no task needs")
        super().record(item)
        if left_running or is_full(item.failure):  # the other checks are run in a process, and on a disk, without it
            self.judge.leave(0)


def is_full(failure: pytest.ExceptionInfo | None) -> bool:
    return failure is not None and getattr(failure.value, "errno", None) == errno.ENOSPC


def empty(scratch: Path) -> None:
    """Remove what earlier children left there."""
    for path in scratch.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def library_modules(folder: Path) -> list[str]:
    """Full names of all modules of the folder's library."""
    files = sorted((folder / "finetune_lib").rglob("*.py"))
    return [".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__") for path in files]


def import_parts(folder: Path, parts: set[str], send: Send) -> None:
    """Import all modules of these parts. One that cannot be imported is said: the check that needs it fails."""
    for name in library_modules(folder):
        try:
            if name.split(".")[1:2] and name.split(".")[1] in parts:
                importlib.import_module(name)
        except BaseException as error:  # also SystemExit: whatever the learner's module does, the checks are run
            send({"import": f"{name} stops on import with {type(error).__name__}: {error}"})


def use_library(folder: Path) -> None:
    """Make `import finetune_lib` mean the one in `folder`, in this process."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "finetune_lib"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()


def choose(checks: Iterable[Check], choice: str = "") -> list[Check]:
    """Checks of a milestone ("2"), of a task ("2.3"), or all."""
    return [check for check in checks if not choice or check.task == choice or check.task.split(".")[0] == choice]


def all_checks(kit: Path = KIT, choice: str = "") -> list[Check]:
    milestone = int(choice.split(".")[0]) if choice else None
    return choose(collect(kit, milestone), choice) if check_files(kit, milestone) else []
