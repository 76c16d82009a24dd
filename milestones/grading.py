"""Grade a folder: notebooks copied, exported anew, checked in a fresh process under limits, with the kit's own checks.

`python -m milestones.grading` is that process; it never imports a learner's code itself, only its forked children do.
"""
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from milestones.checking import ERROR, FAILED, KIT, PASSED, Check, CheckResult, collect, settle
from milestones.exporting import FILES
from milestones.listed import AUTHORS_FILES
from milestones.running import Limits, all_checks, run_in_folder, warm_up
from milestones.showing import state_of
from milestones.tasks import Task, find_tasks, notebook_paths

SCHEMA = "finetune-course/grade/1"
LIMITS = Limits()
WHOLE = 1800.0  # seconds for a whole run: the limits of the single checks end it long before
NO_NETWORK = ("unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")


def grade(
    folder: Path, choice: str = "", kit: Path = KIT, seed: int | None = None, limits: Limits = LIMITS
) -> dict[str, Any]:
    """The report on what stands in `folder`'s notebooks: all of it, a milestone ("2") or a task ("2.3")."""
    checks, tasks = all_checks(kit, choice), find_tasks(kit.parent)
    if not checks:
        raise ValueError(f"there are no checks for {choice or 'any milestone'!r}")
    seed = secrets.randbelow(2**31) if seed is None else seed
    with tempfile.TemporaryDirectory(prefix="course-grade-") as name:
        work, failures = prepare(folder, Path(name), kit)
        needed = checks_needed(checks, tasks, kit)
        results, missing = run_apart(work, Path(name), kit, tasks, needed, seed, limits)
    wanted = {check.name for check in checks}
    results = [explained(result, tasks, failures) for result in results if result.check.name in wanted]
    report = summary(results, tasks)
    return report | {"graded": fingerprint(folder), "seed": seed, "export_failures": failures,
                     "limits": asdict(limits) | {"not_set": missing}}


def checks_needed(checks: list[Check], tasks: list[Task], kit: Path) -> list[Check]:
    """The checks, and those of earlier tasks of the same milestones: they tell a wrong task from a blocked one."""
    milestones = {check.task.split(".")[0] for check in checks}
    order = {task.id: place for place, task in enumerate(tasks)}
    last = max(order.get(check.task, 0) for check in checks)
    return [check for milestone in sorted(milestones) for check in all_checks(kit, milestone)
            if order.get(check.task, 0) <= last or check in checks]


def prepare(folder: Path, place: Path, kit: Path) -> tuple[Path, dict[str, str]]:
    """Copy the learner's notebooks and the grader's kit apart; export. Returns (work folder, failures)."""
    work = place / "work"
    shutil.copytree(folder / "nbs", work / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "*.py"))
    (work / "finetune_lib").mkdir()
    for name in (*FILES, "finetune_lib/__init__.py"):  # the grader's own: kept by hand, not exported
        if (kit.parent / name).exists():
            shutil.copy(kit.parent / name, work / name)
    hidden = shutil.ignore_patterns("__pycache__", *AUTHORS_FILES)
    shutil.copytree(KIT, place / "kit/milestones", ignore=hidden)
    if kit != KIT:
        shutil.copytree(kit, place / "kit/milestones", ignore=hidden, dirs_exist_ok=True)
    done = subprocess.run([sys.executable, "-m", "milestones.exporting", str(work)], cwd=place / "kit",
                          capture_output=True, text=True, timeout=300)
    if done.returncode:
        return work, {path.relative_to(work / "nbs").as_posix(): done.stderr.strip().splitlines()[-1]
                      for path in notebook_paths(work)}
    return work, json.loads(done.stdout)


