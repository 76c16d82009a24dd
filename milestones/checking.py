"""The engine of the checks: plain pytest functions, marked with their task, blind to whose code they import.

`check("2.3")` in a notebook runs them on what the notebook holds; `course check` and `course grade` on what its
notebooks export.
"""
import ast
import contextlib
import importlib
import os
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from milestones.expecting import Mismatch
from milestones.stopping import stopped
from milestones.stubs import is_stub, stub_of
from milestones.tasks import Task, task_order

KIT = Path(__file__).resolve().parent
PASSED, FAILED, UNATTEMPTED, BLOCKED, ERROR = "passed", "failed", "unattempted", "blocked", "error"
OPTIONS = ["--disable-plugin-autoload", "-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:legacypath",
           "--noconftest", "-c", os.devnull, "--import-mode=importlib", "--strict-markers"]
MARKER = "task(id, points, hint, values): the task that a check belongs to"
NEEDS = "{} must be a function with one marker, of plain values: @pytest.mark.task(\"2.1\", points=10)"


@dataclass(frozen=True)
class Check:
    """One check as its author wrote it."""

    task: str  # id of the task
    name: str  # name of the function
    file: str  # checks.py it stands in
    points: float
    hint: str = ""  # shown when it fails
    values: bool = True  # whether it looks at numbers that the task returns, so that other numbers must fail it

    @property
    def claim(self) -> str:
        return self.name.removeprefix("test_").replace("_", " ")


@dataclass(frozen=True)
class CheckResult:
    """What one check found."""

    check: Check
    state: str  # passed, failed, unattempted, blocked or error
    what: str = ""
    expected: str = ""
    got: str = ""
    reason: str = ""
    needs: tuple[str, ...] = ()  # tasks that the check ran into, its own apart
    seconds: float = 0.0
    seed: int = 0

    @property
    def points(self) -> float:
        return self.check.points if self.state == PASSED else 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "CheckResult":
        return cls(**{**value, "check": Check(**value["check"]), "needs": tuple(value["needs"])})


class Library:
    """The learner's names, wherever they live: the notebook's namespace first, then the exported modules."""

    def __init__(self, part: str, namespace: dict[str, Any] | None = None):
        self._part, self._namespace = part, namespace or {}

    def __getattr__(self, name: str) -> Any:
        if name in self._namespace:
            return self._namespace[name]
        for module in modules_with(name, self._part):
            found = importlib.import_module(module)
            if hasattr(found, name):
                return getattr(found, name)
        raise Mismatch(f"`{name}` is missing", f"`{name}` in finetune_lib.{self._part}", "no such name",
                       "the cell is not run, or it has no `#| export` as its first line, or nbdev-export was not run")


def modules_with(name: str, part: str) -> list[str]:
    """Modules that nbdev's index says define `name`, the milestone's own part first; then all modules of that part."""
    symbols = importlib.import_module("finetune_lib._modidx").d["syms"]
    own = f"finetune_lib.{part}."
    found = [module for module, known in symbols.items() if f"{module}.{name}" in known]
    rest = [module for module in symbols if module.startswith(own) and module not in found]
    return sorted(found, key=lambda module: not module.startswith(own)) + rest


