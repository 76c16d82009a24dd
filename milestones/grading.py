"""Grade a folder: its notebooks, copied and exported anew in a box under limits (apart.py), by the kit's own checks."""
import hashlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from milestones.apart import NO_RESULTS, changed_checks, prepare, run_apart
from milestones.beside import RESULT
from milestones.checking import ERROR, FAILED, KIT, PASSED, Check, CheckResult, check_files
from milestones.result import run_result
from milestones.running import Limits, all_checks, choose
from milestones.running_notebooks import run_notebooks
from milestones.showing import state_of
from milestones.tasks import Task, find_tasks, notebook_paths, task_order

SCHEMA = "finetune-course/grade/1"  # described in grade.schema.json
HIDDEN = "checks_hidden_"  # how files of hidden checks are called in the grader's copy of the kit
LIMITS = Limits()


def grade(
    folder: Path,  # holds nbs/
    choice: str = "",  # a milestone ("2"), a task ("2.3"), or everything
    kit: Path = KIT,
    seed: int | None = None,  # of the values that checks draw; a fresh one when None
    limits: Limits = LIMITS,
    only_checks: bool = False,  # leave out what takes minutes: the notebooks' own run and the result
    hidden: Path | None = None,  # a folder of checks that the instructor keeps
    whole: bool = False,  # run notebooks to their last cell, not only through their last check
) -> dict[str, Any]:
    """The report on what stands in `folder`'s notebooks, in the form of grade.schema.json."""
    begun, when = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    public = all_checks(kit, choice.split(".")[0])
    checks, tasks = chosen_checks(public, kit, choice, hidden), find_tasks(kit.parent)
    if not checks:
        raise ValueError(f"there are no checks for {choice or 'any milestone'!r}")
    seed = secrets.randbelow(2**31) if seed is None else seed
    with tempfile.TemporaryDirectory(prefix="course-grade-") as name:
        place = Path(name)
        work, failures = prepare(folder, place, kit)
        lay_beside(hidden, place / "kit/milestones")
        needed = checks_needed(checks, tasks, public)
        results, missing = run_apart(work, place, kit, tasks, needed, seed, limits)
        wanted = {check.name for check in checks}
        results = [explained(result, tasks, failures) for result in results if result.check.name in wanted]
        milestones = by_milestone(results, tasks)
        for milestone in [] if only_checks or "." in choice else milestones:
            milestone["notebooks"] = run_notebooks(milestone, tasks, work, place, kit, whole)
            if milestone["milestone"] in RESULT:
                milestone["result"] = run_result(milestone["milestone"], work, place, kit, seed)
    return summary(milestones) | {
        "graded": fingerprint(folder), "time": when, "seconds": round(time.monotonic() - begun, 1), "seed": seed,
        "export_failures": failures, "trouble": changed_checks(folder, kit) + trouble(results, failures, milestones),
        "limits": asdict(limits) | {"not_set": missing}}


def chosen_checks(public: list[Check], kit: Path, choice: str, hidden: Path | None) -> list[Check]:
    """The public checks and the hidden ones; a hidden check takes the place of the public one of its name."""
    kept = hidden_checks(hidden, kit, choice) if hidden else []
    replaced = {check.name for check in kept}
    chosen = [check for check in choose(public, choice) if check.name not in replaced]
    return sorted(chosen + kept, key=lambda check: task_order(check.task))


def hidden_checks(hidden: Path, kit: Path, choice: str) -> list[Check]:
    """The instructor's own checks, as if they stood in the kit, where `lay_beside` puts them."""
    if not check_files(hidden):
        raise ValueError(f"hidden checks stand in DIR/02_lora/checks.py, as the public ones do; {hidden} holds none")
    return [replace(check, file=str(kit / beside(Path(check.file)))) for check in all_checks(hidden, choice)]


def lay_beside(hidden: Path | None, copy: Path) -> None:
    """Put hidden checks into the grader's copy of the kit."""
    for file in check_files(hidden) if hidden else []:
        shutil.copy(file, copy / beside(file))


def beside(file: Path) -> Path:
    """`…/02_lora/checks.py` of the hidden checks → `02_lora/checks_hidden_checks.py` in the kit."""
    return Path(file.parent.name) / f"{HIDDEN}{file.stem}.py"


