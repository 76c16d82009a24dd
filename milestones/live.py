"""`check("2.3")`: the checks of one task, on what the open notebook holds."""
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from milestones.checking import FAILED, KIT, CheckResult, Engine, check_files, run_checks, settle
from milestones.showing import Verdict, where_to_read
from milestones.tasks import Task, find_tasks


def course_folder(start: Path | None = None) -> Path | None:
    """The nearest folder above that holds the notebooks; else the one the kit stands in; else None."""
    start = (start or Path.cwd()).resolve()
    found = (folder for folder in (start, *start.parents, KIT.parent) if (folder / "nbs" / "00_start.ipynb").is_file())
    return next(found, None)


@functools.cache
def known_tasks(folder: Path | None) -> tuple[Task, ...]:
    return tuple(find_tasks(folder)) if folder else ()


def check_live(task: str, namespace: dict[str, Any], kit: Path = KIT, folder: Path | None = None) -> Verdict:
    """Run a task's checks; where one fails through an earlier task, that task's too, to know whose fault it is."""
    tasks = known_tasks(folder or course_folder())
    with random_state_kept():
        results = run_on(namespace, {task}, kit, tasks)
        if not results:
            return Verdict(task, note="there is no check for it")
        earlier = {need for result in results if result.state == FAILED for need in result.needs}
        others = [other for milestone in {need.split(".")[0] for need in earlier}
                  for other in run_on(namespace, earlier, kit, tasks, int(milestone))]
    read = where_to_read(next((known for known in tasks if known.id == task), None))
    return Verdict(task, [result for result in settle(results + others) if result.check.task == task], read=read)


def run_on(namespace: dict[str, Any], chosen: set[str], kit: Path, tasks: tuple[Task, ...],
           milestone: int | None = None) -> list[CheckResult]:
    if milestone is None:
        milestone = int(next(iter(chosen)).split(".")[0])
    engine = Engine(tasks, lambda check: check.task in chosen, namespace=namespace)
    return run_checks(check_files(kit, milestone), engine)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """A check draws numbers of its own: the notebook's own sequence goes on as if there had been none."""
    import random

    import numpy as np

    torch = sys.modules.get("torch")
    before = random.getstate(), np.random.get_state(), torch and torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        if torch:
            torch.set_rng_state(before[2])
