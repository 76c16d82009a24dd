"""The first cell of every notebook: in Google Colab it brings the course; on one's own machine it does nothing.

A notebook opened in Colab stands alone: no library, no data, and nothing of what was written in other notebooks. The
cell takes the branch `skeleton` for tasks, checks and data; `set_up` adds the packages that Colab lacks, and the
library of the branch `solution`, so that what other notebooks build is there. What this notebook's own cells define
comes first: `check` looks at them before it looks at the library.

`python -m milestones.colab` writes badge and cell into all notebooks, from the public address in settings.ini.
"""
import importlib
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS_OWN = {"ipython"}  # Colab's kernel runs on its own version, which must stay
CHECKS_NEED = "pytest"  # of the packages for development, the only one that `check` asks for
IDS = ("colab-badge", "colab-set-up")
BADGE = """[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]\
(https://colab.research.google.com/github/{place}/blob/skeleton/nbs/{notebook}) In Colab, what other notebooks \
build comes solved, and what you write stays in this notebook: keep a copy in your Drive."""
CELL = """\
import os

if any(name.startswith("COLAB_") for name in os.environ):  # in Google Colab, bring library and data; else do nothing
    import subprocess
    import sys

    address = os.environ.get("COURSE_REPOSITORY", "https://github.com/{place}")
    if not os.path.isdir("course"):
        subprocess.run(["git", "clone", "-q", "--depth=1", "--branch=skeleton", address, "course"], check=True)
    sys.path.insert(0, os.path.abspath("course"))
    from milestones.colab import set_up

    set_up()"""


def settings(root: Path = ROOT):
    config = ConfigParser(delimiters=["="])
    config.read(root / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def set_up(course: Path = ROOT) -> None:
    """Make a clone of the skeleton usable in this kernel; a second call finds everything there and changes nothing."""
    sys.path[:] = [str(course), *(place for place in sys.path if place != str(course))]
    os.environ["PYTHONPATH"] = str(course)  # for the processes that a notebook starts
    install(missing(requirements(course)))
    solved = take_library(course)
    sys.stdout.write("The course is ready" + ("" if solved else ", without the branch `solution`: what other notebooks "
                                              "build is not written here, and raises NotImplementedError") + ".\n")


def requirements(course: Path) -> list[str]:
    """What the library and its checks need to run, as settings.ini says it."""
    def lines(key: str) -> list[str]:
        return [line.strip() for line in settings(course)[key].splitlines() if line.strip()]

    needed = lines("requirements") + [line for line in lines("dev_requirements") if plain(line) == CHECKS_NEED]
    return [line for line in needed if plain(line) not in KERNELS_OWN]


def plain(requirement: str) -> str:
    """The name of what is required: `torch>=2.8,<2.14` → `torch`."""
    return re.match(r"[\w.-]+", requirement)[0].lower()


def missing(required: list[str]) -> list[str]:
    """Those that are not installed, in whatever version: what Colab has, stays."""
    def absent(requirement: str) -> bool:
        try:
            return not version(plain(requirement))
        except PackageNotFoundError:
            return True
    return [requirement for requirement in required if absent(requirement)]


def install(packages: list[str]) -> None:
    if packages:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *packages], check=True)
        importlib.invalidate_caches()


def take_library(course: Path) -> bool:
    """Put the library of the branch `solution` in place of the skeleton's; returns whether there is one."""
    def git(*arguments: str) -> bool:
        return subprocess.run(["git", *arguments], cwd=course, capture_output=True).returncode == 0

    if not git("rev-parse", "--verify", "solution") and not git("fetch", "--depth=1", "origin", "solution:solution"):
        return False
    return git("checkout", "solution", "--", "finetune_lib")


def badge_and_cell(notebook: str, root: Path = ROOT) -> tuple[str, str]:
    """The text of the two cells for a notebook, named by its path below nbs/."""
    place = f"{settings(root)['user']}/{settings(root)['repo']}"
    return BADGE.format(place=place, notebook=notebook), CELL.format(place=place)


def with_cells(notebook, name: str):
    """The notebook with both cells right after its title, wherever and however they stood before."""
    from nbformat import v4

    texts = badge_and_cell(name)
    rest = [cell for cell in notebook.cells if cell.get("id") not in IDS and cell.source not in texts]
    made = [make(source, id=id) for make, source, id in zip((v4.new_markdown_cell, v4.new_code_cell), texts, IDS,
                                                             strict=True)]
    notebook.cells = [rest[0], *made, *rest[1:]]
    return notebook


def main() -> None:
    import nbformat

    from milestones.notebooks import all_notebooks, normalize, write

    for path in all_notebooks():
        notebook = nbformat.read(path, as_version=4)
        name = path.relative_to(ROOT / "nbs").as_posix()
        if write(path, normalize(with_cells(notebook, name))):
            sys.stdout.write(f"changed  nbs/{name}\n")


if __name__ == "__main__":
    main()
