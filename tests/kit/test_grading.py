"""A grade is taken in a fresh process from the notebooks alone; a hostile one gains no points and loses no report."""

import pytest

from milestones.exporting import change_task
from milestones.grading import grade
from milestones.running import Limits
from milestones.tasks import blank, find_tasks

LIMITS = Limits(seconds=4, start=60, memory=2**30)


@pytest.fixture
def submission(course, tmp_path):
    """A learner's folder with changed task cells: function of {task id: function of source}."""
    import shutil

    def make(changes):
        folder = tmp_path / "submission"
        shutil.copytree(course, folder)
        for task in find_tasks(course):
            change_task(folder, task, changes.get(task.id, lambda source: source)(task.source))
        return folder
    return make


def test_the_solution_gets_all_points_and_the_report_says_what_was_graded(course, kit, submission):
    report = grade(submission({}), kit=kit, limits=LIMITS)
    assert (report["points"], report["max_points"]) == (100, 100), report
    assert set(report["graded"]["notebooks"]) == {"nbs/02_lora/01_scale.ipynb"}
    assert [task["state"] for task in report["milestones"][0]["tasks"]] == ["passed"] * 4


def test_points_are_for_what_is_right_and_the_exported_library_is_not_believed(kit, submission):
    folder = submission({"2.2": blank})
    library = folder / "finetune_lib/lora/scale.py"
    library.write_text(
        library.read_text().replace('raise NotImplementedError("task 2.2: write product")', "return x @ a.T @ b.T")
    )
    report = grade(folder, kit=kit, limits=LIMITS)
    assert report["points"] == 40
    assert {task["task"]: task["state"] for task in report["milestones"][0]["tasks"]} == {
        "2.1": "passed", "2.2": "unattempted", "2.3": "blocked", "2.10": "passed"}


def test_one_task_is_graded_alone(kit, submission):
    report = grade(submission({"2.1": lambda source: source.replace("alpha / r", "alpha")}), "2.3", kit, limits=LIMITS)
    assert [task["task"] for task in report["milestones"][0]["tasks"]] == ["2.3"]
    assert report["milestones"][0]["tasks"][0]["state"] == "blocked"


@pytest.mark.parametrize(("code", "said"), [
    ("def scaling(:", "could not be exported"),
    ("import os\nos._exit(0)", "exit code 0"),
    ("while True: pass", "was stopped"),
    ("import pytest\npytest.main = lambda *a, **k: 0", "tampered"),
    ("import milestones.expecting as judge\njudge.equal = lambda *a, **k: True", "tampered"),
    ("import sys\nsys.stderr.write('noise')\nimport warnings\nwarnings.warn('noise')\nscaling = None", "NoneType"),
])
def test_a_hostile_notebook_fails_by_name(kit, submission, code, said):
    report = grade(submission({"2.1": lambda source: source + "\n" + code}), kit=kit, limits=Limits(3, 3, 2**30))
    first = report["milestones"][0]["tasks"][0]
    assert first["points"] == 0 and first["state"] == "failed"
    assert said in first["checks"][0]["what"], first["checks"][0]
