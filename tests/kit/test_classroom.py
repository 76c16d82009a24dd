"""A folder of submissions becomes a table, whatever stands in it, and a second run goes on where the first ended."""
import csv
import os
import shutil
import zipfile

import pytest
from typer.testing import CliRunner

from milestones import classroom, command
from milestones.classroom import SubmissionError, grade_all, laid_out, state_of_all
from milestones.exporting import change_task
from milestones.running import Limits
from milestones.tasks import blank, find_tasks

OPTIONS = {"only_checks": True, "limits": Limits(seconds=4, start=60, memory=2**30), "seed": 5}


@pytest.fixture
def submissions(course, tmp_path):
    """Six of them: right, the same again, one task blank in a nested folder, a zip, broken, and nothing of ours."""
    folder = tmp_path / "class"
    shutil.copytree(course / "nbs", folder / "ada/nbs")
    shutil.copytree(course / "nbs", folder / "bob/nbs")
    shutil.copytree(course, folder / "cy/work")
    task = find_tasks(course)[1]
    change_task(folder / "cy/work", task, blank(task.source))
    with zipfile.ZipFile(folder / "dee.zip", "w") as archive:
        for path in (folder / "cy/work/nbs").rglob("*.ipynb"):
            archive.write(path, f"course/{path.relative_to(folder / 'cy/work')}")
    (folder / "eve/nbs/02_lora").mkdir(parents=True)
    (folder / "eve/nbs/02_lora/01_scale.ipynb").write_text("{ not a notebook")
    (folder / "fay").mkdir()
    (folder / "fay/letter.txt").write_text("I was ill")
    (folder / "__MACOSX").mkdir()
    return folder


def read(table):
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_submission_is_a_row_and_equal_ones_are_named(submissions, kit, tmp_path):
    table, reports = tmp_path / "grades.csv", {}
    rows = grade_all(submissions, table, "2", kit=kit, keep=reports.__setitem__, **OPTIONS)
    assert rows == read(table)
    by_name = {row["name"]: row for row in rows}
    assert [(row["name"], row["state"], row["points"]) for row in rows] == [
        ("ada", "passed", "90"), ("bob", "passed", "90"), ("cy", "failed", "30"), ("dee", "failed", "30"),
        ("eve", "failed", "0"), ("fay", "error", "0")]
    assert by_name["cy"]["2.1"] == "20" and by_name["cy"]["2.2"] == "0" and by_name["ada"]["milestone 2"] == "90"
    assert [row["same_as"] for row in rows] == ["bob", "ada", "dee", "cy", "", ""]
    assert "could not be exported" in by_name["eve"]["trouble"] and "no nbs/" in by_name["fay"]["trouble"]
    assert set(reports) == {"ada", "bob", "cy", "dee", "eve"}
    assert by_name["cy"]["sha256"] == reports["cy"]["graded"]["sha256"]


def test_a_second_run_grades_only_what_is_new_or_changed(submissions, kit, tmp_path, monkeypatch):
    for name in ("bob", "cy", "eve"):
        shutil.rmtree(submissions / name)
    (submissions / "dee.zip").unlink()
    table, asked = tmp_path / "grades.csv", []

    def remembered(waiting, *arguments):
        asked.append([one.name for one in waiting])
        return [{"name": one.name, "points": 1, "sha256": one.sha256} for one in waiting]

    monkeypatch.setattr(classroom, "graded_rows", remembered)
    grade_all(submissions, table, "2", kit=kit, **OPTIONS)
    with table.open("a", newline="") as file:
        file.write("gus,pass")  # a run that was ended while it wrote
    grade_all(submissions, table, "2", kit=kit, **OPTIONS)
    change_task(submissions / "ada", find_tasks(submissions / "ada")[0], "#| export\n#| task: 2.1\nscaling = None")
    rows = grade_all(submissions, table, "2", kit=kit, **OPTIONS)
    assert asked == [["ada", "fay"], ["fay"], ["ada", "fay"]]
    assert [row["name"] for row in rows] == ["ada", "fay"]


def test_a_table_of_another_kind_is_not_written_over(submissions, kit, tmp_path):
    (tmp_path / "grades.csv").write_text("name,mark\nada,A\n")
    with pytest.raises(SubmissionError, match="other columns"):
        grade_all(submissions, tmp_path / "grades.csv", "2", kit=kit, **OPTIONS)
    assert (tmp_path / "grades.csv").read_text() == "name,mark\nada,A\n"


def test_a_single_notebook_is_laid_among_blank_ones(course, kit, tmp_path):
    handed_in = tmp_path / "ada-01_scale.ipynb"
    shutil.copy(course / "nbs/02_lora/01_scale.ipynb", handed_in)
    shutil.copy(course / "nbs/02_lora/01_scale.ipynb", course / "nbs/02_lora/02_more.ipynb")
    path = course / "nbs/02_lora/02_more.ipynb"
    path.write_text(path.read_text().replace("task: 2.", "task: 3."))
    laid = laid_out(handed_in, tmp_path / "place", kit)
    open_tasks = [task.id for task in find_tasks(laid) if "NotImplementedError" in task.source]
    assert open_tasks == ["3.1", "3.2", "3.3", "3.10"]


def test_a_zip_that_is_too_large_or_climbs_out_does_no_harm(tmp_path, kit, monkeypatch):
    with zipfile.ZipFile(tmp_path / "up.zip", "w") as archive:
        archive.writestr("../../outside.ipynb", "{}")
    with pytest.raises(SubmissionError, match="no notebook"):
        laid_out(tmp_path / "up.zip", tmp_path / "a/b/place", kit)
    assert [path.name for path in tmp_path.rglob("outside.ipynb")] == ["outside.ipynb"]
    assert (tmp_path / "a/b/place/zip/outside.ipynb").exists()
    monkeypatch.setattr(classroom, "UNPACKED", 1)
    with pytest.raises(SubmissionError, match="a zip may hold 0 MiB"):
        laid_out(tmp_path / "up.zip", tmp_path / "c", kit)


def test_a_pipe_in_a_submission_is_not_waited_for(submissions, kit):
    os.mkfifo(submissions / "eve/nbs/02_lora/02_pipe.ipynb")
    assert classroom.looked_at(submissions / "eve", kit).sha256


def test_no_cell_is_computed_by_a_spreadsheet():
    assert classroom.harmless("=1+1\nx") == "'=1+1 x" and classroom.harmless(3.5) == "3.5"


@pytest.mark.parametrize(("states", "points", "state"), [
    (["passed", "passed"], 10, "passed"), (["passed", "passed"], 9, "failed"), (["unattempted"] * 2, 0, "unattempted"),
    (["error", "error"], 0, "error"), (["blocked", "unattempted"], 0, "failed")])
def test_the_state_of_a_submission(states, points, state):
    checks = [{"state": one} for one in states]
    report = {"points": points, "max_points": 10, "milestones": [{"tasks": [{"checks": checks}]}]}
    assert state_of_all(report) == state


def test_a_class_needs_a_folder_and_a_table(tmp_path):
    said = CliRunner().invoke(command.app, ["grade", "--all", str(tmp_path)])
    assert said.exit_code == 2 and "--csv FILE" in said.output
    said = CliRunner().invoke(command.app, ["grade", "2", "--all", str(tmp_path), "--csv", str(tmp_path / "f.csv")])
    assert said.exit_code == 2 and "holds no submissions" in said.output
