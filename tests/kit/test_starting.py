"""A work folder is made once, holds all it needs, survives a move, and is renewed without touching notebooks."""
import os
import shutil
import subprocess

import pytest

from milestones.branches import build
from milestones.learning import CourseError, is_open, recall
from milestones.starting import start, update
from milestones.tasks import find_tasks

NEXT = ["#| default_exp lora.more", "%% ## Twice", '''#| export
#| task: 3.1
def twice(x: int) -> int:
    """Two of it."""
    # 1. add it to itself
    return x + x''']


def contents(folder):
    """Every file's bytes; the git repository's own apart."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts}


def git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder):
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=Ada", "-c", "user.email=a@b.c", "commit", "-q", "-m", "all")


@pytest.fixture
def longer(course, write, export_course):
    """The sample with a second milestone."""
    write(course / "nbs/03_more/01_more.ipynb", NEXT)
    export_course(course)
    return course


def test_a_work_folder_is_a_repository_of_its_own_with_open_tasks(work):
    assert all(is_open(task) for task in find_tasks(work))
    assert git(work, "log", "--oneline").count("\n") == 0 and git(work, "status", "--porcelain") == ""
    assert not list(work.rglob("mistakes.py")) and not list(work.rglob("alternatives.py"))


def test_a_moved_folder_still_takes_its_own_library_and_its_commands_work(work, tmp_path):
    moved = shutil.move(work, tmp_path / "my course, né à Zürich")
    code = "import finetune_lib.lora.scale as m, numpy; print(m.__file__)"
    said = subprocess.run([moved / ".venv/bin/python", "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(moved / "finetune_lib/lora/scale.py")
    for command in ("course", "pytest", "nbdev-export"):
        done = subprocess.run([moved / ".venv/bin" / command, "--help"], cwd=moved, capture_output=True, text=True)
        assert done.returncode == 0 and "usage" in done.stdout.lower(), done.stderr


def test_jupyter_finds_its_pages_and_starts_the_folders_own_python(work):
    code = ("from jupyterlab.commands import get_app_dir; from jupyter_client.manager import KernelManager\n"
            "print(get_app_dir()); print(KernelManager(kernel_name='python3').format_kernel_cmd()[0])")
    python = work / ".venv/bin/python"
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=work).stdout.split("\n")
    assert os.path.isfile(os.path.join(said[0], "static/index.html")) and said[1] == str(python)


def test_a_folder_that_holds_files_is_not_touched(work, course):
    before = contents(work)
    with pytest.raises(CourseError, match="never overwritten"):
        start(work, source=course)
    assert contents(work) == before


@pytest.mark.parametrize("milestone", [0, 9])
def test_a_milestone_that_is_not_there_is_refused(course, tmp_path, milestone):
    with pytest.raises(CourseError, match=f"no milestone {milestone} to begin with; there are 2 to 2"):
        start(tmp_path / "work", milestone, course)
    assert not (tmp_path / "work").exists()


def test_earlier_milestones_come_solved_on_request(longer, tmp_path):
    tasks = find_tasks(start(tmp_path / "later", 3, longer))
    assert [task.id for task in tasks if is_open(task)] == ["3.1"] and len(tasks) == 5


def test_a_checkout_of_the_skeleton_gives_the_same_start(longer, tmp_path):
    commit(longer)
    for kind in ("skeleton", "solution"):
        build(longer, kind)
    git(tmp_path, "clone", "-q", "--branch=skeleton", str(longer), "skeleton")
    one, two = start(tmp_path / "one", 3, longer), start(tmp_path / "two", 3, tmp_path / "skeleton")
    assert git(one, "rev-parse", "HEAD:nbs", "HEAD:finetune_lib") == git(two, "rev-parse", "HEAD:nbs",
                                                                         "HEAD:finetune_lib")


def test_without_a_reference_nothing_comes_solved_and_nothing_is_made(longer, tmp_path):
    commit(longer)
    build(longer, "skeleton")
    git(tmp_path, "clone", "-q", "--branch=skeleton", "--single-branch", str(longer), "skeleton")
    with pytest.raises(CourseError, match="git -C .*skeleton fetch origin solution:solution"):
        start(tmp_path / "work", 3, tmp_path / "skeleton")
    assert not (tmp_path / "work").exists()
    assert is_open(find_tasks(start(tmp_path / "work", 2, tmp_path / "skeleton"))[0])


def test_without_git_or_a_place_to_write_nothing_is_made(course, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(CourseError, match="cannot be made: Not a directory; choose a place"):
        start(tmp_path / "file/work", source=course)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CourseError, match="git is not installed; get it from"):
        start(tmp_path / "work", source=course)
    assert not (tmp_path / "work").exists()


def test_a_start_that_fails_on_its_way_leaves_nothing(course, tmp_path, monkeypatch):
    broken = tmp_path / "bin/git"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no space left >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent), prepend=os.pathsep)
    with pytest.raises(CourseError, match="no space left"):
        start(tmp_path / "work", source=course)
    assert not (tmp_path / "work").exists()


def test_where_no_course_is_the_message_says_how_to_get_one(course, work, tmp_path):
    with pytest.raises(CourseError, match="there are no notebooks; get one: git clone --branch skeleton https"):
        start(tmp_path / "new", source=tmp_path)
    with pytest.raises(CourseError, match=r"made from the course itself: .*/bin/course start"):
        start(tmp_path / "new", source=work)
    with pytest.raises(CourseError, match="must stand outside of the course"):
        start(course / "work", source=course)
    start(course / "../beside", source=course)
    assert (tmp_path / "beside/nbs").is_dir(), "a path that goes out of the course again stands beside it"


def test_an_update_mends_a_folder_whose_course_moved_and_touches_no_notebook(work, course, tmp_path):
    notebooks = contents(work / "nbs")
    moved = shutil.move(course, tmp_path / "elsewhere")
    (moved / "milestones/02_lora/checks.py").write_text("# newer\n")
    assert not (work / "data").exists()
    aside = update(work, moved)
    assert (work / "data/base").is_dir() and recall(work, "course.json")["reference"] == str(moved)
    assert (work / "milestones/02_lora/checks.py").read_text() == "# newer\n"
    assert "import pytest" in (aside / "milestones/02_lora/checks.py").read_text()
    assert contents(work / "nbs") == notebooks and len(find_tasks(work)) == 4


def test_a_clone_of_a_work_folder_is_made_whole_by_an_update(work, course, tmp_path):
    git(tmp_path, "clone", "-q", str(work), "clone")
    update(tmp_path / "clone", course)
    assert (tmp_path / "clone/data/base").is_dir() and (tmp_path / "clone/.venv/bin/course").is_file()
    assert git(tmp_path / "clone", "status", "--porcelain") == ""


def test_what_is_not_a_work_folder_is_not_updated(course):
    with pytest.raises(CourseError, match="is not a work folder; make one: course start DIR"):
        update(course, course)