def checks_needed(checks: list[Check], tasks: list[Task], public: list[Check]) -> list[Check]:
    """The checks, and those of earlier tasks of the same milestones: they tell a wrong task from a blocked one."""
    milestones = {check.task.split(".")[0] for check in checks}
    order = {task.id: place for place, task in enumerate(tasks)}
    last = max(order.get(check.task, 0) for check in checks)
    names = {check.name for check in checks}
    earlier = [check for milestone in sorted(milestones) for check in choose(public, milestone)
               if order.get(check.task, 0) <= last and check.name not in names]
    return sorted(earlier + checks, key=lambda check: task_order(check.task))


def explained(result: CheckResult, tasks: list[Task], failures: dict[str, str]) -> CheckResult:
    """A task whose notebook could not be exported fails for that reason."""
    notebook = next((task.notebook for task in tasks if task.id == result.check.task), "")
    if result.state == PASSED or notebook not in failures:
        return result
    what = f"nbs/{notebook} could not be exported: {failures[notebook]}"
    if failures[notebook].startswith(NO_RESULTS):  # the grader's own process was ended
        return replace(result, state=ERROR, what=what, expected="", got="", reason="")
    return replace(result, state=FAILED, what=what, expected="", got="", reason="a cell of the notebook is not Python")


def by_milestone(results: list[CheckResult], tasks: Iterable[Task]) -> list[dict[str, Any]]:
    """Results by milestone and task."""
    titles = {task.id: task.title for task in tasks}
    milestones: dict[int, list[dict[str, Any]]] = {}
    for task_id in dict.fromkeys(result.check.task for result in results):
        own = [result for result in results if result.check.task == task_id]
        milestones.setdefault(int(task_id.split(".")[0]), []).append(
            {"task": task_id, "title": titles.get(task_id, ""), "state": state_of(own),
             "checks": [entry(result) for result in own]})
    return [{"milestone": number, "tasks": found, "notebooks": [], "result": None}
            for number, found in sorted(milestones.items())]


def entry(result: CheckResult) -> dict[str, Any]:
    """One check in the report."""
    said = {name: getattr(result, name) for name in ("state", "points", "what", "expected", "got", "reason", "seconds")}
    file = Path(result.check.file)
    return {"name": result.check.name, "claim": result.check.claim, "file": f"{file.parent.name}/{file.name}",
            "hidden": file.name.startswith(HIDDEN), "hint": result.check.hint, "needs": list(result.needs),
            "max_points": result.check.points, **said}


def summary(milestones: list[dict[str, Any]]) -> dict[str, Any]:
    """The head of the report, with points added up."""
    for milestone in milestones:
        for task in milestone["tasks"]:
            task |= totals(task["checks"])
        milestone |= totals([*milestone["tasks"], *milestone["notebooks"], *filter(None, [milestone["result"]])])
    return {"schema": SCHEMA, **totals(milestones), "milestones": milestones}


def totals(parts: list[dict[str, Any]]) -> dict[str, float]:
    return {name: round(sum(part[name] for part in parts), 2) for name in ("points", "max_points")}


def trouble(results: list[CheckResult], failures: dict[str, str], milestones: list[dict[str, Any]]) -> list[str]:
    """What was hostile or broken, each thing once: what ended a check from outside, and what could not be exported."""
    ended = [result.what for result in results if result.state in (FAILED, ERROR) and not result.seconds]
    broken = [f"nbs/{name} could not be exported: {said}" for name, said in failures.items()]
    errors = [part["what"] for milestone in milestones
              for part in [*milestone["notebooks"], *filter(None, [milestone["result"]])] if part["state"] == ERROR]
    return list(dict.fromkeys(broken + [what for what in ended if "could not be exported" not in what] + errors))


def results_in(report: dict[str, Any]) -> list[CheckResult]:
    """The results of checks that a report was made of."""
    same = ("state", "what", "expected", "got", "reason", "seconds")
    return [CheckResult(Check(task["task"], check["name"], check["file"], check["max_points"], check["hint"]),
                        needs=tuple(check["needs"]), seed=report["seed"], **{name: check[name] for name in same})
            for milestone in report["milestones"] for task in milestone["tasks"] for check in task["checks"]]


def fingerprint(folder: Path) -> dict[str, Any]:
    """What was graded: SHA-256 of each notebook, and of all of them; of files that lead elsewhere, nothing."""
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
              for path in notebook_paths(folder) if path.is_file() and not path.is_symlink()}
    whole = hashlib.sha256("".join(f"{name} {value}\n" for name, value in hashes.items()).encode()).hexdigest()
    return {"sha256": whole, "notebooks": hashes}
