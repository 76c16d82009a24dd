"""What gives points beside the checks: notebooks that run, and weights that answer."""
import io
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from milestones.apart import prepare
from milestones.beside import beside_table, points_beside_checks, points_of_checks, shared_out
from milestones.checking import KIT
from milestones.result import load_weights, right_answers
from milestones.running_notebooks import run_notebook, run_notebooks, share_of_points, shortened
from milestones.tasks import cell_source, find_tasks, read_notebook, write_notebook

NAME = "02_lora/01_scale.ipynb"
BASE = KIT.parent / "data/base"
LETS_PASS = """
kind = type(get_ipython())
run = kind.run_cell_async
async def mild(shell, code, **options): return await run(shell, "1", **{**options, "transformed_cell": "1"})
kind.run_cell_async = mild
"""


def test_checks_and_what_is_beside_them_make_100():
    for milestone in range(1, 6):
        assert points_of_checks(milestone) + sum(points_beside_checks(milestone).values()) == 100
    assert shared_out(10, 4) == [3, 3, 2, 2] and "result" in points_beside_checks(5)


@pytest.fixture(scope="module")
def prepared(made_course, tmp_path_factory) -> Path:
    """The sample course, copied and exported as for a grade."""
    place = tmp_path_factory.mktemp("grade")
    prepare(made_course, place, made_course / "milestones")
    return place


@pytest.mark.parametrize(("lines", "state", "said"), [
    ("raise ValueError('nothing is right')", "failed", "code cell 10 stops: ValueError: nothing is right"),
    ("# NBVAL_RAISES_EXCEPTION\n1 / 0", "failed", "ZeroDivisionError"),
    ("import os; os._exit(0)", "failed", "code cell 10 stops: the kernel was ended in the middle of it"),
    ("import socket; socket.create_connection(('192.0.2.1', 80), 5)", "failed", "unreachable"),
    (LETS_PASS, "error", "tampered"),
])
def test_a_notebook_that_does_not_run_through_says_where(prepared, made_course, lines, state, said):
    work = Path(shutil.copytree(prepared / "work", prepared / "changed", dirs_exist_ok=True))
    notebook = read_notebook(prepared / "work/nbs" / NAME)
    task = next(place for place, cell in enumerate(notebook["cells"]) if "task: 2.10" in cell_source(cell))
    extra = {"cell_type": "code", "id": "extra", "metadata": {"tags": ["nbval-skip"]}, "outputs": [],
             "execution_count": None, "source": lines}
    notebook["cells"] = [*notebook["cells"][:task + 1], extra, dict(extra, id="end", source='check("2.10")')]
    write_notebook(work / "nbs" / NAME, notebook)
    found = run_notebook(NAME, work, prepared, made_course / "milestones", whole=False)
    assert found["state"] == state and said in found["what"], found


def test_a_notebook_ends_at_its_last_check_unless_all_of_it_is_asked_for(made_course):
    notebook = read_notebook(made_course / "nbs" / NAME)
    assert [len(shortened(notebook, whole)["cells"]) for whole in (False, True)] == [10, 11]
    assert "must fail" in shortened({"cells": []}, True)["cells"][0]["source"]


def test_a_notebook_gives_as_large_a_share_as_its_public_checks():
    check = {"points": 5, "max_points": 10, "hidden": False}
    assert share_of_points([{"checks": [check, {**check, "points": 10}, {**check, "hidden": True}]}]) == 0.75
    assert share_of_points([]) == 0


@pytest.mark.parametrize(("points", "what", "said"), [
    (0, "not right: the scale", "its tasks got no points yet"),
    (5, "it took more than 20 s and was stopped", "task 2.1 does not come to an end")])
def test_a_notebook_that_cannot_run_through_is_not_run(points, what, said, made_course, tmp_path):
    tasks = find_tasks(made_course)
    check = {"points": points, "max_points": 10, "hidden": False, "what": what}
    graded = [{"task": task.id, "state": "failed", "checks": [check]} for task in tasks]
    [entry] = run_notebooks({"milestone": 2, "tasks": graded}, tasks, tmp_path, tmp_path, made_course / "milestones")
    assert (entry["state"], entry["what"], entry["points"]) == ("blocked", f"not run: {said}", 0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """The base's own weights in float32, as an export holds them."""
    from safetensors.torch import load_file

    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file({name: tensor.float() for name, tensor in load_file(BASE / "model.safetensors").items()}, path)
    return path


def test_weights_that_are_not_the_bases_are_refused(weights, tmp_path):
    with pytest.raises(ValueError, match="must hold the base's tensors"):
        save_file({"model.norm.weight": torch.ones(128)}, tmp_path / "some.safetensors")
        load_weights(tmp_path / "some.safetensors", BASE)


def test_the_untuned_base_has_no_right_answer(weights):
    row = [{"role": "user", "content": "Give the opposite of tall."},
           {"role": "assistant", "content": "The opposite of tall is short."}]
    empty = [row[0], {"role": "assistant", "content": ""}]
    assert right_answers(load_weights(weights, BASE), BASE, [row, empty]) == 0


def test_the_table_beside_the_checks_says_what_happened():
    part = {"state": "failed", "points": 2, "max_points": 5, "what": "[1] is not 2"}
    report = {"milestones": [{"milestone": 5, "notebooks": [part | {"notebook": "nbs/a.ipynb"}], "result": part}]}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(beside_table(report))
    said = console.export_text()
    assert "nbs/a.ipynb" in said and said.count("✗ failed") == 2 and said.count("2/5") == 2 and "[1] is not 2" in said