class Engine:
    """The pytest plug-in: gives checks their fixtures, keeps those of the chosen tasks, and records what they find."""

    def __init__(
        self,
        tasks: Iterable[Task] = (),  # all tasks of the course, to know stubs and which other tasks a check runs into
        chosen: Callable[[Check], bool] = lambda check: True,
        namespace: dict[str, Any] | None = None,  # the notebook's names
        seed: int | None = None,  # a fresh one when None
        listener: Callable[[CheckResult], None] | None = None,  # is told each result as it comes
        begin: Callable[[Check], None] | None = None,  # is told which check begins
    ):
        self.tasks = {task.id: task for task in tasks}
        self.places = {(task.module, target): task.id for task in self.tasks.values() for target in task.targets}
        self.chosen, self.namespace, self.listener, self.begin = chosen, namespace, listener, begin
        self.seed_value = secrets.randbelow(2**31) if seed is None else seed
        self.checks: list[Check] = []
        self.results: list[CheckResult] = []
        self.errors: list[str] = []

    @pytest.fixture
    def lib(self, request: pytest.FixtureRequest) -> Library:
        """The learner's names: `lib.LoRALinear`."""
        return Library(part_of(request.path.parent), self.namespace)

    @pytest.fixture
    def seed(self) -> int:
        """A fresh number, the same for all checks of a run; it is shown when a check fails."""
        return self.seed_value

    @pytest.fixture(autouse=True)
    def _seeded(self, seed: int) -> None:
        random.seed(seed)
        for name, call in (("numpy", "random.seed"), ("torch", "manual_seed")):
            if module := sys.modules.get(name):
                owner, _, last = call.rpartition(".")
                getattr(getattr(module, owner) if owner else module, last)(seed)

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", MARKER)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.errors.append(f"{report.nodeid}: {str(report.longrepr).strip().splitlines()[-1]}")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            item.check = check_of(item)
        items[:] = [item for item in items if self.chosen(item.check)]
        self.checks = [item.check for item in items]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        if self.begin:
            self.begin(item.check)
        item.ran, item.start, item.failure, item.passed = set(), time.perf_counter(), None, set()
        sys.setprofile(self.watch(item.ran))
        try:
            return (yield)
        finally:
            sys.setprofile(None)
            self.record(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo):
        """Note what passed, and the first thing that did not: a skip, too, since no check asks for one."""
        report = yield
        if call.excinfo is None:
            item.passed.add(call.when)
        elif item.failure is None:
            item.failure = call.excinfo
        return report

    def watch(self, ran: set[str]) -> Callable[[FrameType, str, Any], None]:
        """A profiler that notes which tasks' code is entered."""
        names = {target for _, target in self.places}

        def hook(frame: FrameType, event: str, _: Any) -> None:
            if event == "call" and frame.f_code.co_qualname in names:
                module = frame.f_globals.get("__name__", "")
                ran.update(task for (place, target), task in self.places.items()
                           if target == frame.f_code.co_qualname and module in (place, "__main__"))
        return hook

    def record(self, item: pytest.Item) -> None:
        check, needs = item.check, tuple(sorted(item.ran - {item.check.task}, key=task_order))
        result = CheckResult(check, PASSED, needs=needs, seconds=time.perf_counter() - item.start, seed=self.seed_value)
        if item.failure is not None:
            result = self.failed(result, item.failure.value, item.failure.tb, part_of(item.path.parent))
        elif item.passed != {"setup", "call", "teardown"}:  # KeyboardInterrupt, or pytest.exit
            result = replace(result, state=FAILED, what="the run of checks was ended in the middle of this one")
        self.results.append(result)
        if self.listener:
            self.listener(result)

    def failed(self, result: CheckResult, error: BaseException, traceback: Any, part: str) -> CheckResult:
        """Say what an exception means to the learner."""
        open_task = stub_of(error)
        own = result.check.task
        if self.open(own, part):
            return replace(result, state=UNATTEMPTED, what=f"task {own} is not written yet")
        if open_task == own:
            return replace(result, state=FAILED, what=f"the code of task {own} comes to `raise NotImplementedError`",
                           expected="the steps written, and that line gone", got="the line is still there")
        if open_task:
            needs = tuple(sorted({*result.needs, open_task}, key=task_order))
            return replace(
                result, state=FAILED, what=f"it needs task {open_task}, which is not written yet", needs=needs
            )
        if isinstance(error, Mismatch):
            return replace(
                result, state=FAILED, what=error.what, expected=error.expected, got=error.got, reason=error.reason
            )
        if isinstance(error, AssertionError):
            return replace(result, state=FAILED, what=str(error) or "an assertion does not hold")
        what, got, reason = stopped(error, traceback)
        return replace(result, state=FAILED, what=what, expected="no error", got=got, reason=reason)

    def open(self, task_id: str, part: str) -> bool:
        """Whether something of the task is still a stub."""
        task, names = self.tasks.get(task_id), Library(part, self.namespace)
        return task is not None and any(is_stub(names, target) for target in task.targets)


