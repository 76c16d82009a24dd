"""README tells two learners' journeys with real output: here they are walked again, and say the same."""
import re
import subprocess
import sys
from pathlib import Path

import pytest

from milestones.checking import KIT
from milestones.exporting import change_task
from milestones.listed import mistakes
from milestones.tasks import find_tasks

ROOT = KIT.parent
pytestmark = pytest.mark.slow
README = (ROOT / "README.md").read_text(encoding="utf-8")
JOURNEYS = README.partition("## For learners")[2].partition("## For practitioners")[0]
OWN = re.compile(r"…|expected: |got: |largest difference|/tmp/")  # what is another's: numbers of a seed, and a folder


def told(*commands: str) -> list[str]:
    """The lines that README shows after these commands, without those that are each learner's own."""
    blocks = re.findall(r"^\$ (.*?)\n(.*?)(?=^\$ |^```)", JOURNEYS, re.S | re.M)
    lines = [line for command, said in blocks if command in commands for line in said.splitlines()]
    return [" ".join(line.split()) for line in lines if line.strip() and not OWN.search(line)]


def start(folder: Path, milestone: int) -> str:
    words = [sys.executable, "-m", "milestones", "start", folder, "--milestone", str(milestone)]
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def course(folder: Path, *words: str) -> str:
    """What `course` says in a learner's folder."""
    command = [folder / ".venv/bin/course", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def missing(said: str, *commands: str) -> list[str]:
    lines = told(*commands)
    assert lines
    return [line for line in lines if line not in " ".join(said.split())]


def write(folder: Path, task: str, source: str) -> None:
    change_task(folder, next(each for each in find_tasks(folder) if each.id == task), source)


def test_ada_gets_stuck_and_goes_on(tmp_path):
    folder = tmp_path / "ada"
    start(folder, 2)
    solved = next(task for task in find_tasks(ROOT) if task.id == "2.1")
    wrong = next(mistake for mistake in mistakes(KIT, 2) if mistake.name == "alpha not divided by r")
    write(folder, "2.1", wrong.applied(solved))
    said = [course(folder, *words) for words in (("check", "2.1"), ("hint", "2.1"), ("hint", "2.1"))]
    write(folder, "2.1", solved.source)
    said += [course(folder, *words) for words in (("check", "2.1"), ("progress",), ("next",))]
    assert missing(" ".join(said), "course check 2.1", "course hint 2.1", "course progress") == []
    assert "2.2 freeze in nbs/02_lora/01_adapter.ipynb, “What learns and what does not”: open" in " ".join(
        said[-1].split())


def test_ben_joins_at_milestone_3_and_cleo_catches_up(tmp_path):
    said = start(tmp_path / "ben", 3)
    assert missing(said, ".venv/bin/course start ../ben --milestone 3") == []
    start(tmp_path / "cleo", 1)
    said = course(tmp_path / "cleo", "catch-up", "3")
    said += course(tmp_path / "cleo", "next")
    assert missing(said, "course catch-up 3") == []
    assert "3.1 nf4_codebook in nbs/03_qlora/01_nf4.ipynb, “Which sixteen values?”: open" in " ".join(said.split())
