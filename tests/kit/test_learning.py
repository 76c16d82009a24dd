"""What a learner does to notebooks loses no task; the reference comes on request, and their own is kept."""
import json
import shutil
import subprocess

import pytest
from typer.testing import CliRunner

from milestones import command
from milestones.checking import FAILED, Check, CheckResult
from milestones.exporting import change_task
from milestones.learning import CourseError, catch_up, hint, is_open, keep_results, last_results, next_task, recall
from milestones.tasks import cell_source, find_tasks, read_notebook, set_source, write_notebook

NOTEBOOK = "nbs/02_lora/01_scale.ipynb"


def code(source):
    return {"cell_type": "code", "id": "extra", "metadata": {}, "execution_count": 7, "source": source.splitlines(True),
            "outputs": [{"output_type": "stream", "name": "stdout", "text": ["seen\n"]}]}


def place(cells, text):
    return next(index for index, cell in enumerate(cells) if text in cell_source(cell))


def saved_by_jupyterlab(cells):
    for number, cell in enumerate(cells):
        cell["id"], cell["metadata"] = f"new-{number}", {"collapsed": False}
    cells.insert(0, code("print('my own cell')"))


def reordered(cells):
    cells.append(cells.pop(place(cells, "task: 2.1\n")))


def copied(cells):
    cells.append(code(cell_source(cells[place(cells, "task: 2.2")]).replace("raise", "x = 1\n    raise")))


def split(cells):
    where = place(cells, "task: 2.3")
    head, tail = cell_source(cells[where]).split("    def forward")
    cells[where]["source"] = (head + "    pass\n").splitlines(True)
    cells.insert(where + 1, code(f"#| export\nclass Layer(Layer):\n    def forward{tail}"))


def without_directive(cells):
    cell = cells[place(cells, "task: 2.2")]
    set_source(cell, cell_source(cell).replace("#| task: 2.2\n", ""))


def deleted(cells):
    del cells[place(cells, "task: 2.2")]


def not_python(cells):
    cells[place(cells, "task: 2.2")] = code("#| export\n#| task: 2.2\ndef product(x, a, b):\n    return x @ (a.T")


EDITS = [saved_by_jupyterlab, reordered, copied, split, without_directive, deleted, not_python]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edited_notebook_loses_no_task_and_can_be_caught_up(work, edit):
    notebook = read_notebook(work / NOTEBOOK)
    edit(notebook["cells"])
    write_notebook(work / NOTEBOOK, notebook)
    mine = (work / NOTEBOOK).read_bytes()
    assert [task.id for task in find_tasks(work)] == ["2.1", "2.2", "2.3", "2.10"]
    assert next_task(work)[0] is not None
    said = CliRunner().invoke(command.app, ["progress", "--folder", str(work)])
    assert said.exit_code == 0 and "2.10" in said.output, said.output
    _, aside = catch_up(work, 3)
    assert (aside / NOTEBOOK).read_bytes() == mine
    check = "from finetune_lib.lora.scale import *; import numpy as np; one = np.ones; " \
            "print(Layer(np.eye(2), one((1, 2)), one((2, 1)), 2).forward(one((1, 2))).tolist(), scaling(6, 3))"
    done = subprocess.run([work / ".venv/bin/python", "-c", check], capture_output=True, text=True, cwd=work)
    assert done.stdout.strip() == "[[5.0, 5.0]] 2.0", done.stderr


def test_a_deleted_cell_is_named_and_comes_back_where_it_stood(work, course):
    notebook = read_notebook(work / NOTEBOOK)
    deleted(notebook["cells"])
    write_notebook(work / NOTEBOOK, notebook)
    assert CliRunner().invoke(command.app, ["progress", "--folder", str(work)]).output.count("its cell is gone") == 1
    catch_up(work, 3)
    assert [cell_source(cell) for cell in read_notebook(work / NOTEBOOK)["cells"]] == [
        cell_source(cell) for cell in read_notebook(course / NOTEBOOK)["cells"]]


def test_a_notebook_that_is_gone_is_named_before_anything_changes(work):
    (work / NOTEBOOK).unlink()
    assert next_task(work)[1] == "its cell is gone"
    with pytest.raises(CourseError, match="is gone or cannot be read.* checkout HEAD -- nbs/02_lora/01_scale.ipynb"):
        catch_up(work, 3)


