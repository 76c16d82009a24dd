"""A learner's folder: made once, never overwritten, caught up on request, with hints in three steps."""
import subprocess

import pytest
from typer.testing import CliRunner

from milestones import command
from milestones.checking import FAILED, Check, CheckResult
from milestones.exporting import change_task
from milestones.learning import (
    CourseError,
    catch_up,
    hint,
    is_open,
    keep_results,
    last_results,
    next_task,
    recall,
    start,
)
from milestones.tasks import find_tasks


@pytest.fixture
def work(course, tmp_path):
    (course / "data").mkdir()
    return start(tmp_path / "work", source=course)


def test_a_work_folder_is_a_repository_of_its_own_with_open_tasks(work):
    assert all(is_open(task.source) for task in find_tasks(work))
    log = subprocess.run(["git", "log", "--oneline"], cwd=work, capture_output=True, text=True, check=True).stdout
    assert log.count("\n") == 1 and not (work / "milestones/02_lora/mistakes.py").exists()
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=work, capture_output=True, text=True, check=True
    ).stdout
    assert status == ""


def test_its_own_environment_takes_its_own_library(work):
    code = "import finetune_lib.lora.scale as m, sys, numpy; print(m.__file__)"
    said = subprocess.run([work / ".venv/bin/python", "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(work / "finetune_lib/lora/scale.py")


def test_a_folder_that_holds_files_is_not_touched(work, course):
    with pytest.raises(CourseError, match="never overwritten"):
        start(work, source=course)


def test_earlier_milestones_come_solved_on_request(course, tmp_path):
    assert not any(is_open(task.source) for task in find_tasks(start(tmp_path / "later", 3, course)))


def test_next_is_the_first_open_or_wrong_task(work, course):
    assert next_task(work).id == "2.1"
    for task, solved in zip(find_tasks(work), find_tasks(course), strict=True):
        change_task(work, task, solved.source)
    assert next_task(work) is None
    keep_results(work, [CheckResult(Check("2.3", "test_forward", "checks.py", 30), FAILED)])
    assert next_task(work).id == "2.3" and last_results(work)[0].state == FAILED


def test_hints_come_one_at_a_time_and_the_last_keeps_one_line_back(work):
    given = [hint(work, "2.3") for _ in range(4)]
    assert [level for level, _ in given] == [1, 2, 3, 3] and recall(work, "hints.json") == {"2.3": 3}
    last = given[-1][1]
    assert "base_answer = x @ self.weight.T" in last and "return base_answer" not in last
    with pytest.raises(CourseError, match="there is no task 9.9"):
        hint(work, "9.9")


def test_catching_up_takes_the_reference_and_keeps_the_learners_own(work):
    task = find_tasks(work)[0]
    change_task(work, task, task.source.replace("raise NotImplementedError", "# mine\n    raise NotImplementedError"))
    tasks, aside = catch_up(work, 3)
    assert len(tasks) == 4 and not any(is_open(task.source) for task in find_tasks(work))
    assert "# mine" in (aside / "02_lora/01_scale.ipynb").read_text()
    assert "return alpha / r" in (work / "finetune_lib/lora/scale.py").read_text()
    assert [task.id for task in find_tasks(work)] == ["2.1", "2.2", "2.3", "2.10"]


def test_commands_say_what_to_do_outside_of_a_course(tmp_path):
    said = CliRunner().invoke(command.app, ["next", "--folder", str(tmp_path)])
    assert said.exit_code == 2 and "course start DIR" in said.output


def test_the_table_shows_every_task_and_writes_the_picture(work):
    said = CliRunner().invoke(command.app, ["progress", "--folder", str(work)], terminal_width=160)
    assert said.exit_code == 0, said.output
    assert "2.10" in said.output and said.output.count("unattempted") == 4
    assert (work / ".work/progress.png").stat().st_size > 1000
