"""Does a learner who opens a notebook get to its first task? The cells above it are run."""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

from milestones.running import use_library
from milestones.stubs import stub_of
from milestones.tasks import Task, cell_source, read_notebook, task_order

SKIPPED = "skip-execution"  # tag of cells that are shown and not run


def first_tasks(tasks: list[Task], milestone: int) -> list[Task]:
    """The first task of each notebook of a milestone."""
    firsts: dict[str, Task] = {}
    for task in sorted(tasks, key=lambda task: task.cell):
        firsts.setdefault(task.notebook, task)
    return [task for task in firsts.values() if task.milestone == milestone]


def open_notebook(send: Callable[[dict[str, Any]], None], folder: Path, first: Task) -> None:
    """Run a notebook's cells up to its first task, in this process; says where it stopped before, "" if nowhere."""
    use_library(folder)
    with tempfile.TemporaryDirectory(prefix="course-open-") as place, contextlib.chdir(place):
        send({"stopped": run_cells(read_notebook(folder / "nbs" / first.notebook)["cells"][:first.cell], first)})


def run_cells(cells: list[dict], first: Task) -> str:
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] != "code" or SKIPPED in cell["metadata"].get("tags", []):
            continue
        try:
            exec(compile(TransformerManager().transform_cell(cell_source(cell)), f"cell {number}", "exec"), names)
        except Exception as error:
            missing = stub_of(error)
            if missing and task_order(missing) < first.order:  # it builds on a task that stands in an earlier notebook
                return ""
            return f"cell {number} raises {type(error).__name__}: {error}"
    return ""
