"""Two branches of one source: `skeleton` for learners and `solution` for readers, built from a commit of main.

Git plumbing only: the commit's files are written to a temporary folder, changed there, and added through a temporary
index. No work tree is touched, and the same commit always gives the same trees and commits.
"""
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from milestones.exporting import blank_all, export
from milestones.leaks import AUTHORS, leaked_lines
from milestones.tasks import (
    Task,
    cell_source,
    find_tasks,
    keep_list,
    notebook_paths,
    read_notebook,
    set_source,
    unmark,
    write_notebook,
)

KINDS = ("skeleton", "solution")
WORKFLOWS = ".github"  # on neither branch: a workflow's own token may not push workflow files
AUTHORS_ONLY = ("tests", ".ci", WORKFLOWS, ".pre-commit-config.yaml", "Makefile", "milestones/AUDIT.md",
                *(f"milestones/*/{name}" for name in AUTHORS))
LEARNERS = "milestones/learner"  # README.md and AGENTS.md of the skeleton branch
SAME_EVERYWHERE = ("core.autocrlf=false", "core.fileMode=true", "i18n.commitEncoding=UTF-8", "log.showSignature=false")


class BranchError(RuntimeError):
    """A branch that cannot be built; says why and what to do."""


@dataclass(frozen=True)
class Branch:
    name: str
    commit: str
    tree: str
    leaked: int = 0


def git(
    repository: Path, *arguments: str, index: Path | None = None, work: Path | None = None, **environment: str
) -> str:
    """One git command; its output without the last line's end."""
    settings = {**os.environ, **environment}
    if index:
        settings["GIT_INDEX_FILE"] = str(index)
    place = [part for setting in SAME_EVERYWHERE for part in ("-c", setting)]  # whatever its user has set
    place += ["--work-tree", str(work)] if work else []
    done = subprocess.run(["git", *place, *arguments], cwd=work or repository, text=True, capture_output=True,
                          env=settings | {"GIT_DIR": git_dir(repository)})
    if done.returncode:
        raise BranchError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def git_dir(repository: Path) -> str:
    if shutil.which("git") is None:
        raise BranchError("branches are built by git, and git is not installed; get it from https://git-scm.com")
    done = subprocess.run(["git", "rev-parse", "--absolute-git-dir"], cwd=repository, text=True, capture_output=True)
    if done.returncode:
        raise BranchError(f"branches are built from a git repository, {repository} is none")
    return done.stdout.strip()


def build(repository: Path, kind: str, source: str = "HEAD", update: bool = True) -> Branch:
    """Build one branch from the commit `source`, and point it there unless `update` is False."""
    commit = git(repository, "rev-parse", f"{source}^{{commit}}")
    if update and f"branch refs/heads/{kind}" in git(repository, "worktree", "list", "--porcelain").splitlines():
        raise BranchError(f"{kind} is checked out and would change under your hands; there, go to main first")
    with tempfile.TemporaryDirectory(prefix="course-branch-") as name:
        main, made = Path(name) / "main", Path(name) / kind
        write_files(repository, commit, main)
        tasks = make(main, made, kind)
        leaked = len(leaked_lines(main, made, tasks)) if kind == "skeleton" else 0
        if leaked:
            raise BranchError(f"{leaked} lines of task bodies can be read in the skeleton; course audit names them")
        tree = write_tree(repository, made, Path(name) / "made.index")
    made_commit = write_commit(repository, commit, tree, kind)
    if update:
        git(repository, "update-ref", f"refs/heads/{kind}", made_commit)
    return Branch(kind, made_commit, tree, leaked)


def write_files(repository: Path, commit: str, folder: Path) -> None:
    """The commit's files, in `folder`."""
    folder.mkdir(parents=True)
    index = folder.parent / "main.index"
    git(repository, "read-tree", commit, index=index)
    git(repository, "checkout-index", "--all", "--force", f"--prefix={folder}/", index=index)


def make(main: Path, folder: Path, kind: str) -> list[Task]:
    """Change main's files into those of a branch, in a new folder. Returns the tasks."""
    shutil.copytree(main, folder, symlinks=True)
    tasks = find_tasks(folder)
    if kind == "skeleton":
        for pattern in AUTHORS_ONLY:
            for path in folder.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        keep_list(folder, tasks)
        blank_all(folder, tasks)
        for path in (folder / LEARNERS).glob("*.md"):
            shutil.copy(path, folder / path.name)
    else:
        shutil.rmtree(folder / WORKFLOWS, ignore_errors=True)
        unmark_all(folder)
    export(folder)
    return tasks


def unmark_all(folder: Path) -> None:
    """Take the task directives out of all notebooks."""
    for path in notebook_paths(folder):
        notebook = read_notebook(path)
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                set_source(cell, unmark(cell_source(cell)))
        write_notebook(path, notebook)


def write_tree(repository: Path, folder: Path, index: Path) -> str:
    """The tree of a folder, everything in it included whatever .gitignore says."""
    for cache in [*folder.rglob("__pycache__"), *folder.rglob("*.egg-info")]:
        shutil.rmtree(cache)
    git(repository, "add", "--all", "--force", ".", index=index, work=folder)
    return git(repository, "write-tree", index=index)


def write_commit(repository: Path, commit: str, tree: str, kind: str) -> str:
    """A commit without parents, with main's author and dates: its hash depends on main's commit alone."""
    fields = {"AUTHOR_NAME": "an", "AUTHOR_EMAIL": "ae", "AUTHOR_DATE": "ad"}
    values = {
        name: git(repository, "log", "-1", f"--format=%{code}", "--date=raw", commit) for name, code in fields.items()
    }
    environment = {f"GIT_{name}": value for name, value in values.items()}
    environment |= {f"GIT_{name.replace('AUTHOR', 'COMMITTER')}": value for name, value in values.items()}
    return git(repository, "commit-tree", tree, "-m", f"The {kind} of {commit}", **environment)
