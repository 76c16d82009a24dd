"""Do a milestone's notebooks run, from the top through the check of the last task? pytest with nbval says so.

`python -m milestones.running_notebooks` is the process in the box (apart.py); nbval starts the notebook's own kernel
there, which has no way to the stream that the answer takes. A cell at the end that must fail notices a kernel that
lets everything pass.
"""
import os
import re
import resource
import shutil
import time
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any

from milestones.apart import Say, ask, serve
from milestones.beside import NOTEBOOKS, shared_out
from milestones.checking import BLOCKED, ERROR, FAILED, PASSED, UNATTEMPTED
from milestones.children import TOO_LONG
from milestones.running import Limits
from milestones.stubs import MESSAGE
from milestones.tasks import DIRECTIVE, Task, cell_source, read_notebook, set_source, write_notebook

SECONDS, WHOLE_SECONDS = 90, 600  # of computing, for one notebook through its last check, and to its last cell
LONGEST_CELL = 600  # real seconds, on a machine that others use too
MEMORY = 12 * 2**30  # bytes of addresses: torch alone maps several, whatever it uses
COLOR = re.compile(r"\x1b\[[0-9;]*m")
CANARY = "this cell must fail"


def run_notebooks(milestone: dict[str, Any], tasks: list[Task], work: Path, place: Path, kit: Path,
                  whole: bool = False) -> list[dict[str, Any]]:
    """The report's entry for each notebook of the milestone that holds tasks; its points follow those of its tasks."""
    own = [task for task in tasks if task.milestone == milestone["milestone"]]
    names, entries = list(dict.fromkeys(task.notebook for task in own)), []
    for name, share in zip(names, shared_out(NOTEBOOKS, len(names)), strict=True):
        ids = {task.id for task in own if task.notebook == name}
        graded = [task for task in milestone["tasks"] if task["task"] in ids]
        begun = time.monotonic()
        if all(task["state"] == UNATTEMPTED for task in graded):
            found = {"state": UNATTEMPTED, "what": "none of its tasks is written yet", "cells": 0, "ran": 0}
        elif not share_of_points(graded):
            found = {"state": BLOCKED, "what": "not run: its tasks got no points yet", "cells": 0, "ran": 0}
        elif slow := endless(graded):
            found = {"state": BLOCKED, "what": f"not run: task {slow} does not come to an end", "cells": 0, "ran": 0}
        else:
            found = run_notebook(name, work, place, kit, whole)
        right = share_of_points(graded) if found["state"] == PASSED else 0.0
        entries.append({"notebook": f"nbs/{name}", **found, "points": round(share * right, 2), "max_points": share,
                        "seconds": round(time.monotonic() - begun, 1)})
    return entries


def endless(tasks: list[dict[str, Any]]) -> str:
    """The first task of which a check ran out of time; "" where none did."""
    return next((task["task"] for task in tasks for check in task["checks"] if check["what"].startswith(TOO_LONG)), "")


def share_of_points(tasks: list[dict[str, Any]]) -> float:
    """How much of their points some tasks got, from 0 to 1; hidden checks apart."""
    checks = [check for task in tasks for check in task["checks"] if not check["hidden"]]
    full = sum(check["max_points"] for check in checks)
    return sum(check["points"] for check in checks) / full if full else 0.0


def run_notebook(name: str, work: Path, place: Path, kit: Path, whole: bool) -> dict[str, Any]:
    """Run one notebook in the box: {"state", "what", "cells", "ran"}."""
    if not (work / "nbs" / name).is_file():
        return {"state": FAILED, "what": f"nbs/{name} is not there", "cells": 0, "ran": 0}
    request = {"do": "notebook", "work": str(work), "notebook": name, "whole": whole}
    said, ended = ask(request, place, kit, work, limits=Limits(), module="milestones.running_notebooks")
    found = next((message["ran"] for message in said if "ran" in message), None)
    return found or {"state": ERROR, "what": ended, "cells": 0, "ran": 0}


