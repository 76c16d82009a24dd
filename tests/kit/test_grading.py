"""A grade is taken in a fresh process from the notebooks alone; a hostile one gains no points and loses no report."""
import json
import re
import shutil
import subprocess
import sys

import jsonschema
import pytest
import typer

from milestones import command
from milestones.apart import NO_RESULTS
from milestones.checking import FAILED, KIT, Check, CheckResult
from milestones.exporting import change_task
from milestones.grading import explained, grade, results_in
from milestones.running import Limits
from milestones.tasks import blank, find_tasks

LIMITS = Limits(seconds=4, start=60, memory=2**30)
SCHEMA = json.loads((KIT / "grade.schema.json").read_text(encoding="utf-8"))
HIDDEN_CHECKS = '''
import numpy as np
import pytest

from milestones.expecting import same


@pytest.mark.task("2.1", points=10)
def test_scale_is_alpha_over_r(lib, seed):
    same(lib.scaling(3, 6), 0.5, "the scale at other numbers")


@pytest.mark.task("2.10", points=5)
def test_count_of_a_larger_layer(lib):
    layer = lib.Layer(np.ones((7, 9)), np.ones((2, 9)), np.ones((7, 2)), 1)
    same(lib.count(layer), 32, "the count")
'''


@pytest.fixture
def submission(course, tmp_path):
    """A learner's folder with changed task cells: function of {task id: function of source}."""
    def make(changes):
        folder = tmp_path / "submission"
        shutil.copytree(course, folder)
        for task in find_tasks(course):
            change_task(folder, task, changes.get(task.id, lambda source: source)(task.source))
        return folder
    return make


def checks_graded(folder, choice="", **options):
    """A report without the notebooks' own run, which takes seconds; it must be one that the schema knows."""
    report = grade(folder, choice, only_checks=True, **{"limits": LIMITS, **options})
    assert_known(report)
    return report


def assert_known(report):
    jsonschema.validate(json.loads(json.dumps(report)), SCHEMA, jsonschema.Draft202012Validator,
                        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


@pytest.mark.parametrize("milestone", "12345")
def test_each_milestone_solved_gets_all_points_in_fresh_processes(tmp_path, milestone):
    asked = [sys.executable, "-m", "milestones", "grade", milestone, "--only-checks", "--json",
             str(tmp_path / "grade.json")]
    done = subprocess.run(asked, cwd=KIT.parent, capture_output=True, text=True, check=False)
    report = json.loads((tmp_path / "grade.json").read_text(encoding="utf-8"))
    assert_known(report)
    assert report["points"] == report["max_points"] >= 80 and not report["trouble"], done.stdout
    assert done.returncode == 0


def states(report):
    return {task["task"]: task["state"] for task in report["milestones"][0]["tasks"]}


def test_the_solution_gets_all_points_and_the_report_says_what_was_graded(kit, submission):
    report = grade(submission({}), kit=kit, limits=LIMITS, seed=7)
    assert_known(report)
    assert (report["points"], report["max_points"], report["trouble"]) == (100, 100, []), report
    assert set(report["graded"]["notebooks"]) == {"nbs/02_lora/01_scale.ipynb"} and report["seed"] == 7
    assert list(states(report).values()) == ["passed"] * 4
    ran = report["milestones"][0]["notebooks"]
    assert [(one["state"], one["points"], one["ran"]) for one in ran] == [("passed", 10, 9)] and ran[0]["cells"] == 9


def test_points_are_for_what_is_right_and_the_exported_library_is_not_believed(kit, submission):
    folder = submission({"2.2": blank})
    library = folder / "finetune_lib/lora/scale.py"
    library.write_text(
        re.sub(r'raise NotImplementedError\("task 2.2: .*"\)', "return x @ a.T @ b.T", library.read_text())
    )
    report = grade(folder, kit=kit, limits=LIMITS)
    assert_known(report)
    assert report["points"] == 30
    assert states(report) == {"2.1": "passed", "2.2": "unattempted", "2.3": "blocked", "2.10": "passed"}
    ran = report["milestones"][0]["notebooks"][0]
    assert (ran["state"], ran["points"], ran["what"]) == (
        "blocked", 0, "code cell 6 stops: task 2.2 is not written yet")


def test_one_task_is_graded_alone(kit, submission):
    report = checks_graded(submission({"2.1": lambda source: source.replace("alpha / r", "alpha")}), "2.3", kit=kit)
    assert states(report) == {"2.3": "blocked"}
    result, = results_in(report)
    assert (result.state, result.check.task, result.check.points) == ("blocked", "2.3", 30)
    assert result.needs == ("2.1", "2.2") and result.seed == report["seed"]


@pytest.fixture
def hidden(tmp_path):
    """Checks that an instructor keeps: one in place of a public one, one more."""
    folder = tmp_path / "hidden/02_lora"
    folder.mkdir(parents=True)
    (folder / "checks.py").write_text(HIDDEN_CHECKS)
    return folder.parent


def test_a_hidden_check_takes_its_namesakes_place_or_adds_points_and_catches_a_learned_answer(kit, submission, hidden):
    learned = {"2.10": lambda source: source.replace("layer.a.size + layer.b.size", "30")}
    report = checks_graded(submission(learned), kit=kit, hidden=hidden)
    assert (report["points"], report["max_points"]) == (90, 95) and states(report)["2.10"] == "failed"
    found = {check["name"]: check for task in report["milestones"][0]["tasks"] for check in task["checks"]}
    assert {name for name, check in found.items() if check["hidden"]} == {
        "test_scale_is_alpha_over_r", "test_count_of_a_larger_layer"}
    assert found["test_scale_is_alpha_over_r"]["file"] == "02_lora/checks_hidden_checks.py"


def test_a_folder_without_checks_is_no_folder_of_hidden_ones(kit, course, tmp_path):
    with pytest.raises(ValueError, match="holds none"):
        grade(course, kit=kit, hidden=tmp_path)


def test_the_command_ends_with_0_only_when_all_points_are_there():
    command.finish({"points": 100, "max_points": 100})
    with pytest.raises(typer.Exit) as left:
        command.finish({"points": 99.5, "max_points": 100})
    assert left.value.exit_code == 1


def test_a_grader_that_was_ended_is_an_error_and_no_fault_of_the_notebook(course):
    result = CheckResult(Check("2.1", "test_scale", "checks.py", 10), FAILED, "`scaling` is missing")
    tasks = find_tasks(course)
    broken = explained(result, tasks, {tasks[0].notebook: f"{NO_RESULTS}: killed"})
    assert broken.state == "error" and explained(result, tasks, {tasks[0].notebook: "a bracket"}).state == "failed"
