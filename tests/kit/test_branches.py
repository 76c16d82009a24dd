"""The two branches are made from a commit alone, the same each time, and the skeleton shows no solution."""
import subprocess

import pytest

from milestones.branches import BranchError, build
from milestones.tasks import find_tasks


def git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(course):
    (course / ".gitignore").write_text(".venv\n__pycache__/\n")
    (course / "tests").mkdir()
    (course / "tests/test_author.py").write_text("def test_nothing(): pass\n")
    git(course, "init", "-q", "-b", "main")
    git(course, "add", "-A")
    git(
        course,
        "-c",
        "user.name=Ada",
        "-c",
        "user.email=a@b.c",
        "commit",
        "-q",
        "-m",
        "all",
        "--date=2026-01-02T03:04:05+0200",
    )
    return course


def test_the_same_commit_gives_the_same_branches_and_leaves_the_work_tree_alone(repository):
    (repository / "nbs/02_lora/01_scale.ipynb").write_text("changed, not committed")
    before = git(repository, "status", "--porcelain")
    first = [build(repository, kind) for kind in ("skeleton", "solution")]
    assert [build(repository, kind) for kind in ("skeleton", "solution")] == first
    assert git(repository, "status", "--porcelain") == before
    assert git(repository, "rev-parse", "skeleton^{tree}", "solution^{tree}").split() == [
        branch.tree for branch in first
    ]
    assert (
        git(repository, "log", "--format=%an %aI %cI", "skeleton")
        == "Ada 2026-01-02T03:04:05+02:00 2026-01-02T03:04:05+02:00"
    )


def test_the_skeleton_is_an_orphan_without_solution_lines_or_authors_files(repository):
    build(repository, "skeleton")
    assert git(repository, "rev-list", "--count", "skeleton") == "1"
    files = git(repository, "ls-tree", "-r", "--name-only", "skeleton").splitlines()
    assert "milestones/02_lora/checks.py" in files and "finetune_lib/lora/scale.py" in files
    assert not [file for file in files if "mistakes" in file or "alternatives" in file or file.startswith("tests/")]
    library = git(repository, "show", "skeleton:finetune_lib/lora/scale.py")
    assert 'raise NotImplementedError("task 2.3: write Layer.forward")' in library and "# TODO 2: add what" in library
    assert "base_answer" not in library


def test_the_solution_reads_without_task_marks_and_is_main_otherwise(repository, tmp_path):
    build(repository, "solution")
    git(repository, "worktree", "add", "-q", str(tmp_path / "solution"), "solution")
    assert find_tasks(tmp_path / "solution") == []
    changed = git(repository, "diff", "--name-only", "main", "solution").splitlines()
    assert changed == ["nbs/02_lora/01_scale.ipynb"]


def test_a_branch_that_is_checked_out_is_not_moved(repository):
    build(repository, "skeleton")
    git(repository, "checkout", "-q", "skeleton")
    with pytest.raises(BranchError, match="go to main first"):
        build(repository, "skeleton", "main")
