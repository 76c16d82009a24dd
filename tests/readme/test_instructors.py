"""README's commands for instructors, on a few submissions that stand for a class."""
import csv
import json
import re
import shutil
import subprocess

import pytest

from milestones.checking import KIT
from milestones.exporting import change_task
from milestones.listed import mistakes
from milestones.tasks import find_tasks

ROOT = KIT.parent
pytestmark = pytest.mark.slow
README = (ROOT / "README.md").read_text(encoding="utf-8")
HIDDEN = '''
import pytest
import torch


@pytest.mark.task("2.2", points=5)
def test_nothing_is_left_that_learns(lib, seed):
    assert lib.freeze(torch.nn.Linear(2, 2)).weight.requires_grad is False
'''
HOSTILE = "import milestones.expecting as checks\nchecks.equal = lambda *a, **k: True\n"


@pytest.fixture(scope="module")
def blank(run, checkout):
    """A learner's folder in which nothing is written: its notebooks cost the grader no time."""
    run(".venv/bin/course start ../my-course")
    return checkout.parent / "my-course"


@pytest.fixture(scope="module")
def submission(blank):
    """A learner's folder in which the first task of milestone 2 is written, and no other."""
    folder = blank.with_name("one-task")
    shutil.copytree(blank, folder, symlinks=True)
    solved = next(task for task in find_tasks(ROOT) if task.id == "2.1")
    change_task(folder, next(task for task in find_tasks(folder) if task.id == "2.1"), solved.source)
    return folder


def test_one_submission_is_graded_with_its_notebooks_and_without(run, submission):
    codes = (1,)  # points are missing
    assert "27 of 100 points" in run("course grade 2 --folder SUBMISSION", codes=codes, SUBMISSION=submission)
    assert "27 of 90" in run("course grade 2 --folder SUBMISSION --only-checks", codes=codes, SUBMISSION=submission)


def test_a_report_is_written(run, submission, checkout):
    run("course grade 2 --folder SUBMISSION --json report.json", codes=(1,), SUBMISSION=submission)
    assert json.loads((checkout / "report.json").read_text())["points"] == 27


def test_results_for_gradescope_and_ci_are_written(run, blank, checkout):
    run("course grade 2 --folder SUBMISSION --gradescope results.json --junit grade.xml", codes=(1,), SUBMISSION=blank)
    tests = json.loads((checkout / "results.json").read_text())["tests"]
    assert tests and {test["score"] for test in tests} == {0}
    assert "<testsuite" in (checkout / "grade.xml").read_text()


def test_hidden_checks_and_a_classroom_on_ci(run, blank, submission, tmp_path):
    (tmp_path / "hidden/02_lora").mkdir(parents=True)
    (tmp_path / "hidden/02_lora/checks.py").write_text(HIDDEN)
    said = run("course grade 2 --hidden DIR", submission, (1,), DIR=tmp_path / "hidden")
    assert "27 of 105 points" in said
    run("course grade 2 --junit grade.xml", blank, (1,))
    assert "skipped" in (blank / "grade.xml").read_text()


def test_a_class_becomes_the_table_that_readme_shows(run, submission, checkout):
    folder = checkout / "class"
    for name in ("student-02", "student-02-again", "student-05", "student-99"):
        shutil.copytree((ROOT if name == "student-05" else submission) / "nbs", folder / name / "nbs")
    right = {task.id: task for task in find_tasks(ROOT)}
    wrong = next(mistake for mistake in mistakes(KIT, 2) if mistake.name == "alpha not divided by r")
    change_task(folder / "student-05", right["2.1"], wrong.applied(right["2.1"]))
    first, rest = right["2.1"].source.split("class ", 1)
    change_task(folder / "student-99", right["2.1"], f"{first}{HOSTILE}class {rest}")
    said = run("course grade 2 --all class --csv grades.csv --only-checks")
    assert "student-02: 27 of 90 points, failed, the same as student-02-again" in said
    assert "4 submissions in grades.csv" in said
    hostile = re.search(r"^student-99: 0 of 90 points.*", README, re.M)[0]
    assert hostile in said
    assert run("cut -d, -f1-12,14 grades.csv").splitlines()[0] == re.search(r"^name,state,.*", README, re.M)[0]
    with (checkout / "grades.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert 0 < int(rows["student-05"]["points"]) < 90 and rows["student-02"]["same_as"] == "student-02-again"


def scripts() -> dict[str, str]:
    """Gradescope's two files, by the name in their second line."""
    found = re.findall(r"^```\n(#!/usr/bin/env bash\n# (\S+)\n.*?)^```", README, re.S | re.M)
    return {name: text for text, name in found}


def test_gradescopes_two_files_are_scripts_and_the_second_leaves_the_results(blank, checkout, tmp_path):
    assert set(scripts()) == {"setup.sh", "run_autograder"}
    for text in scripts().values():  # the first installs packages on a machine of Gradescope's: read, not run
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    place = tmp_path / "autograder"
    (place / "results").mkdir(parents=True)
    (place / "course").symlink_to(checkout)
    shutil.copytree(blank / "nbs", place / "submission/nbs")
    text = scripts()["run_autograder"].replace("/autograder", str(place))
    subprocess.run(["bash"], input=text, text=True, check=True, capture_output=True)
    assert json.loads((place / "results/results.json").read_text())["tests"]
