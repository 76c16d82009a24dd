"""Does the skeleton show what it must not? A leak is a line that main has in task bodies and nowhere else."""

import re
from pathlib import Path

from milestones.listed import AUTHORS_FILES
from milestones.tasks import Task, blank, body_lines, cell_source, read_notebook

SHORTEST = 20  # characters of a normalized line that can be a leak
TEXT = {".py", ".md", ".toml", ".ini", ".yaml", ".yml", ".json", ".txt", ".cfg", ""}
LARGEST = 2_000_000  # bytes of a file that is looked into; larger ones are data
AUTHORS = (*AUTHORS_FILES, "AUDIT.md")


def normalized(line: str) -> str:
    return re.sub(r"\s+", " ", line).strip()


def leaked_lines(main: Path, skeleton: Path, tasks: list[Task]) -> list[tuple[str, str, str]]:
    """Every (task, line, file of the skeleton) that is a leak."""
    elsewhere = {line for path in text_files(main) if not generated(path.relative_to(main))
                 for line in lines_of(path, tasks, main)}
    secret = {line: task.id for task in tasks for line in map(normalized, body_lines(task.source))
              if len(line) >= SHORTEST and line not in elsewhere}
    found = []
    for path in text_files(skeleton):
        shown = set(lines_of(path))
        found += [(task, line, str(path.relative_to(skeleton))) for line, task in secret.items() if line in shown]
    return found


def generated(path: Path) -> bool:
    """Files of main that repeat task bodies: the exported library, and what the authors keep for the audit."""
    return path.parts[0] == "finetune_lib" or path.name in AUTHORS


def text_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()
            and path.suffix in TEXT | {".ipynb"} and path.stat().st_size < LARGEST
            and not {".git", ".venv", "__pycache__", "runs"} & set(path.relative_to(folder).parts)]


def lines_of(path: Path, tasks: list[Task] = (), root: Path = Path()) -> list[str]:
    """Normalized lines of a file; of a notebook those of its cells, task cells as they are once blanked."""
    if path.suffix != ".ipynb":
        return [normalized(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    sources = {index: cell_source(cell) for index, cell in enumerate(read_notebook(path)["cells"])}
    for task in tasks:
        if root / "nbs" / task.notebook == path:
            sources[task.cell] = blank(task.source)
    return [normalized(line) for source in sources.values() for line in source.splitlines()]
