"""A learner's folder: made once, never overwritten; what is open, what was hinted, what was found."""
import ast
import json
import shutil
import subprocess
import sys
import sysconfig
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from milestones.checking import KIT, CheckResult
from milestones.exporting import blank_all, export
from milestones.listed import AUTHORS_FILES
from milestones.tasks import (
    Task,
    body_lines,
    cell_source,
    definitions,
    find_tasks,
    read_notebook,
    set_source,
    task_functions,
    write_notebook,
)

COPIED = ("nbs", "finetune_lib", "milestones", "pyproject.toml", "settings.ini", "setup.py", "LICENSE", ".gitignore")
IGNORED = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "AUDIT.md", *AUTHORS_FILES)
MEMORY = ".work"  # folder of the learner's progress; not part of their repository


class CourseError(RuntimeError):
    """Something that the learner can mend; the message says how."""


def start(folder: Path, milestone: int = 1, source: Path = KIT.parent) -> Path:
    """Make a work folder: a git repository of its own, tasks from `milestone` on blank, a thin environment."""
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        raise CourseError(
            f"a work folder is made once and never overwritten, and {folder} holds files; choose a new one"
        )
    if all(is_open(task.source) for task in find_tasks(source) if task.milestone < milestone):
        if milestone > 1:
            raise CourseError(
                f"earlier milestones can be solved only from a checkout of main; {source} holds the skeleton"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        path = source / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=IGNORED)
        elif path.exists():
            shutil.copy(path, folder / name)
    for path in (source / "milestones/learner").glob("*.md"):
        shutil.copy(path, folder / path.name)
    if (source / "data").exists():
        (folder / "data").symlink_to((source / "data").resolve())
    blank_all(folder, [task for task in find_tasks(folder) if task.milestone >= milestone and not is_open(task.source)])
    export(folder)
    remember(folder, "course.json", {"reference": str(source.resolve())})
    make_environment(folder)
    make_repository(folder)
    return folder


def make_environment(folder: Path) -> None:
    """A thin environment: this Python and its packages, with the folder's own library before them."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / ".venv")], check=True)
    site = next((folder / ".venv").glob("lib/python*/site-packages"), folder / ".venv/Lib/site-packages")
    packages = sysconfig.get_paths()["purelib"]
    (site / "course.pth").write_text(f"import sys; sys.path.insert(0, {str(folder)!r})\n"
                                     f"import site; site.addsitedir({packages!r})\n")


def make_repository(folder: Path) -> None:
    """A repository of the learner's own, with the start as its first commit."""
    def git(*arguments: str) -> None:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise CourseError(f"git {arguments[0]}: {done.stderr.strip()}")

    git("init", "-q", "-b", "main")
    with (folder / ".git/info/exclude").open("a") as file:
        file.write(f"data\n.venv\n{MEMORY}/\n")
    git("add", "-A")
    git(
        "-c",
        "user.name=course",
        "-c",
        "user.email=course@localhost",
        "commit",
        "-q",
        "-m",
        "The course, as it was started",
    )


def is_open(source: str) -> bool:
    """Whether something of a task's cell is still a stub."""
    def stub(node: ast.AST) -> bool:
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        raised = body[0].exc if len(body) == 1 and isinstance(body[0], ast.Raise) else None
        return isinstance(raised, ast.Call) and getattr(raised.func, "id", "") == "NotImplementedError"
    try:
        return any(stub(node) for _, node in task_functions(source))
    except ValueError:  # a cell that is not Python at the moment is not a stub: it was worked on
        return False


def next_task(folder: Path) -> Task | None:
    """The first task that is open, or written and not found right when it was last checked."""
    wrong = {result.check.task for result in last_results(folder) if result.state != "passed"}
    return next((task for task in find_tasks(folder) if is_open(task.source) or task.id in wrong), None)