def shortened(notebook: dict, whole: bool) -> dict:
    """The notebook through its last check, no cell let off, and a last cell that must fail."""
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and cell_source(cell).strip()]
    last = [place for place, cell in enumerate(code)
            if DIRECTIVE.search(cell_source(cell)) or cell_source(cell).startswith("check(")]
    cells = code if whole else code[:max(last, default=-1) + 1]
    for cell in cells:
        cell["metadata"] = {}
        set_source(cell, "\n".join(line for line in cell_source(cell).splitlines() if "NBVAL_" not in line))
    canary = {"cell_type": "code", "id": "canary", "metadata": {}, "outputs": [], "execution_count": None,
              "source": f"raise RuntimeError({CANARY!r})"}
    return {**notebook, "cells": [*cells, canary]}


class Ran:
    """The pytest plug-in that keeps what became of each cell."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.failed:
            self.outcomes.append((report.outcome, COLOR.sub("", str(report.longrepr or ""))))


def outcomes_of(path: Path) -> list[tuple[str, str]]:
    """Outcomes of a notebook's cells, up to the first that fails."""
    import nbval.kernel
    import nbval.plugin
    import pytest

    sockets = str(path.parent / "kernel")  # in files: the box has no network
    nbval.kernel.KernelManager = partial(nbval.kernel.KernelManager, transport="ipc", ip=sockets)
    nbval.plugin.RunningKernel = watched(nbval.kernel.RunningKernel)
    ran = Ran()
    pytest.main(["-p", "no:cacheprovider", "--disable-plugin-autoload", "-p", "nbval.plugin",
                 "--noconftest", "-c", os.devnull, f"--rootdir={path.parent}", "--nbval-lax", "--nbval-current-env",
                 "--maxfail=1", "--capture=no", f"--nbval-cell-timeout={LONGEST_CELL}", str(path)], [ran])
    return ran.outcomes


def watched(kernel: type) -> type:
    """nbval's kernel, with an eye on its process: by itself it waits half an hour for one that has ended."""
    class WatchedKernel(kernel):
        def await_reply(self, msg_id: str, timeout: float) -> None:
            stop = time.monotonic() + timeout
            while True:
                try:
                    return super().await_reply(msg_id, timeout=1)
                except Empty:
                    if not self.is_alive():
                        raise RuntimeError("the kernel was ended in the middle of it") from None
                    if time.monotonic() > stop:
                        raise

    return WatchedKernel


def judged(outcomes: list[tuple[str, str]], cells: int) -> dict[str, Any]:
    """What the outcomes say; the last cell is the canary."""
    ran = [outcome for outcome, _ in outcomes].count("passed")
    said = outcomes[-1][1] if outcomes else "nbval found no cell"
    if ran == cells - 1 and CANARY in said:
        return {"state": PASSED, "what": "", "cells": ran, "ran": ran}
    if ran >= cells - 1:
        what, state = "the notebook was tampered with: a cell that must fail did not", ERROR
    else:
        stub = next((found for line in said.splitlines() if (found := MESSAGE.search(line.partition(": ")[2]))), None)
        state = BLOCKED if stub else FAILED
        what = f"code cell {ran + 1} stops: " + (f"task {stub[1]} is not written yet" if stub else last_words(said))
    return {"state": state, "what": what, "cells": cells - 1, "ran": min(ran, cells - 1)}


def last_words(said: str) -> str:
    """The error itself, out of what nbval prints around it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.partition(":")[0].replace(".", "").isidentifier() and ": " in line]
    return (errors or lines or ["no reason was given"])[-1].removeprefix("pytest plugin exception: ")[:300]


def run_in_box(request: dict[str, Any], say: Say, alone: bool) -> None:
    """Copy the work folder to where it may be written, run the notebook, and say what came out."""
    seconds = WHOLE_SECONDS if request["whole"] else SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    own = Path(request["scratch"]) / "work"
    shutil.rmtree(own, ignore_errors=True)
    shutil.copytree(request["work"], own)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(own), os.environ["PYTHONPATH"]])
    path = own / "nbs" / request["notebook"]
    try:
        notebook = shortened(read_notebook(path), request["whole"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return say({"ran": {"state": FAILED, "what": f"it is no notebook: {error}", "cells": 0, "ran": 0}})
    write_notebook(path, notebook)
    say({"ran": judged(outcomes_of(path), len(notebook["cells"]))})


if __name__ == "__main__":
    serve({"notebook": run_in_box})
