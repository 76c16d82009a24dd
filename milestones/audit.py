"""The grader is measured: does it pass what is right, refuse what is wrong, and say why? `course audit` prints it."""

import functools
import importlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milestones.checking import FAILED, KIT, PASSED, UNATTEMPTED, Check, CheckResult, Engine, run_checks
from milestones.exporting import blank_all, change_task, copy_course, export
from milestones.leaks import leaked_lines
from milestones.listed import alternatives, mistakes
from milestones.running import Limits, all_checks, in_child, library_modules, run_in_folder, use_library, warm_up
from milestones.tasks import Task, blank, find_tasks, task_order
from milestones.tolerance import CHANGES, spoil

SEEDS = (1, 2, 3, 4, 5)
FULL = 100  # points of a milestone
RIGHT_REASONS = 0.8  # share of the mistakes for which the likely reason must be the right one
LIMITS = Limits(seconds=30, start=90)


@dataclass
class Row:
    """One task's line in the matrix: counts of (right, all) by measure."""

    task: Task
    points: float = 0
    counts: dict[str, list[int]] = field(default_factory=lambda: {name: [0, 0] for name in MEASURES})

    def add(self, measure: str, right: bool) -> None:
        self.counts[measure][0] += right
        self.counts[measure][1] += 1


MEASURES = ("solution", "skeleton", "blanked", "mutants", "reasons", "alternatives", "tolerances")


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

    def run(
        self, measures: Iterable[str] = ("solution", "blanked", "mutants", "alternatives", "tolerances", "skeleton")
    ) -> "Audit":
        """Take the measures, all on one copy of the course, so that an edit in between changes nothing."""
        with tempfile.TemporaryDirectory(prefix="course-audit-") as name, audit_environment(self.source):
            self.folder = copy_course(self.source, Path(name) / "course")
            export(self.folder)
            self.tasks = find_tasks(self.folder)
            self.checks = all_checks(self.kit, str(self.milestone or ""))
            self.rows = {task.id: Row(task) for task in self.tasks if self.milestone in (None, task.milestone)}
            self.look_at_lists()
            self.warm()
            for measure in measures:
                start = time.monotonic()
                getattr(self, measure)()
                self.say(f"{measure}: {time.monotonic() - start:.0f} s")
        return self

    def look_at_lists(self) -> None:
        """Every check belongs to a task, every task has a check, the points of a milestone make 100."""
        for check in self.checks:
            if check.task in self.rows:
                self.rows[check.task].points += check.points
            else:
                self.gaps.append(f"{check.name} is for task {check.task}, which no notebook has")
        for row in self.rows.values():
            if not any(check.task == row.task.id for check in self.checks):
                self.gaps.append(f"task {row.task.id} ({row.task.title}) has no check")
        for milestone in {row.task.milestone for row in self.rows.values()}:
            total = sum(check.points for check in self.checks if task_order(check.task)[0] == milestone)
            if total != FULL:
                self.gaps.append(f"the points of milestone {milestone} must make {FULL}, they make {total:g}")
        for name, count in Counter(check.name for check in self.checks).items():
            if count > 1:
                self.gaps.append(f"{count} checks are called {name}; a check's name must be its own")

    def warm(self) -> None:
        """Import here what the solution imports from third parties, so that a child takes milliseconds."""
        warm_up([])
        messages, ended = in_child(self.what_is_imported, LIMITS)
        if ended:
            self.gaps.append(f"the solution did not run through: {ended}")
        warm_up(messages[0].get("modules", []) if messages else [])

    def what_is_imported(self, send: Callable[[dict[str, Any]], None]) -> None:
        before = set(sys.modules)
        use_library(self.folder)
        run_checks(self.files(), self.engine(self.checks, 0), capture="fd")
        names = [name for name in sorted(set(sys.modules) - before) if third_party(name)]
        send({"modules": names})

    def files(self) -> list[Path]:
        return sorted({Path(check.file) for check in self.checks})

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

    def solution(self) -> None:
        for seed in SEEDS:
            for result in self.results(self.checks, seed):
                self.count(result.check.task, "solution", result.state == PASSED,
                           f"the solution fails {result.check.name} with seed {seed}: {said(result)}")

    def blanked(self) -> None:
        """A task alone taken away fails a check of its own, and none of an earlier task."""
        for row in self.rows.values():
            with self.changed(row.task, blank(row.task.source)):
                results = self.results(self.checks)
            own = [result for result in results if result.check.task == row.task.id]
            early = [
                result
                for result in results
                if task_order(result.check.task) < row.task.order and result.state != PASSED
            ]
            words = f"fails {early[0].check.name} of an earlier task" if early else "fails none of its checks"
            self.count(row.task.id, "blanked", not early and any(result.state == UNATTEMPTED for result in own),
                       f"task {row.task.id} blanked {words}")

    def mutants(self) -> None:
        for mistake in mistakes(self.kit, self.milestone):
            row, checks = self.rows.get(mistake.task), [check for check in self.checks if check.name == mistake.check]
            if row is None or not checks:
                self.gaps.append(
                    f"mistake {mistake.name!r}: there is no task {mistake.task} or no check {mistake.check}"
                )
                continue
            try:
                source = mistake.applied(row.task)
            except ValueError as error:
                self.gaps.append(str(error))
                continue
            with self.changed(row.task, source):
                result = self.results(checks)[0]
            killed = result.state == FAILED
            self.count(mistake.task, "mutants", killed, f"mistake {mistake.name!r} survives {mistake.check}")
            self.rows[mistake.task].add("reasons", killed and mistake.hint in f"{result.reason} {result.what}")
            if killed and mistake.hint not in f"{result.reason} {result.what}":
                self.say(f"  mistake {mistake.name!r} is caught, but said was: {said(result)}")
        right, every = self.sum("reasons")
        if right < RIGHT_REASONS * every:
            self.gaps.append(
                f"the right reason must show for {RIGHT_REASONS:.0%} of the mistakes, it shows for {right} of {every}"
            )

    def alternatives(self) -> None:
        for other in alternatives(self.kit, self.milestone):
            row = self.rows.get(other.task)
            if row is None:
                self.gaps.append(f"alternative {other.name!r}: there is no task {other.task}")
                continue
            try:
                source = other.applied(row.task)
            except ValueError as error:
                self.gaps.append(str(error))
                continue
            with self.changed(row.task, source):
                wrong = [result for result in self.results(self.checks) if result.state != PASSED]
            self.count(
                other.task,
                "alternatives",
                not wrong,
                f"alternative {other.name!r} fails " + "; ".join(f"{r.check.name}: {said(r)}" for r in wrong[:2]),
            )

    def tolerances(self) -> None:
        """Each check of a returned number refuses zeros, 5 % more, the other sign, and rows for columns."""
        for row in self.rows.values():
            checks = [check for check in self.checks if check.task == row.task.id and check.values]
            for change in CHANGES if checks else ():
                messages, _ = in_child(lambda send, row=row, change=change, checks=checks:
                                       self.spoilt(send, row.task, change, checks), LIMITS)
                for message in messages:
                    if message.get("changed"):
                        self.count(row.task.id, "tolerances", message["state"] != PASSED,
                                   f"{message['check']} passes when what task {row.task.id} returns is {change}")

    def spoilt(self, send: Callable[[dict[str, Any]], None], task: Task, change: str, checks: list[Check]) -> None:
        use_library(self.folder)
        changes, last = spoil(task, change), [0]

        def listener(result: CheckResult) -> None:
            send({"check": result.check.name, "state": result.state, "changed": changes() > last[0]})
            last[0] = changes()
        run_checks(self.files(), self.engine(checks, 0, listener=listener), capture="fd")

    def skeleton(self) -> None:
        folder = copy_course(self.folder, self.folder.parent / "skeleton")
        blank_all(folder, self.tasks)
        export(folder)
        messages, ended = in_child(functools.partial(import_all, folder=folder), LIMITS)
        for message in messages or [{"failed": ended}]:
            if message.get("failed"):
                self.gaps.append(f"the skeleton cannot be imported: {message['failed']}")
        for result in self.results(self.checks, folder=folder):
            self.count(result.check.task, "skeleton", result.state == UNATTEMPTED,
                       f"on the skeleton {result.check.name} is {result.state}: {said(result)}")
        leaked = leaked_lines(self.source, folder, [row.task for row in self.rows.values()])
        self.leaked = len(leaked)
        self.gaps += [
            f"a line of task {task} can be read in the skeleton's {place}: {line}" for task, line, place in leaked
        ]

    def count(self, task: str, measure: str, right: bool, gap: str) -> None:
        if task in self.rows:
            self.rows[task].add(measure, right)
        if not right:
            self.gaps.append(gap)

    def sum(self, measure: str) -> tuple[int, int]:
        pairs = [row.counts[measure] for row in self.rows.values()]
        return sum(right for right, _ in pairs), sum(every for _, every in pairs)

    def to_dict(self) -> dict[str, Any]:
        killed, mutants = self.sum("mutants")
        passed, every = self.sum("alternatives")
        unattempted, checks = self.sum("skeleton")
        rejected, tolerances = self.sum("tolerances")
        right, runs = self.sum("solution")
        return {
            "mutants": {"total": mutants, "killed": killed, "killed_with_hint": self.sum("reasons")[0]},
            "alternatives": {"total": every, "passed": passed},
            "skeleton": {"checks": checks, "unattempted": unattempted, "leaked_lines": self.leaked},
            "tolerances": {"total": tolerances, "rejected": rejected},
            "solution": {"checks": runs, "passed": right},
            "blanked": dict(zip(("failed_as_they_should", "total"), self.sum("blanked"), strict=True)),
            "gaps": self.gaps,
        }


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
