"""The grader is measured: does it pass what is right, refuse what is wrong, and say why? `course audit` prints it."""

import compileall
import functools
import importlib
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

from milestones.beside import points_of_checks
from milestones.checking import (
    FAILED,
    KIT,
    PASSED,
    UNATTEMPTED,
    Check,
    CheckResult,
    Engine,
    collect,
    run_checks,
)
from milestones.exporting import blank_all, change_task, copy_course, export
from milestones.leaks import AUTHORS, leaked_lines
from milestones.listed import Alternative, Mistake, alternatives, mistakes
from milestones.opening import first_tasks, open_notebook
from milestones.running import Limits, in_child, library_modules, run_in_folder, use_library, warm_up
from milestones.sharing import in_workers
from milestones.tasks import Task, blank, find_tasks, task_order
from milestones.tolerance import CHANGES, spoil

SEEDS = (1, 2, 3, 4, 5)
RIGHT_REASONS = 0.8  # share of the mistakes for which the likely reason must be the right one
LEAST_MISTAKES, LEAST_ALTERNATIVES = 90, 20  # in the whole course
ALTERNATIVES_EACH = 4  # in each milestone
LIMITS = Limits(seconds=30, start=90)
WARM = ("peft", "matplotlib.pyplot")  # with torch and transformers: what most children need, and what takes seconds
WORKERS = min(2, os.cpu_count() or 1)
MEASURES = ("solution", "skeleton", "opening", "blanked", "mutants", "hints", "reasons", "alternatives", "tolerances")
TAKEN = ("solution", "skeleton", "beginnings", "blanked", "mutants", "alternatives", "tolerances")
Unit = Callable[[], None]  # what one worker does at a time


@dataclass
class Row:
    """One task's line in the matrix: counts of (right, all) by measure."""

    task: Task
    points: float = 0
    counts: dict[str, list[int]] = field(default_factory=lambda: {name: [0, 0] for name in MEASURES})

    def add(self, measure: str, right: bool) -> None:
        self.counts[measure][0] += right
        self.counts[measure][1] += 1


