"""Does the skeleton show what it must not? A leak is a line of a task's body that other code of main does not hold.

Looked for in all that a learner can read there: prose, code, stored outputs, checks, hints, the exported library.
"""

import re
from pathlib import Path

from milestones.listed import AUTHORS_FILES
from milestones.tasks import Task, blank, body_lines, cell_source, read_notebook

SHORTEST = 20  # characters of a normalized line that can be a leak
TEXT = {".py", ".md", ".toml", ".ini", ".yaml", ".yml", ".json", ".txt", ".cfg", ""}
LARGEST = 2_000_000  # bytes of a file that is looked into; larger ones are data
AUTHORS = (*AUTHORS_FILES, "AUDIT.md")
NOT_CODE = ("finetune_lib", "milestones", "tests")  # of main: what is exported from tasks, or judges them


def normalized(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def leaked_lines(main: Path, skeleton: Path, tasks: list[Task]) -> list[tuple[str, str, str]]:
    """Every (task, line, file of the skeleton) that is a leak."""
    innocent = "\n".join(other_code(main, tasks))
    secret = {line: task.id for task in tasks for line in map(normalized, body_lines(task.source))
              if len(line) >= SHORTEST and line not in innocent}
    found = []
    for path in text_files(skeleton):
        shown = normalized(readable(path))
        found += [(task, line, str(path.relative_to(skeleton))) for line, task in secret.items() if line in shown]
    return found


def other_code(main: Path, tasks: list[Task]) -> list[str]:
    """Main's code outside of task bodies, in normalized lines: what also stands there gives nothing away."""
    lines = []
    for path in text_files(main):
        if path.relative_to(main).parts[0] in NOT_CODE or path.suffix not in (".py", ".ipynb"):
            continue
        lines += (code_around(path, [task for task in tasks if main / "nbs" / task.notebook == path])
                  if path.suffix == ".ipynb" else path.read_text(encoding="utf-8", errors="replace").splitlines())
    return list(map(normalized, lines))


def code_around(notebook: Path, tasks: list[Task]) -> list[str]:
    """The lines of a notebook's code cells, task cells as they are once blanked."""
    blanked = {task.cell: blank(task.source) for task in tasks}
    sources = [blanked.get(index, cell_source(cell)) for index, cell in enumerate(read_notebook(notebook)["cells"])
               if cell["cell_type"] == "code"]
    return [line for source in sources for line in source.splitlines()]


def readable(path: Path) -> str:
    """All the text of a file that can be read; of a notebook its cells and their outputs."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8", errors="replace")
    return "\n".join(text for cell in read_notebook(path)["cells"]
                     for text in (cell_source(cell), *texts(cell.get("outputs", []))))


def texts(value: object) -> list[str]:
    """The strings in a notebook's outputs; a list of strings is one text in lines."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ["".join(value)]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in texts(part)]


def text_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()
            and path.suffix in TEXT | {".ipynb"} and path.stat().st_size < LARGEST
            and not {".git", ".venv", "__pycache__", "runs"} & set(path.relative_to(folder).parts)]
