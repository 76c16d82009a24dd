"""Notebooks to modules, in a folder other than the one we stand in: what branches, grades and the audit are made of."""
import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from milestones.children import Limits, in_child
from milestones.tasks import Task, blank, notebook_paths, read_notebook, set_source, write_notebook

LIMITS = Limits(seconds=120, start=120)
FILES = ("pyproject.toml", "settings.ini")


class ExportFailure(RuntimeError):
    """The notebooks of a folder could not be exported; the message says what nbdev said."""


def export(folder: Path) -> None:
    """Run nbdev's export in `folder`, so that its finetune_lib is what its notebooks say; nothing changes here."""
    from nbdev.doclinks import nbdev_export

    def work() -> dict[str, Any]:
        with contextlib.chdir(folder):
            nbdev_export.__wrapped__()  # without its reading of the command line
        return {"exported": True}

    apart(folder, work)


def apart(folder: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives, from a forked child."""
    messages, ended = in_child(lambda send: send(work()), LIMITS)
    why = ended or messages[0].get("failure")
    if why:
        raise ExportFailure(f"the notebooks in {folder} could not be exported: {why}")
    return messages[0]


def export_one(folder: Path, notebook: str) -> None:
    """Export one notebook again, in this process; the rest of the library stays."""
    from nbdev.export import nb_export

    folder = Path(folder).resolve()
    with contextlib.chdir(folder):  # nbdev reads the settings of the folder that it stands in
        nb_export(folder / "nbs" / notebook, lib_path=folder / "finetune_lib")


def copy_course(source: Path, target: Path) -> Path:
    """Notebooks and exported library of a course, and nothing else, in a new folder."""
    for name in ("nbs", "finetune_lib"):
        shutil.copytree(
            source / name, target / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        )
    for name in FILES:
        if (source / name).exists():
            shutil.copy(source / name, target / name)
    return target


def change_task(folder: Path, task: Task, source: str) -> None:
    """Put another text into a task's cell and export its notebook."""
    path = Path(folder) / "nbs" / task.notebook
    notebook = read_notebook(path)
    set_source(notebook["cells"][task.cell], source)
    write_notebook(path, notebook)
    export_one(folder, task.notebook)


def blank_all(folder: Path, tasks: list[Task]) -> None:
    """Blank every task of a course and clear what was stored of its run; not exported yet."""
    for path in notebook_paths(folder):
        notebook, name = read_notebook(path), path.relative_to(Path(folder) / "nbs").as_posix()
        for task in tasks:
            if task.notebook == name:
                set_source(notebook["cells"][task.cell], blank(task.source))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"], cell["execution_count"] = [], None
        write_notebook(path, notebook)


def export_each(folder: Path) -> dict[str, str]:
    """Export every notebook by itself; returns what went wrong, by notebook."""
    from nbdev.doclinks import _build_modidx
    from nbdev.export import nb_export

    failures, folder = {}, folder.resolve()
    with contextlib.chdir(folder):
        for path in notebook_paths(folder):
            try:
                nb_export(path, lib_path=folder / "finetune_lib")
            except Exception as error:  # whatever a learner's notebook holds is told, and the others go on
                failures[path.relative_to(folder / "nbs").as_posix()] = f"{type(error).__name__}: {error}"
        for part in {path.parent for path in (folder / "finetune_lib").rglob("*.py")}:
            (part / "__init__.py").touch()
        _build_modidx()
    return failures


def export_apart(folder: Path) -> dict[str, str]:
    """The same in a forked child, so that nothing of this process changes; returns what went wrong, by notebook."""
    return apart(folder, lambda: {"failures": export_each(folder)})["failures"]
