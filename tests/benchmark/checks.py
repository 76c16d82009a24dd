"""Seconds of each `check("2.1")` where it stands: `python tests/benchmark/checks.py [NOTEBOOK…]`, all if none is named.

Each notebook is run up to its last check in a kernel of its own, so that what was imported before counts as it does for
a learner. Processor time is what counts; real time is shown beside it. Under 2 s each is what the course promises.
"""
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from milestones.notebooks import ROOT, all_notebooks

CHECK = re.compile(r'check\("([\d.]+)"\)\s*')
TIMED = """from time import perf_counter, process_time
before = process_time(), perf_counter()
verdict = check("{task}")
spent = [now - then for now, then in zip((process_time(), perf_counter()), before, strict=True)]
print("{task} {{:.2f}} {{:.2f}}".format(*spent), verdict.passed)"""


def timed(path: Path) -> list[str]:
    """One line for each check of a notebook: task, processor seconds, real seconds, whether it passed."""
    notebook = nbformat.read(path, as_version=4)
    found = [(cell, match[1]) for cell in notebook.cells if (match := CHECK.fullmatch(cell.source))]
    if not found:
        return []
    notebook.cells = notebook.cells[:notebook.cells.index(found[-1][0]) + 1]
    for cell, task in found:
        cell.source = TIMED.format(task=task)
    NotebookClient(notebook, timeout=600, kernel_name="python3",
                   resources={"metadata": {"path": str(path.parent)}}).execute()
    return [cell.outputs[-1].text.strip() for cell, _ in found]


if __name__ == "__main__":
    for notebook in [Path(name).resolve() for name in sys.argv[1:]] or all_notebooks():
        for line in timed(notebook):
            sys.stdout.write(f"{line}  {notebook.relative_to(ROOT / 'nbs')}\n")
            sys.stdout.flush()
