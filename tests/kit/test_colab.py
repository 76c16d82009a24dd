"""Colab by imitation: an empty folder, its environment variables, packages without the course, and one notebook."""
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from milestones.branches import build
from milestones.colab import IDS, badge_and_cell, missing, requirements, set_up
from milestones.tasks import DIRECTIVE

ROOT = Path(__file__).parents[2]
NOTEBOOK = "nbs/02_lora/01_adapter.ipynb"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """What would be published of this work tree: a repository with the branches skeleton and solution."""
    folder = tmp_path_factory.mktemp("published")
    for name in git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all")
    for kind in ("skeleton", "solution"):
        build(folder, kind)
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """A Python with the packages of this one, but without the course: `.pth` files of the other are not read."""
    folder = tmp_path_factory.mktemp("python")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "packages.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin/python"


@pytest.fixture
def colab(tmp_path, python, published, monkeypatch):
    """An empty folder in which kernels run as in Colab; gives the folder."""
    content, kernel = tmp_path / "content", tmp_path / "jupyter/kernels/colab"
    content.mkdir()
    kernel.mkdir(parents=True)
    settings = {"COLAB_RELEASE_TAG": "release-colab_20261101", "COLAB_GPU": "0", "HOME": str(tmp_path),
                "COURSE_REPOSITORY": published.as_uri(), "PIP_NO_INDEX": "1", "MPLBACKEND": "Agg"}
    kernel.joinpath("kernel.json").write_text(json.dumps({
        "argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "Colab",
        "language": "python", "env": settings}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for name in ("PYTHONPATH", "FINETUNE_DATA"):
        monkeypatch.delenv(name, raising=False)
    return content


def text_of(cell: nbformat.NotebookNode) -> str:
    """All that a cell said."""
    return "".join(str(part) for output in cell.outputs
                   for part in (output.get("text", ""), output.get("data", {}).get("text/plain", ""),
                                output.get("evalue", "")))


def files(folder: Path) -> dict[Path, float]:
    """Every file with the time of its last change, git's own and compiled ones apart."""
    return {path: path.stat().st_mtime for path in folder.rglob("*")
            if path.is_file() and not {".git", "__pycache__"} & set(path.parts)}


@pytest.mark.slow
def test_a_notebook_alone_in_colab_goes_from_open_to_right(colab, published):
    (colab / "01_adapter.ipynb").write_text(git(published, "show", f"skeleton:{NOTEBOOK}"), encoding="utf-8")
    notebook = nbformat.read(colab / "01_adapter.ipynb", as_version=4)
    task = next(index for index, cell in enumerate(notebook.cells) if "#| task: 2.1 " in cell.source)
    check = next(index for index, cell in enumerate(notebook.cells) if cell.source == 'check("2.1")')
    set_up_cell = next(index for index, cell in enumerate(notebook.cells) if cell.id == IDS[1])
    client = NotebookClient(notebook, timeout=300, kernel_name="colab", allow_errors=True,
                            resources={"metadata": {"path": str(colab)}})

    def run(*indices: int) -> str:
        for index in indices:
            client.execute_cell(notebook.cells[index], index)
        return text_of(notebook.cells[indices[-1]])

    code = [index for index in range(check) if notebook.cells[index].cell_type == "code"]
    with client.setup_kernel():
        assert run(set_up_cell) == "The course is ready.\n"
        first = files(colab)
        assert run(set_up_cell) == "The course is ready.\n", "a second time"
        assert files(colab) == first
        run(*(index for index in code if index < task))
        assert not [said for index in code if index < task for said in notebook.cells[index].outputs
                    if said.output_type == "error"], "what other notebooks build must be there"
        assert "NotImplementedError" in notebook.cells[task].source
        run(*(index for index in code if task <= index))
        assert "not written yet, 0 of" in run(check)
        solved = nbformat.read(ROOT / NOTEBOOK, as_version=4).cells
        solution = next(cell.source for cell in solved if "#| task: 2.1 " in cell.source)
        notebook.cells[task].source = solution.replace("result + update * self.scaling", "result + update")
        run(task)
        assert "✗" in run(check) and "expected:" in text_of(notebook.cells[check])
        notebook.cells[task].source = solution
        run(task)
        said = run(check)
        assert "Task 2.1: right" in said and "✗" not in said
        notebook.cells[check].source = "import finetune_lib; finetune_lib.__file__"
        assert run(check) == repr(str(colab / "course/finetune_lib/__init__.py"))


def test_on_ones_own_machine_the_cell_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("COLAB_")]:
        monkeypatch.delenv(name)
    names, paths = {}, list(sys.path)
    exec(badge_and_cell("x.ipynb")[1], names)  # noqa: S102
    assert set(names) == {"__builtins__", "os"} and sys.path == paths and not list(tmp_path.iterdir())


def test_what_colab_has_stays_in_whatever_version():
    assert missing(["pytest>=999", "pip-that-nobody-wrote>=1", "torch==0.1"]) == ["pip-that-nobody-wrote>=1"]


def test_the_library_and_pytest_are_asked_for_and_the_kernels_own_shell_is_not():
    names = {line.partition(">")[0] for line in requirements(ROOT)}
    assert {"torch", "bitsandbytes", "pytest"} <= names and not {"ipython", "jupyterlab", "nbdev"} & names
    assert missing(requirements(ROOT)) == []


def test_only_what_is_missing_is_installed(tmp_path, python):
    pytest.importorskip("pip", reason="this environment was made by uv, without pip")
    with zipfile.ZipFile(tmp_path / "lacked_by_colab-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("lacked_by_colab.py", "")
        wheel.writestr("lacked_by_colab-1.0.dist-info/METADATA",
                       "Metadata-Version: 2.1\nName: lacked-by-colab\nVersion: 1.0\n")
        wheel.writestr("lacked_by_colab-1.0.dist-info/WHEEL",
                       "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("lacked_by_colab-1.0.dist-info/RECORD", "")
    code = ("from milestones.colab import install, missing\n"
            "install(missing(['torch', 'lacked-by-colab>=1', 'pytest']))\n"
            "import lacked_by_colab\nassert missing(['lacked-by-colab>=1']) == []")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    site = next(python.parent.parent.glob("lib/python*/site-packages"))
    before = {path.name for path in site.iterdir()}
    subprocess.run([python, "-c", code], check=True, env=environment)
    assert {path.name for path in site.iterdir()} - before <= {
        "lacked_by_colab.py", "lacked_by_colab-1.0.dist-info", "__pycache__"}


def test_without_the_branch_solution_the_learner_is_told(published, tmp_path, monkeypatch, capsys):
    git(tmp_path, "clone", "-q", "--single-branch", "--branch", "skeleton", published.as_uri(), "lonely")
    git(tmp_path / "lonely", "remote", "set-url", "origin", (tmp_path / "gone").as_uri())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    set_up(tmp_path / "lonely")
    assert "without the branch `solution`" in capsys.readouterr().out


@pytest.mark.parametrize("branch", ["skeleton", "solution"])
def test_both_branches_keep_badge_and_cell(published, branch):
    cells = json.loads(git(published, "show", f"{branch}:{NOTEBOOK}"))["cells"]
    assert ["".join(cell["source"]) for cell in cells[1:3]] == list(badge_and_cell(NOTEBOOK.removeprefix("nbs/")))
    tasks = [cell for cell in cells if cell["cell_type"] == "code" and DIRECTIVE.search("".join(cell["source"]))]
    assert bool(tasks) == (branch == "skeleton")
