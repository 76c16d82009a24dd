"""A learner's folder: made once as a git repository of its own; what the course put there can be renewed later."""
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import entry_points, metadata
from pathlib import Path

from milestones.checking import KIT
from milestones.exporting import blank_all, export
from milestones.learning import MEMORY, CourseError, aside_folder, recall, references, remember, take
from milestones.listed import AUTHORS_FILES
from milestones.tasks import LIST, Task, find_tasks, handed_out, keep_list

COPIED = ("nbs", "finetune_lib", "milestones", "pyproject.toml", "settings.ini", "setup.py", "LICENSE", ".gitignore")
NOT_COPIED = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "AUDIT.md", *AUTHORS_FILES)
ORIGIN = "course.json"  # where a folder came from, in its memory
COMMANDS = ("course", "finetune", "jupyter", "jupyter-lab", "nbdev-export", "pytest")  # in a folder's .venv/bin
SCRIPT = """#!/bin/sh
'''exec' "$(dirname "$0")/python" "$0" "$@"
' '''
import sys
from {module} import {first}
sys.exit({call}())
"""
PATHS = """import os, sys; sys.path.insert(0, os.path.dirname(sys.prefix))
import site; site.addsitedir({packages})
"""


def start(folder: Path, milestone: int = 1, source: Path = KIT.parent) -> Path:
    """Make a work folder: a git repository of its own, tasks from `milestone` on blank, a thin environment."""
    folder = folder.expanduser().resolve()  # `../my-course` stands beside the course, not inside
    solved = look_before(folder, milestone, source)
    try:
        fill(folder, milestone, source, solved)
    except (Exception, KeyboardInterrupt):  # also when it is stopped: a half-made folder is refused the next time
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def look_before(folder: Path, milestone: int, source: Path) -> dict[str, str]:
    """Refuse what cannot be done before anything is made; returns the reference of the tasks that come solved."""
    if recall(source, ORIGIN):
        command = Path(recall(source, ORIGIN)["prefix"]) / "bin/course"
        raise CourseError(f"{source} is a work folder, and a new one is made from the course itself: "
                          f"{command} start {folder}")
    if not (source / "nbs").is_dir():
        raise CourseError(f"a work folder is made from a checkout of the course, and beside the installed package in "
                          f"{source} there are no notebooks; {how_to_get()}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CourseError(f"a work folder is made once and never overwritten, and {folder} is a file or holds files; "
                          "choose a new one")
    if folder.is_relative_to(source.resolve()):
        raise CourseError(f"a work folder must stand outside of the course, got {folder}; choose one beside {source}")
    if shutil.which("git") is None:
        raise CourseError("a work folder is a git repository, and git is not installed; get it from "
                          "https://git-scm.com/downloads or your system's packages, then start again")
    tasks = find_tasks(source)
    known = sorted({task.milestone for task in tasks})
    if milestone != 1 and milestone not in known:
        raise CourseError(f"there is no milestone {milestone} to begin with; there are {known[0]} to {known[-1]}")
    found = references(source, [task for task in tasks if task.milestone < milestone])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CourseError(f"{folder} cannot be made: {error.strerror}; choose a place that you may write to") from error
    return found


def how_to_get() -> str:
    """The two commands that bring the course, from the public address in the package's metadata."""
    url = metadata("finetune_lib")["Home-page"]
    return f"get one: git clone --branch skeleton {url}.git course, then pip install -e './course[dev]'"


def fill(folder: Path, milestone: int, source: Path, solved: dict[str, str]) -> None:
    """Put everything into a new folder."""
    for name in COPIED:
        path = source / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=NOT_COPIED, dirs_exist_ok=True)
        elif path.exists():
            shutil.copy(path, folder / name)
    for path in (source / "milestones/learner").glob("*.md"):
        shutil.copy(path, folder / path.name)
    tasks = hand_out(folder)
    earlier = [task for task in tasks if task.milestone < milestone]
    take(folder, {task.id: solved[task.id] for task in earlier})
    export(folder)
    connect(folder, source)
    make_repository(folder)


def hand_out(folder: Path) -> list[Task]:
    """Make every task blank, as the list says where there is one, and keep the list."""
    tasks = handed_out(folder)
    if not tasks:
        solved = find_tasks(folder)
        keep_list(folder, solved)
        blank_all(folder, solved)
        return find_tasks(folder)
    take(folder, {task.id: task.source for task in tasks})
    return tasks


