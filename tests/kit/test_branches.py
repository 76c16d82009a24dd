"""The two branches are made from a commit alone, the same each time, and the skeleton shows no solution."""
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from milestones.branches import AUTHORS_ONLY, BranchError, build, make
from milestones.leaks import leaked_lines
from milestones.learning import hints_for
from milestones.listed import mistakes
from milestones.tasks import find_tasks, handed_out

ROOT = Path(__file__).parents[2]


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
    assert 'raise NotImplementedError("task 2.3: write Layer.forward;' in library and "# TODO 2: add what" in library
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


def test_every_clone_gives_the_same_hashes_whatever_its_user_has_set(repository, tmp_path):
    settings = {"core.autocrlf": "true", "core.fileMode": "false", "commit.gpgSign": "true",
                "i18n.commitEncoding": "latin1", "log.showSignature": "true", "user.name": "Eve", "user.email": "e@v.e"}
    (repository / "my-venv").mkdir()
    for name in ("one", "two"):
        git(tmp_path, "clone", "-q", str(repository), name)
    (tmp_path / "two/.venv").symlink_to(repository / "my-venv")
    for key, value in settings.items():
        git(tmp_path / "two", "config", key, value)
    for kind in ("skeleton", "solution"):
        assert build(tmp_path / "one", kind) == build(tmp_path / "two", kind)
    assert git(tmp_path / "two", "status", "--porcelain") == ""


def test_a_detached_head_builds_and_another_worktrees_branch_is_not_moved(repository, tmp_path):
    git(repository, "checkout", "-q", "--detach")
    made = build(repository, "skeleton")
    git(repository, "worktree", "add", "-q", str(tmp_path / "seen"), "skeleton")
    with pytest.raises(BranchError, match="checked out"):
        build(repository, "skeleton")
    assert git(repository, "rev-parse", "skeleton") == made.commit


def test_what_is_no_repository_and_a_machine_without_git_get_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(BranchError, match="are built from a git repository"):
        build(tmp_path, "skeleton")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BranchError, match="git is not installed"):
        build(tmp_path, "skeleton")


def test_the_solution_keeps_its_outputs_and_the_skeleton_has_none(repository):
    path = repository / "nbs/02_lora/01_scale.ipynb"
    notebook = json.loads(path.read_text())
    notebook["cells"][-1] |= {"execution_count": 5, "outputs": [
        {"output_type": "stream", "name": "stdout", "text": ["5\n"]}]}
    path.write_text(json.dumps(notebook))
    git(repository, "-c", "user.name=Ada", "-c", "user.email=a@b.c", "commit", "-qam", "run")
    shown = {}
    for kind in ("skeleton", "solution"):
        build(repository, kind)
        shown[kind] = json.loads(git(repository, "show", f"{kind}:nbs/02_lora/01_scale.ipynb"))["cells"]
    assert shown["solution"][-1]["outputs"] == notebook["cells"][-1]["outputs"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in shown["skeleton"])


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """This course as it stands, as if it were committed: (main, skeleton, solution, tasks)."""
    place = tmp_path_factory.mktemp("real")
    for name in git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).is_file():
            (place / "main" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place / "main" / name)
    tasks = make(place / "main", place / "skeleton", "skeleton")
    make(place / "main", place / "solution", "solution")
    return place / "main", place / "skeleton", place / "solution", tasks


def test_the_courses_skeleton_has_checks_briefs_and_hints_and_nothing_of_the_authors(real):
    main, skeleton, _, tasks = real
    assert leaked_lines(main, skeleton, tasks) == []
    assert [path for pattern in AUTHORS_ONLY for path in skeleton.glob(pattern)] == []
    assert (main / "tests").is_dir() and mistakes(main / "milestones") and not mistakes(skeleton / "milestones")
    for milestone in {task.milestone for task in tasks}:
        folder = next((skeleton / "milestones").glob(f"{milestone:02d}_*"))
        assert (folder / "checks.py").is_file() and (folder / "README.md").is_file()
    assert all(len(hints_for(task, skeleton / "milestones")) == 2 for task in tasks)


def test_the_courses_skeleton_is_a_learners_and_its_solution_a_readers(real):
    main, skeleton, solution, tasks = real
    assert [task.id for task in handed_out(skeleton)] == [task.id for task in tasks]
    for name in ("README.md", "AGENTS.md"):
        assert (skeleton / name).read_bytes() == (main / "milestones/learner" / name).read_bytes()
    assert find_tasks(solution) == [] and not (solution / ".github").exists()
    marks = {path.relative_to(solution) for path in (solution / "nbs").rglob("*.ipynb")
             if path.read_bytes() != (main / path.relative_to(solution)).read_bytes()}
    assert marks == {Path("nbs", task.notebook) for task in tasks}
    for path in (solution / "finetune_lib").rglob("*.py"):
        assert path.read_bytes() == (main / path.relative_to(solution)).read_bytes()