class Audit:
    """The seven measures of one milestone, or of all; `gaps` says what is missing, in words."""

    def __init__(
        self,
        folder: Path,
        kit: Path = KIT,
        milestone: int | None = None,
        say: Callable[[str], None] = lambda text: None,
    ):
        self.source, self.kit, self.milestone, self.say = folder, kit, milestone, say
        self.gaps: list[str] = []
        self.leaked = 0
        self.numberless: dict[str, list[str]] = {}  # checks that no number can fail, with the changes they let pass

    def run(self, measures: Iterable[str] = TAKEN) -> "Audit":
        """Take the measures, all on one copy of the course, so that an edit in between changes nothing."""
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="course-audit-") as name, audit_environment(self.source):
            self.folder = copy_course(self.source, Path(name) / "course")
            export(self.folder)
            self.tasks = find_tasks(self.folder)
            self.checks = collect(self.kit, self.milestone)
            self.rows = {task.id: Row(task) for task in self.tasks if self.milestone in (None, task.milestone)}
            self.look_at_checks()
            self.look_at_lists()
            self.warm()
            units = [unit for measure in measures for unit in getattr(self, measure)()]
            self.say(f"{len(units)} runs to take, {time.monotonic() - start:.0f} s to get ready")
            self.share_out(units)
        self.look_at_reasons()
        self.say(f"{time.monotonic() - start:.0f} s in all")
        return self

    def share_out(self, units: list[Unit]) -> None:
        """Take the units in two processes, and add up what they found."""
        gaps: list[tuple[int, str]] = []
        for counts, found, leaked, numberless in in_workers(WORKERS, functools.partial(self.work, units)):
            gaps += found
            self.leaked += leaked
            for name, changes in numberless.items():
                self.numberless[name] = sorted({*self.numberless.get(name, []), *changes}, key=list(CHANGES).index)
            for task, measured in counts.items():
                for measure, (right, every) in measured.items():
                    self.rows[task].counts[measure][0] += right
                    self.rows[task].counts[measure][1] += every
        self.gaps += [gap for _, gap in sorted(gaps)]

    def work(self, units: list[Unit], number: int) -> tuple[dict, list[tuple[int, str]], int, dict]:
        """One of the processes: its share of the units on a copy of its own; the counts and gaps that they gave."""
        self.folder = copy_course(self.folder, self.folder.parent / f"worker-{number}" / "course")
        compile_library(self.folder)
        gaps = []
        for place in range(number, len(units), WORKERS):
            self.gaps = []
            units[place]()
            gaps += [(place, gap) for gap in self.gaps]
        return {task: row.counts for task, row in self.rows.items()}, gaps, self.leaked, self.numberless

    @property
    def milestones(self) -> list[int]:
        return sorted({row.task.milestone for row in self.rows.values()})

    def look_at_checks(self) -> None:
        """Every check belongs to a task, every task has a check, names are unique, points make what they must."""
        for check in self.checks:
            if check.task in self.rows:
                self.rows[check.task].points += check.points
            else:
                self.gaps.append(f"{check.name} is for task {check.task}, which no notebook has")
        for row in self.rows.values():
            if not any(check.task == row.task.id for check in self.checks):
                self.gaps.append(f"task {row.task.id} ({row.task.title}) has no check")
        for milestone in self.milestones:
            total = sum(check.points for check in self.checks if task_order(check.task)[0] == milestone)
            if total != (wanted := points_of_checks(milestone)):
                self.gaps.append(
                    f"the points of milestone {milestone}'s checks must make {wanted}, they make {total:g}"
                )
        names = Counter(check.name for check in self.checks)
        self.gaps += [f"{count} checks are called {name}; a check's name must be its own"
                      for name, count in names.items() if count > 1]

    def look_at_lists(self) -> None:
        """There are enough mistakes and alternatives, and each mistake says which words must show."""
        listed = mistakes(self.kit, self.milestone)
        self.gaps += [f"mistake {mistake.name!r} must say which words show" for mistake in listed if not mistake.hint]
        for milestone in self.milestones:
            self.at_least(ALTERNATIVES_EACH, len(alternatives(self.kit, milestone)), "alternatives",
                          f"milestone {milestone}")
        if self.milestone is None:
            self.at_least(LEAST_MISTAKES, len(listed), "mistakes", "the course")
            self.at_least(LEAST_ALTERNATIVES, len(alternatives(self.kit)), "alternatives", "the course")

    def at_least(self, wanted: int, found: int, things: str, where: str) -> None:
        if found < wanted:
            self.gaps.append(f"{where} must have at least {wanted} {things}, it has {found}")

    def warm(self) -> None:
        """Import here what the solution imports from third parties, so that a child takes milliseconds."""
        warm_up(WARM)
        messages, ended = in_child(self.what_is_imported, LIMITS)
        if ended:
            self.gaps.append(f"the solution did not run through: {ended}")
        warm_up(messages[0].get("modules", []) if messages else [])

    def what_is_imported(self, send: Callable[[dict[str, Any]], None]) -> None:
        before = set(sys.modules)
        use_library(self.folder)
        run_checks(files_of(self.checks), self.engine(self.checks, 0), capture="fd")
        names = [name for name in sorted(set(sys.modules) - before) if third_party(name)]
        send({"modules": names})

    def engine(self, checks: list[Check], seed: int, **options: Any) -> Engine:
        names = {check.name for check in checks}
        return Engine(self.tasks, lambda check: check.name in names, seed=seed, **options)

    def results(self, checks: list[Check], seed: int = 0, folder: Path | None = None) -> list[CheckResult]:
        return run_in_folder(folder or self.folder, self.tasks, checks, self.kit, seed, LIMITS)

    @contextmanager
    def changed(self, task: Task, source: str) -> Iterator[None]:
        """The course with another text in one task."""
        change_task(self.folder, task, source)
        try:
            yield
        finally:
            change_task(self.folder, task, task.source)

    def blanked_from(self, name: str, milestone: int = 0) -> Path:
        """A copy of the course as it is where a milestone begins: what comes before is solved, the rest is blank."""
        folder = copy_course(self.folder, self.folder.parent / name)
        blank_all(folder, [task for task in self.tasks if task.milestone >= milestone])
        export(folder)
        return folder

    def solution(self) -> list[Unit]:
        return [functools.partial(self.solve, seed) for seed in SEEDS]

    def solve(self, seed: int) -> None:
        """The solution passes every check: as the checks' points make the whole, it gets them all."""
        for result in self.results(self.checks, seed):
            self.count(result.check.task, "solution", result.state == PASSED,
                       f"the solution fails {result.check.name} with seed {seed}: {said(result)}")

    def skeleton(self) -> list[Unit]:
        return [self.strip]

    def strip(self) -> None:
        """The skeleton is exported and imported, all its checks are unattempted, and it shows no solution."""
        folder = self.blanked_from("skeleton")
        messages, ended = in_child(functools.partial(import_all, folder=folder), LIMITS)
        for message in messages or [{"failed": ended}]:
            if message.get("failed"):
                self.gaps.append(f"the skeleton cannot be imported: {message['failed']}")
        for result in self.results(self.checks, folder=folder):
            self.count(result.check.task, "skeleton", result.state == UNATTEMPTED,
                       f"on the skeleton {result.check.name} is {result.state}: {said(result)}")
        shutil.copytree(self.kit, folder / "milestones", ignore=shutil.ignore_patterns("__pycache__", *AUTHORS))
        leaked = leaked_lines(self.source, folder, [row.task for row in self.rows.values()])
        self.leaked = len(leaked)
        self.gaps += [
            f"a line of task {task} can be read in the skeleton's {place}: {line}" for task, line, place in leaked
        ]

    def beginnings(self) -> list[Unit]:
        return [functools.partial(self.begin, milestone) for milestone in self.milestones]

    def begin(self, milestone: int) -> None:
        """Where a milestone begins, its notebooks run up to their first task, and what was solved before is right."""
        folder = self.blanked_from(f"begin-{milestone}", milestone)
        for task in first_tasks(self.tasks, milestone):
            messages, ended = in_child(functools.partial(open_notebook, folder=folder, first=task), LIMITS)
            trouble = ended or messages[-1].get("failure") or messages[-1]["stopped"]
            self.count(task.id, "opening", not trouble,
                       f"nbs/{task.notebook} must run up to task {task.id}, it stops: {trouble}")
        earlier = [check for check in collect(self.kit) if task_order(check.task)[0] < milestone]
        self.gaps += [
            f"the tasks of milestone {milestone} blanked fail {result.check.name} of an earlier one: {said(result)}"
            for result in self.results(earlier, folder=folder) if result.state != PASSED
        ]

    def blanked(self) -> list[Unit]:
        return [functools.partial(self.blank_one, row) for row in self.rows.values()]

    def blank_one(self, row: Row) -> None:
        """A task alone taken away fails a check of its own, and none of an earlier task."""
        until = [check for check in self.checks if task_order(check.task)[0] == row.task.milestone
                 and task_order(check.task) <= row.task.order]
        with self.changed(row.task, blank(row.task.source)):
            results = self.results(until)
        early = [result for result in results if result.check.task != row.task.id and result.state != PASSED]
        own = any(result.check.task == row.task.id and result.state == UNATTEMPTED for result in results)
        words = f"fails {early[0].check.name} of an earlier task" if early else "fails none of its checks"
        self.count(row.task.id, "blanked", own and not early, f"task {row.task.id} blanked {words}")

    def mutants(self) -> list[Unit]:
        return [functools.partial(self.mutate, mistake) for mistake in mistakes(self.kit, self.milestone)]

    def mutate(self, mistake: Mistake) -> None:
        """A known mistake fails the check that its author names, and the words that were promised show."""
        checks = [check for check in self.checks if (check.task, check.name) == (mistake.task, mistake.check)]
        if not checks:
            self.gaps.append(f"mistake {mistake.name!r}: task {mistake.task} has no check {mistake.check}")
            return
        source = self.source_with(mistake)
        if source is None:
            return
        with self.changed(self.rows[mistake.task].task, source):
            result = self.results(checks)[0]
        killed = result.state == FAILED
        shown = f"{result.what} {result.reason} {result.check.hint}"
        self.count(mistake.task, "mutants", killed, f"mistake {mistake.name!r} survives {mistake.check}")
        self.count(mistake.task, "hints", killed and mistake.hint in shown,
                   f"mistake {mistake.name!r} must show {mistake.hint!r}, said was: {said(result)}")
        self.rows[mistake.task].add("reasons", killed and bool(result.reason) and mistake.hint in result.reason)

    def look_at_reasons(self) -> None:
        """The likely reason is the right one for most mistakes."""
        right, every = self.sum("reasons")
        if right < RIGHT_REASONS * every:
            self.gaps.append(
                f"the right reason must show for {RIGHT_REASONS:.0%} of the mistakes, it shows for {right} of {every}"
            )

    def alternatives(self) -> list[Unit]:
        return [functools.partial(self.write_otherwise, other) for other in alternatives(self.kit, self.milestone)]

    def write_otherwise(self, other: Alternative) -> None:
        """What is right in another way passes all checks of its milestone."""
        source = self.source_with(other)
        if source is None:
            return
        task = self.rows[other.task].task
        checks = [check for check in self.checks if task_order(check.task)[0] == task.milestone]
        with self.changed(task, source):
            wrong = [result for result in self.results(checks) if result.state != PASSED]
        self.count(other.task, "alternatives", not wrong, f"alternative {other.name!r} fails "
                   + "; ".join(f"{result.check.name}: {said(result)}" for result in wrong[:2]))

    def source_with(self, entry: Mistake | Alternative) -> str | None:
        """A task's cell with a listed change; None, and a gap, where it does not fit."""
        if entry.task not in self.rows:
            self.gaps.append(f"{entry.name!r} is for task {entry.task}, which no notebook has")
            return None
        try:
            return entry.applied(self.rows[entry.task].task)
        except ValueError as error:
            self.gaps.append(str(error))
            return None

    def tolerances(self) -> list[Unit]:
        return [functools.partial(self.spoil_one, row, change) for row in self.rows.values() for change in CHANGES]

    def spoil_one(self, row: Row, change: str) -> None:
        """Each check of a task that returns numbers refuses zeros, 5 % more, the other sign, or rows for columns."""
        checks = {check.name: check for check in self.checks if check.task == row.task.id}
        work = functools.partial(self.spoilt, task=row.task, change=change, checks=list(checks.values()))
        messages = [message for message in in_child(work, LIMITS)[0] if message.get("changed")]
        refused = {message["check"]: message["state"] != PASSED for message in messages}
        for name, right in refused.items():
            if right or checks[name].values:
                self.count(row.task.id, "tolerances", right,
                           f"{name} passes when what task {row.task.id} returns is {change}")
            else:
                self.numberless.setdefault(name, []).append(change)
        if refused and not any(refused.values()):
            self.gaps.append(f"no check of task {row.task.id} notices that what it returns is {change}")

    def spoilt(self, send: Callable[[dict[str, Any]], None], task: Task, change: str, checks: list[Check]) -> None:
        use_library(self.folder)
        changes, last = spoil(task, change), [0]

        def listener(result: CheckResult) -> None:
            send({"check": result.check.name, "state": result.state, "changed": changes() > last[0]})
            last[0] = changes()
        run_checks(files_of(checks), self.engine(checks, 0, listener=listener), capture="fd")

    def count(self, task: str, measure: str, right: bool, gap: str) -> None:
        if task in self.rows:
            self.rows[task].add(measure, right)
        if not right:
            self.gaps.append(gap)

    def sum(self, measure: str) -> tuple[int, int]:
        pairs = [row.counts[measure] for row in self.rows.values()]
        return sum(right for right, _ in pairs), sum(every for _, every in pairs)

    def to_dict(self) -> dict[str, dict[str, int]]:
        """The sums of `course audit --json`."""
        killed, mutants = self.sum("mutants")
        passed, every = self.sum("alternatives")
        unattempted, checks = self.sum("skeleton")
        rejected, tolerances = self.sum("tolerances")
        right, runs = self.sum("solution")
        return {
            "mutants": {"total": mutants, "killed": killed, "killed_with_hint": self.sum("hints")[0]},
            "alternatives": {"total": every, "passed": passed},
            "skeleton": {"checks": checks, "unattempted": unattempted, "leaked_lines": self.leaked},
            "tolerances": {"total": tolerances, "rejected": rejected},
            "solution": {"checks": runs, "passed": right},
        }