def reference(folder: Path, task: Task) -> str | None:
    """The solved cell of a task: from the checkout the folder came from, the installed kit, or the solution branch."""
    places = [Path(recall(folder, "course.json").get("reference", "")), KIT.parent]
    texts = [
        (place / "nbs" / task.notebook).read_text() for place in places if (place / "nbs" / task.notebook).is_file()
    ]
    for branch in ("solution", "origin/solution"):
        done = subprocess.run(
            ["git", "show", f"{branch}:nbs/{task.notebook}"], cwd=folder, capture_output=True, text=True
        )
        texts += [done.stdout] if done.returncode == 0 else []
    for text in texts:
        for cell in json.loads(text)["cells"]:
            source = cell_source(cell)
            if cell["cell_type"] == "code" and solves(source, task):
                return source
    return None


def solves(source: str, task: Task) -> bool:
    """Whether a cell defines all that the task asks for, written out."""
    if not source.startswith("#| export"):
        return False
    try:
        found = definitions(source)
    except ValueError:
        return False
    return set(task.targets) <= set(found) and "raise NotImplementedError(\"task " not in source


def hint(folder: Path, task_id: str) -> tuple[int, str]:
    """The next hint for a task: (level, text). Two from the milestone's hints.md, the third from the reference."""
    task = next((task for task in find_tasks(folder) if task.id == task_id), None)
    if task is None:
        raise CourseError(f"there is no task {task_id}; `course progress` lists all")
    given = recall(folder, "hints.json")
    level = min(given.get(task_id, 0) + 1, 3)
    texts = hints_for(task)
    text = texts[level - 1] if level <= len(texts) and level < 3 else nearly(folder, task)
    remember(folder, "hints.json", {**given, task_id: level})
    return level, text


def hints_for(task: Task, kit: Path = KIT) -> list[str]:
    """The lines `1. …`, `2. …` below `## 2.1` in the milestone's hints.md."""
    texts: list[str] = []
    for path in kit.glob(f"{task.milestone:02d}_*/hints.md"):
        section = path.read_text(encoding="utf-8").partition(f"\n## {task.id}")[2].partition("\n## ")[0]
        for line in section.splitlines()[1:]:
            if line[:3] in ("1. ", "2. "):
                texts.append(line[3:])
            elif line.strip() and texts:
                texts[-1] += " " + line.strip()
    return texts


def nearly(folder: Path, task: Task) -> str:
    """Nearly the answer: the reference's lines, the last one left for the learner."""
    source = reference(folder, task)
    if source is None:
        return (
            "the last hint shows the reference, and there is none here: neither the checkout this folder was made from "
            "nor a branch `solution` (git fetch origin solution)"
        )
    cell = source if "#| task:" in source else source.replace("#| export\n", f"#| export\n#| task: {task.id}\n", 1)
    lines = [line for line in body_lines(cell) if line.strip()]
    return "\n".join([*lines[:-1], f"{lines[-1][:len(lines[-1]) - len(lines[-1].lstrip())]}…  # and one more line"])


def catch_up(folder: Path, milestone: int) -> tuple[list[Task], Path]:
    """Take the reference for tasks before a milestone; the learner's notebooks go aside. Returns (tasks, aside)."""
    tasks = [task for task in find_tasks(folder) if task.milestone < milestone]
    found = {task.id: reference(folder, task) for task in tasks}
    missing = [task_id for task_id, source in found.items() if source is None]
    if missing:
        raise CourseError(
            f"there is no reference here for task {', '.join(missing)}: get it with `git fetch origin solution`"
        )
    aside = folder / MEMORY / "aside" / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for name in dict.fromkeys(task.notebook for task in tasks):
        path = folder / "nbs" / name
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, aside / name)
        notebook = read_notebook(path)
        for task in tasks:
            if task.notebook == name:
                set_source(notebook["cells"][task.cell], marked(found[task.id], task))
        write_notebook(path, notebook)
    export(folder)
    return tasks, aside


def marked(source: str, task: Task) -> str:
    """The reference with the learner's own directive."""
    directive = next(line for line in task.source.splitlines() if line.startswith("#| task:"))
    return source if directive in source else source.replace("#| export\n", f"#| export\n{directive}\n", 1)


def keep_results(folder: Path, results: list[CheckResult]) -> None:
    """Remember what was found, by check; later findings replace earlier ones."""
    known = {result.check.name: result for result in last_results(folder)} | {
        result.check.name: result for result in results
    }
    remember(folder, "results.json", {name: result.to_dict() for name, result in known.items()})


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