def test_next_is_the_first_open_or_wrong_task_in_reading_order(work, course):
    assert next_task(work)[0].id == "2.1"
    for task, solved in zip(find_tasks(work), find_tasks(course), strict=True):
        change_task(work, task, solved.source)
    assert next_task(work) == (None, "")
    keep_results(work, [CheckResult(Check("2.3", "test_forward", "checks.py", 30), FAILED)])
    assert next_task(work)[0].id == "2.3" and last_results(work)[0].state == FAILED


def test_hints_come_one_at_a_time_and_the_last_keeps_one_line_back(work):
    given = [hint(work, "2.3") for _ in range(4)]
    assert [level for level, _ in given] == [1, 2, 3, 3] and recall(work, "hints.json") == {"2.3": 3}
    last = given[-1][1]
    assert "base_answer = x @ self.weight.T" in last and "return base_answer" not in last


@pytest.mark.parametrize("task", ["9.9", "2", "lora", ""])
def test_an_unknown_task_gets_a_sentence(work, task):
    said = CliRunner().invoke(command.app, ["hint", task, "--folder", str(work)])
    assert said.exit_code == 2 and said.output.startswith(f"there is no task {task}"), said.output


def test_where_no_reference_is_the_third_hint_says_how_to_get_it(work, course):
    """What the learner wrote themselves, right or wrong, is never shown to them as the reference."""
    task = find_tasks(work)[0]
    change_task(work, task, task.source.replace("raise NotImplementedError", "return alpha  #"))
    shutil.rmtree(course)
    assert [hint(work, "2.1") for _ in range(3)][2][1].endswith(f"git -C {work} fetch origin solution:solution")
    with pytest.raises(CourseError, match="no reference here for task 2.1, 2.2, 2.3, 2.10: it comes from"):
        catch_up(work, 3)


@pytest.mark.parametrize("milestone", [0, 1, 4, 99])
def test_catching_up_to_where_nothing_is_is_refused(work, milestone):
    with pytest.raises(CourseError, match="a milestone from 2 to 3, got"):
        catch_up(work, milestone)


def test_what_was_set_aside_comes_back_by_the_command_that_is_shown(work):
    task = find_tasks(work)[0]
    change_task(work, task, task.source.replace("raise NotImplementedError", "# mine\n    raise NotImplementedError"))
    keep_results(work, [CheckResult(Check("2.1", "test_scale", "checks.py", 30), FAILED)])
    mine = (work / NOTEBOOK).read_bytes()
    said = CliRunner().invoke(command.app, ["catch-up", "3", "--folder", str(work)]).output
    assert (work / NOTEBOOK).read_bytes() != mine and next_task(work) == (None, "") and not last_results(work)
    line = next(line for line in said.splitlines() if line.strip().startswith("cp -R"))
    subprocess.run(line, shell=True, check=True)
    assert (work / NOTEBOOK).read_bytes() == mine


def test_two_catch_ups_in_one_second_keep_both(work):
    _, first = catch_up(work, 3)
    _, second = catch_up(work, 3)
    assert first != second and is_open(find_tasks_in(first)) and not is_open(find_tasks_in(second))


def find_tasks_in(aside):
    """The first task as it stands in what was set aside."""
    return find_tasks(aside)[0]


def test_main_is_not_caught_up(course):
    said = CliRunner().invoke(command.app, ["catch-up", "3", "--folder", str(course)])
    assert said.exit_code == 2 and "is the course itself, not a work folder" in said.output


def test_commands_say_what_to_do_outside_of_a_course(tmp_path):
    said = CliRunner().invoke(command.app, ["next", "--folder", str(tmp_path)])
    assert said.exit_code == 2 and "course start DIR" in said.output


def test_the_table_shows_every_task_and_writes_the_picture(work):
    said = CliRunner().invoke(command.app, ["progress", "--folder", str(work)], terminal_width=160)
    assert said.exit_code == 0, said.output
    assert "2.10" in said.output and said.output.count("unattempted") == 4
    assert (work / ".work/progress.png").stat().st_size > 1000


def test_what_is_handed_out_is_known_without_any_notebook(work):
    entries = json.loads((work / "milestones/tasks.json").read_text())
    assert [entry["id"] for entry in entries] == ["2.1", "2.2", "2.3", "2.10"]
    assert all("raise NotImplementedError" in entry["source"] and "return" not in entry["source"] for entry in entries)
