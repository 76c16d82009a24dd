"""What an author lists: known mistakes, which a check must catch, and other right ways, which all must pass."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milestones.tasks import DIRECTIVE, Task

AUTHORS_FILES = ("mistakes.py", "alternatives.py")  # stay on main: learners do not get them


@dataclass(frozen=True)
class Mistake:
    """A wrong text inside a task: `old` stands exactly once in the cell; `check` must fail and say `hint`."""

    name: str
    task: str
    old: str
    new: str
    check: str  # name of the check that must catch it
    hint: str  # words that the likely reason (or the message) must hold

    def applied(self, task: Task) -> str:
        return replaced_once(task, self.old, self.new, self.name)


@dataclass(frozen=True)
class Alternative:
    """A right answer written in another way: one text for another, or the whole cell when `old` is empty."""

    name: str
    task: str
    old: str
    new: str

    def applied(self, task: Task) -> str:
        if self.old:
            return replaced_once(task, self.old, self.new, self.name)
        return f"#| export\n{DIRECTIVE.search(task.source)[0]}{self.new.strip()}"


def replaced_once(task: Task, old: str, new: str, name: str) -> str:
    count = task.source.count(old)
    if count != 1:
        raise ValueError(
            f"{name!r}: its old text must stand exactly once in task {task.id}, it stands there {count} times: {old!r}"
        )
    return task.source.replace(old, new)


def load(kit: Path, file: str, name: str, milestone: int | None = None) -> list[Any]:
    """What is called `name` in each milestone's `file`; none where the file is not there."""
    found = []
    for path in sorted(kit.glob(f"[0-9][0-9]_*/{file}")):
        if milestone is None or int(path.parent.name[:2]) == milestone:
            spec = importlib.util.spec_from_file_location(f"milestones_{path.parent.name}_{path.stem}", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            found.append(getattr(module, name))
    return found


def mistakes(kit: Path, milestone: int | None = None) -> list[Mistake]:
    return [entry for entries in load(kit, "mistakes.py", "MISTAKES", milestone) for entry in entries]


def alternatives(kit: Path, milestone: int | None = None) -> list[Alternative]:
    return [entry for entries in load(kit, "alternatives.py", "ALTERNATIVES", milestone) for entry in entries]


def pages(kit: Path, milestone: int) -> dict[str, str]:
    """The mistakes that a milestone must catch → "2.1 name of a mistake", or "tests/file.py::test"."""
    return {words: place for page in load(kit, "mistakes.py", "PAGE", milestone) for words, place in page.items()}
