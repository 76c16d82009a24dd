"""What a learner's folder knows: what is open, what was hinted, what was found, and where the reference is."""
import ast
import json
import shutil
import subprocess
import tempfile
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from milestones.checking import KIT, CheckResult
from milestones.exporting import export_apart
from milestones.tasks import (
    DIRECTIVE,
    LIST,
    Task,
    body_lines,
    cell_source,
    definitions,
    find_tasks,
    handed_out,
    read_notebook,
    set_source,
    write_notebook,
)

MEMORY = ".work"  # folder of the learner's progress; not part of their repository
BRANCHES = ("solution", "origin/solution")
LEVELS = 3  # hints for a task


class CourseError(RuntimeError):
    """Something that the learner can mend; the message says how."""


def is_open(task: Task) -> bool:
    """Whether something that the task asks for is still a stub, or not there."""
    try:
        found = definitions(task.source)
    except ValueError:  # a cell that is not Python at the moment is not a stub: it was worked on
        return False
    return any(target not in found or is_stub(found[target]) for target in task.targets)


def is_stub(node: ast.AST) -> bool:
    """Whether a function does nothing but raise NotImplementedError."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    raised = body[0].exc if len(body) == 1 and isinstance(body[0], ast.Raise) else None
    return isinstance(raised, ast.Call) and getattr(raised.func, "id", "") == "NotImplementedError"


def next_task(folder: Path) -> tuple[Task | None, str]:
    """The first task, in reading order, that is open or was not right when last checked; and which of the two."""
    wrong = {result.check.task for result in last_results(folder) if result.state != "passed"}
    for task in sorted(find_tasks(folder), key=lambda task: (task.milestone, task.notebook, task.cell)):
        if is_open(task):
            return task, "open" if task.source else "its cell is gone"
        if task.id in wrong:
            return task, "not right when it was last checked"
    return None, ""


def known_task(folder: Path, task_id: str) -> Task:
    """The task of that id; a CourseError where there is none."""
    task = next((task for task in find_tasks(folder) if task.id == task_id), None)
    if task is None:
        raise CourseError(f"there is no task {task_id}; `course progress` lists all")
    return task


def references(folder: Path, tasks: list[Task]) -> dict[str, str]:
    """The solved cells of tasks, by id; a CourseError that says how to get them where one is missing."""
    found = {task.id: reference(folder, task) for task in tasks}
    missing = [task_id for task_id, source in found.items() if source is None]
    if missing:
        raise CourseError(f"there is no reference here for task {', '.join(missing)}: {where_references_are(folder)}")
    return found


def reference(folder: Path, task: Task) -> str | None:
    """The solved cell of a task, from a checkout of main or from a branch `solution`; None where neither is here."""
    for text in solved_notebooks(folder, task.notebook):
        for cell in json.loads(text)["cells"]:
            source = cell_source(cell)
            if cell["cell_type"] == "code" and solves(source, task):
                return source
    return None


def solved_notebooks(folder: Path, name: str) -> list[str]:
    """Texts of a notebook wherever a solved one may be; what learners wrote themselves is none."""
    texts = []
    for place in dict.fromkeys((folder, *origins(folder), KIT.parent)):
        path = place / "nbs" / name
        texts += [path.read_text(encoding="utf-8")] if path.is_file() and not (place / LIST).exists() else []
        texts += [text for branch in BRANCHES if (text := shown(place, f"{branch}:nbs/{name}"))]
    return texts


def origins(folder: Path) -> list[Path]:
    """The checkout that a work folder was made from, when it is still there."""
    place = Path(recall(folder, "course.json").get("reference", ""))
    return [place] if place.is_absolute() and place.is_dir() else []


def shown(repository: Path, name: str) -> str:
    """A file of a branch; "" where there is no such file, branch or repository, or no git."""
    if shutil.which("git") is None or not (repository / ".git").exists():
        return ""
    done = subprocess.run(["git", "show", name], cwd=repository, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""


def where_references_are(folder: Path) -> str:
    place = next((place for place in origins(folder) if (place / ".git").exists()), folder)
    return ("it comes from the course's checkout or its branch `solution`, and neither is here; "
            f"get the branch: git -C {place} fetch origin solution:solution")


def solves(source: str, task: Task) -> bool:
    """Whether a cell defines all that the task asks for, written out."""
    directive = DIRECTIVE.search(source)
    if not source.startswith("#| export") or (directive and directive["id"] != task.id):
        return False
    try:
        found = definitions(source)
    except ValueError:
        return False
    return all(target in found and not is_stub(found[target]) for target in task.targets)


def hint(folder: Path, task_id: str) -> tuple[int, str]:
    """The next hint for a task: (level, text). Two from the milestone's hints.md, the third from the reference."""
    task, given = known_task(folder, task_id), recall(folder, "hints.json")
    level = min(given.get(task_id, 0) + 1, LEVELS)
    texts = hints_for(task)
    text = texts[level - 1] if level <= len(texts) and level < LEVELS else nearly(folder, task)
    remember(folder, "hints.json", {**given, task_id: level})
    return level, text


