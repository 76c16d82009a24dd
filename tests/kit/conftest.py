"""A tiny course of its own: one milestone, four tasks, checks, mistakes and alternatives."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from milestones.learning import recall, remember
from milestones.starting import start

SAMPLE = Path(__file__).parent / "sample"
SETTINGS = '[tool.nbdev]\nlib_path = "finetune_lib"\nnbs_path = "nbs"\nput_version_in_init = false\n'


def notebook(cells: list[str]) -> str:
    """Notebook text from cell sources; one that begins with `%% ` is prose."""
    made = []
    for number, source in enumerate(cells):
        kind = "markdown" if source.startswith("%% ") else "code"
        cell = {
            "cell_type": kind,
            "id": f"cell{number}",
            "metadata": {},
            "source": source.removeprefix("%% ").splitlines(True),
        }
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    return json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


def write_notebook(path: Path, cells: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(notebook(cells), encoding="utf-8")


def export(folder: Path) -> None:
    subprocess.run([Path(sys.executable).parent / "nbdev-export"], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def write():
    return write_notebook


@pytest.fixture(scope="session")
def made_course(tmp_path_factory) -> Path:
    """The sample course, written and exported once."""
    folder = tmp_path_factory.mktemp("course")
    (folder / "pyproject.toml").write_text(SETTINGS)
    cells = (SAMPLE / "notebook.py").read_text().split("\n# %%\n")
    write_notebook(folder / "nbs/02_lora/01_scale.ipynb", [cell.strip("\n") for cell in cells[1:]])
    shutil.copytree(SAMPLE / "02_lora", folder / "milestones/02_lora", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "finetune_lib").mkdir()
    (folder / "finetune_lib/__init__.py").write_text("")
    export(folder)
    return folder


@pytest.fixture
def course(made_course, tmp_path) -> Path:
    """A copy of the sample course that a test may change."""
    return Path(shutil.copytree(made_course, tmp_path / "course"))


@pytest.fixture(scope="session")
def made_work(made_course, tmp_path_factory) -> tuple[Path, Path]:
    """The sample course with data, and a learner's folder made from it, once."""
    place = tmp_path_factory.mktemp("started")
    source = Path(shutil.copytree(made_course, place / "course"))
    (source / "data/base").mkdir(parents=True)
    return source, start(place / "work", source=source, milestone=2)


@pytest.fixture
def work(course, made_work, tmp_path) -> Path:
    """A copy of the learner's folder that a test may change, tied to the test's own course."""
    folder = Path(shutil.copytree(made_work[1], tmp_path / "work", symlinks=True))
    (course / "data/base").mkdir(parents=True)
    remember(folder, "course.json", recall(folder, "course.json") | {"reference": str(course)})
    (folder / "data").unlink()
    (folder / "data").symlink_to(course / "data")
    return folder


@pytest.fixture
def kit(course) -> Path:
    return course / "milestones"


@pytest.fixture
def export_course():
    return export