def compile_library(folder: Path) -> None:
    """Bytecode for the library, so that no child has to; of a module that is changed the hash tells."""
    compileall.compile_dir(folder / "finetune_lib", quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)


def files_of(checks: list[Check]) -> list[Path]:
    return sorted({Path(check.file) for check in checks})


def import_all(send: Callable[[dict[str, Any]], None], folder: Path) -> None:
    """Import every module of a folder's library, and say which cannot be."""
    use_library(folder)
    for name in library_modules(folder):
        try:
            importlib.import_module(name)
            send({"imported": name})
        except Exception as error:
            send({"failed": f"{name}: {type(error).__name__}: {error}"})


def said(result: CheckResult) -> str:
    return "; ".join(text for text in (result.what, result.expected and f"expected {result.expected}",
                                       result.got and f"got {result.got}", result.reason) if text) or result.state


def third_party(name: str) -> bool:
    return name.partition(".")[0] not in ("finetune_lib", "milestones", "checks") and not name.startswith("_")


@contextmanager
def audit_environment(folder: Path) -> Iterator[None]:
    """Children find the course's data though they run on a copy, and never ask the network."""
    wanted = {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    if (folder / "data").is_dir():
        wanted["FINETUNE_DATA"] = str((folder / "data").resolve())
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