def hints_for(task: Task, kit: Path = KIT) -> list[str]:
    """The lines `1. …`, `2. …` below `## 2.1` in the milestone's hints.md."""
    texts: list[str] = []
    for path in kit.glob(f"{task.milestone:02d}_*/hints.md"):
        section = path.read_text(encoding="utf-8").partition(f"\n## {task.id}\n")[2].partition("\n## ")[0]
        for line in section.splitlines():
            if line[:3] in ("1. ", "2. "):
                texts.append(line[3:])
            elif line.strip() and texts:
                texts[-1] += " " + line.strip()
    return texts


def nearly(folder: Path, task: Task) -> str:
    """Nearly the answer: the reference's lines, the last one left for the learner."""
    source = reference(folder, task)
    if source is None:
        return f"the last hint shows the reference: {where_references_are(folder)}"
    handed = next((known for known in handed_out(folder) if known.id == task.id), task)
    lines = [line for line in body_lines(marked(source, handed)) if line.strip()]
    return "\n".join([*lines[:-1], f"{lines[-1][:len(lines[-1]) - len(lines[-1].lstrip())]}…  # and one more line"])


def catch_up(folder: Path, milestone: int) -> tuple[list[Task], Path]:
    """Take the reference for tasks before a milestone; the learner's notebooks go aside. Returns (tasks, aside)."""
    tasks = find_tasks(folder)
    last = max((task.milestone for task in tasks), default=0) + 1
    if not 1 < milestone <= last:
        raise CourseError(f"catch-up takes what comes before a milestone from 2 to {last}, got {milestone}")
    tasks = [task for task in tasks if task.milestone < milestone]
    found = references(folder, tasks)
    for name in dict.fromkeys(task.notebook for task in tasks):
        if not is_notebook(folder / "nbs" / name):
            raise CourseError(f"nbs/{name} is gone or cannot be read, so there is nothing to put the reference into; "
                              f"bring the last committed one back: git -C {folder} checkout HEAD -- nbs/{name}")
    aside = aside_folder(folder)
    shutil.copytree(folder / "nbs", aside / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    take(folder, found)
    forget_results(folder, set(found))
    export_apart(folder)
    return tasks, aside


def take(folder: Path, sources: dict[str, str]) -> None:
    """Put these texts where the tasks' cells are; not exported yet."""
    handed = {task.id: task for task in handed_out(folder)}
    for task_id, source in sources.items():
        task = known_task(folder, task_id)  # found anew each time: a cell that was gone moves those below it
        path = folder / "nbs" / task.notebook
        notebook = read_notebook(path)
        put(notebook, task, marked(source, handed[task_id]))
        write_notebook(path, notebook)


def put(notebook: dict[str, Any], task: Task, source: str) -> None:
    """Put a text into a task's cell, the last one that holds it, or into a new one where its cell is gone."""
    if not task.source:
        cell = {"cell_type": "code", "id": uuid.uuid4().hex[:8], "metadata": {}}
        notebook["cells"].insert(task.cell, cell)
    cell = notebook["cells"][task.cell]
    set_source(cell, source)
    cell["outputs"], cell["execution_count"] = [], None


def is_notebook(path: Path) -> bool:
    try:
        return "cells" in read_notebook(path)
    except (OSError, ValueError):
        return False


def marked(source: str, handed: Task) -> str:
    """The reference with the directive of the task as it was handed out; the solution branch does not have it."""
    if DIRECTIVE.search(source):
        return source
    return source.replace("#| export\n", f"#| export\n{DIRECTIVE.search(handed.source)[0]}", 1)


def aside_folder(folder: Path) -> Path:
    """A new folder for what is kept aside, named after the time."""
    place = folder / MEMORY / "aside"
    place.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=datetime.now(UTC).strftime("%Y%m%d-%H%M%S-"), dir=place))


def keep_results(folder: Path, results: list[CheckResult]) -> None:
    """Remember what was found, by check; later findings replace earlier ones."""
    known = {result.check.name: result for result in last_results(folder)} | {
        result.check.name: result for result in results
    }
    remember(folder, "results.json", {name: result.to_dict() for name, result in known.items()})


def forget_results(folder: Path, task_ids: set[str]) -> None:
    """Drop what was found of tasks whose code is another now."""
    kept = [result for result in last_results(folder) if result.check.task not in task_ids]
    remember(folder, "results.json", {result.check.name: result.to_dict() for result in kept})


def last_results(folder: Path) -> list[CheckResult]:
    return [CheckResult.from_dict(value) for value in recall(folder, "results.json").values()]


def remember(folder: Path, name: str, value: dict[str, Any]) -> None:
    (folder / MEMORY).mkdir(exist_ok=True)
    temporary = folder / MEMORY / f"{name}.part"
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(folder / MEMORY / name)


def recall(folder: Path, name: str) -> dict[str, Any]:
    path = folder / MEMORY / name
    return json.loads(path.read_text()) if path.is_file() else {}