def part_of(folder: Path) -> str:
    """`02_lora` → `lora`: the milestone's part of the library."""
    return folder.name.partition("_")[2]


def check_of(item: pytest.Item) -> Check:
    """A collected test as a check; its marker must be whole."""
    marker = item.get_closest_marker("task")
    return made(item.name, str(item.path), marker.args if marker else (), marker.kwargs if marker else {})


def made(name: str, file: str, arguments: Sequence[Any], named: dict[str, Any]) -> Check:
    """A check of its marker's arguments."""
    if len(arguments) != 1 or "points" not in named:
        raise ValueError(f"{file}: {NEEDS.format(name)}")
    return Check(arguments[0], name, file, **named)


def check_files(kit: Path = KIT, milestone: int | None = None) -> list[Path]:
    """The checks of one milestone or of all."""
    files = sorted(kit.glob("[0-9][0-9]_*/checks*.py"))
    return [file for file in files if milestone is None or int(file.parent.name[:2]) == milestone]


def run_checks(
    files: list[Path], engine: Engine, capture: str = "sys", collect_only: bool = False
) -> list[CheckResult]:
    """Run checks in this process and settle what is blocked; a checks file that cannot be read is an error."""
    more = ["--collect-only"] if collect_only else []
    for file in files:  # pytest would take an earlier module of that name from sys.modules
        sys.modules.pop(f"{file.parent.name}.{file.stem}", None)
    if files:
        pytest.main(
            [*OPTIONS, f"--rootdir={files[0].parent.parent}", f"--capture={capture}", *more, *map(str, files)], [engine]
        )
    if engine.errors:
        raise RuntimeError("checks could not be read: " + "; ".join(engine.errors))
    return settle(engine.results)


def collect(kit: Path = KIT, milestone: int | None = None) -> list[Check]:
    """All checks as they are written. Nothing is imported: what a checks file imports takes seconds."""
    return [check for file in check_files(kit, milestone) for check in written_in(file)]


def written_in(file: Path) -> list[Check]:
    """The checks of one file, in their order."""
    try:
        nodes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body
                 if getattr(node, "name", "").lower().startswith("test")]
    except SyntaxError as error:
        raise ValueError(f"checks could not be read: {file}: {error}") from error
    return [check_written(node, file) for node in nodes]


def check_written(node: ast.stmt, file: Path) -> Check:
    """A function's marker, read and not run: its arguments are plain values, and nothing else stands above it."""
    marker = node.decorator_list[0] if len(node.decorator_list) == 1 else None
    values, named = [], {}
    if (isinstance(node, ast.FunctionDef) and isinstance(marker, ast.Call)
            and ast.unparse(marker.func) == "pytest.mark.task"):
        with contextlib.suppress(ValueError):  # not a plain value: then something is missing
            values = [ast.literal_eval(value) for value in marker.args]
            named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in marker.keywords}
    return made(node.name, str(file), values, named)


def import_checks(files: list[Path]) -> None:
    """Import checks files here, and with them what they import, so that no child of this process has to."""
    run_checks(files, Engine(), collect_only=True)


def settle(results: list[CheckResult]) -> list[CheckResult]:
    """A failed check is blocked where an earlier task that it ran into is not right."""
    wrong = {result.check.task for result in results if result.state in (FAILED, UNATTEMPTED, ERROR, BLOCKED)}

    def settled(result: CheckResult) -> CheckResult:
        own = task_order(result.check.task)
        behind = [task for task in result.needs if task_order(task) < own and task in wrong]
        if result.state != FAILED or not behind:
            return result
        return replace(result, state=BLOCKED, what=f"mend task {', '.join(behind)} first: this one runs through it")

    return [settled(result) for result in results]