def run_apart(work: Path, place: Path, kit: Path, tasks: list[Task], checks: list[Check], seed: int,
              limits: Limits) -> tuple[list[CheckResult], list[str]]:
    """Run the checks in a fresh process; returns the results and the limits that could not be set."""
    here = place / "kit/milestones"
    checks = [replace(check, file=str(here / Path(check.file).relative_to(kit))) for check in checks]
    request = {
        "work": str(work),
        "kit": str(here),
        "seed": seed,
        "limits": asdict(limits),
        "tasks": [asdict(replace(task, source="")) for task in tasks],
        "checks": [asdict(check) for check in checks],
    }
    (place / "request.json").write_text(json.dumps(request))
    wrapper, missing = isolation()
    data = os.environ.get("FINETUNE_DATA") or str(kit.parent / "data")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(place),
        "PYTHONPATH": str(here.parent),
        "FINETUNE_DATA": data,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [
        *wrapper,
        sys.executable,
        "-m",
        "milestones.grading",
        str(place / "request.json"),
        str(place / "results.json"),
    ]
    try:
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=WHOLE)
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    except subprocess.TimeoutExpired:
        said = [f"stopped after {WHOLE:g} s"]
    found = place / "results.json"
    if not found.exists():
        return [CheckResult(check, ERROR, what=f"the run gave no results: {said[0]}") for check in checks], missing
    return [CheckResult.from_dict(result) for result in json.loads(found.read_text())], missing


def isolation() -> tuple[list[str], list[str]]:
    """The command that takes network and other processes away, where this machine has it; else what is missing."""
    try:
        works = subprocess.run([*NO_NETWORK, "true"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        works = False
    missing = [] if works else ["no network", "own processes only"]
    return (list(NO_NETWORK) if works else []), missing + ["number of processes", "a view without the checkout"]


def explained(result: CheckResult, tasks: list[Task], failures: dict[str, str]) -> CheckResult:
    """A task whose notebook could not be exported fails for that reason."""
    notebook = next((task.notebook for task in tasks if task.id == result.check.task), "")
    if result.state == PASSED or notebook not in failures:
        return result
    return replace(result, state=FAILED, what=f"nbs/{notebook} could not be exported: {failures[notebook]}",
                   expected="", got="", reason="a cell of the notebook is not Python")


def summary(results: list[CheckResult], tasks: Iterable[Task]) -> dict[str, Any]:
    """Results by milestone and task, with points."""
    titles = {task.id: task.title for task in tasks}
    milestones: dict[int, list[dict[str, Any]]] = {}
    for task_id in dict.fromkeys(result.check.task for result in results):
        own = [result for result in results if result.check.task == task_id]
        milestones.setdefault(int(task_id.split(".")[0]), []).append(
            {
                "task": task_id,
                "title": titles.get(task_id, ""),
                "state": state_of(own),
                **totals(own),
                "checks": [
                    result.to_dict() | {"points": result.points, "max_points": result.check.points} for result in own
                ],
            }
        )
    return {"schema": SCHEMA, **totals(results),
            "milestones": [{"milestone": number, "points": sum(task["points"] for task in found),
                            "max_points": sum(task["max_points"] for task in found), "tasks": found}
                           for number, found in sorted(milestones.items())]}


def totals(results: list[CheckResult]) -> dict[str, float]:
    return {
        "points": sum(result.points for result in results),
        "max_points": sum(result.check.points for result in results),
    }


def results_in(report: dict[str, Any]) -> list[CheckResult]:
    """The results that a report was made of."""
    known = set(CheckResult.__dataclass_fields__)
    return [CheckResult.from_dict({key: value for key, value in check.items() if key in known})
            for milestone in report["milestones"] for task in milestone["tasks"] for check in task["checks"]]


def fingerprint(folder: Path) -> dict[str, Any]:
    """What was graded: SHA-256 of each notebook, and of all of them."""
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
              for path in notebook_paths(folder)}
    whole = hashlib.sha256("".join(f"{name} {value}\n" for name, value in hashes.items()).encode()).hexdigest()
    return {"sha256": whole, "notebooks": hashes}


def main(request_file: str, results_file: str) -> None:
    request = json.loads(Path(request_file).read_text())
    collect(Path(request["kit"]))  # imports what the checks import, once for all children
    warm_up([])
    tasks = [Task(**{**task, "targets": tuple(task["targets"])}) for task in request["tasks"]]
    checks = [Check(**check) for check in request["checks"]]
    results = []
    for file in dict.fromkeys(check.file for check in checks):  # a part that hangs on import takes no other with it
        own = [check for check in checks if check.file == file]
        results += run_in_folder(Path(request["work"]), tasks, own, Path(request["kit"]), request["seed"],
                                 Limits(**request["limits"]), sealed=True)
    temporary = Path(results_file + ".part")
    temporary.write_text(json.dumps([result.to_dict() for result in settle(results)]))
    temporary.replace(results_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