def update(folder: Path, source: Path = KIT.parent) -> Path:
    """Renew what is the course's in a work folder: kit, data, environment. Returns where the old kit is kept.

    For a folder that was moved or cloned, a course that was moved, or newer checks. Notebooks are not touched.
    """
    folder = folder.expanduser().absolute()
    if not (folder / LIST).is_file():
        raise CourseError(f"{folder} is not a work folder; make one: course start DIR")
    if KIT.is_relative_to(folder.resolve()):
        return update_from_origin(folder)
    aside = aside_folder(folder)
    shutil.move(folder / "milestones", aside / "milestones")
    shutil.copytree(source / "milestones", folder / "milestones", ignore=NOT_COPIED)
    shutil.copy(aside / LIST, folder / LIST)
    connect(folder, source)
    leave_out(folder)
    return aside


def update_from_origin(folder: Path) -> Path:
    """The same by the kit that the folder came from: the folder's own cannot replace itself."""
    origin = recall(folder, ORIGIN)
    python, source = Path(origin.get("prefix", "")) / "bin/python", Path(origin.get("reference", ""))
    if not origin or not python.exists() or not (source / "milestones").is_dir():
        raise CourseError(f"the course this folder came from is no longer at {origin.get('reference', 'any place')}; "
                          f"from where it is now: .venv/bin/course update {folder}")
    code = "import pathlib, sys; from milestones import starting; print(starting.update(pathlib.Path(sys.argv[1])))"
    done = subprocess.run([python, "-c", code, str(folder)], cwd=source, capture_output=True, text=True)
    if done.returncode:
        raise CourseError(done.stderr.strip().splitlines()[-1])
    return Path(done.stdout.strip())


def connect(folder: Path, source: Path) -> None:
    """Tie a work folder to the course it comes from: its data, its packages, and where the reference is."""
    origin = {"reference": str(source.resolve()), "packages": sysconfig.get_path("purelib"), "prefix": sys.prefix}
    remember(folder, ORIGIN, origin)
    if (source / "data").exists():
        link(folder / "data", source / "data")
    make_environment(folder)


def link(place: Path, target: Path) -> None:
    """A symbolic link, instead of an older one that may lead nowhere now."""
    try:
        if place.is_symlink():
            place.unlink()
        if not place.exists():
            place.symlink_to(target.resolve(), target_is_directory=True)
    except OSError as error:
        raise CourseError(f"{place} must be a symbolic link, and this file system makes none ({error.strerror}); "
                          "choose a folder on another one (on Windows: inside WSL)") from error


def make_environment(folder: Path) -> None:
    """A thin environment: this Python and its packages, with the folder's own library before them.

    Its paths are found from where it stands, so that a folder that was moved still works.
    """
    place = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(place)], check=True)
    paths = sysconfig.get_paths("venv", vars={"base": str(place), "platbase": str(place)})
    text = PATHS.format(packages=ascii(sysconfig.get_path("purelib")))
    (Path(paths["purelib"]) / "course.pth").write_text(text, encoding="utf-8")
    shared = Path(sys.prefix) / "share/jupyter"  # JupyterLab's own pages, and templates
    if shared.is_dir():
        (place / "share").mkdir(exist_ok=True)
        link(place / "share/jupyter", shared)
    found = {point.name: point for point in entry_points(group="console_scripts")}
    for point in (found[name] for name in COMMANDS if name in found):
        script = Path(paths["scripts"]) / point.name
        script.write_text(SCRIPT.format(module=point.module, first=point.attr.split(".")[0], call=point.attr))
        script.chmod(0o755)


def make_repository(folder: Path) -> None:
    """A repository of the learner's own, with the start as its first commit."""
    run_git(folder, "init", "-q", "-b", "main")
    leave_out(folder)
    run_git(folder, "add", "-A")
    identity = ("-c", "user.name=course", "-c", "user.email=course@localhost", "-c", "commit.gpgSign=false")
    run_git(folder, *identity, "commit", "-q", "--no-verify", "-m", "The course, as it was started")


def leave_out(folder: Path) -> None:
    """Tell the folder's repository what is the course's or this machine's, and not part of it."""
    place = folder / ".git/info/exclude"
    known = place.read_text().splitlines() if place.exists() else []
    if place.parent.is_dir():
        place.write_text("\n".join(dict.fromkeys([*known, "data", ".venv", MEMORY])) + "\n")


def run_git(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise CourseError(f"git {' '.join(arguments)}: {done.stderr.strip()}")

