"""`check("2.3")` judges what the notebook holds, without files, quickly and without side effects."""
import random
import sys

import numpy as np
import pytest

from milestones.checking import KIT
from milestones.live import check_live, course_folder
from milestones.tasks import cell_source, find_tasks, read_notebook


@pytest.fixture
def notebook(course, kit, monkeypatch):
    """Run the sample notebook's cells with one text replaced, as a kernel would; gives a function that checks."""
    cells = [cell_source(cell) for cell in read_notebook(course / "nbs/02_lora/01_scale.ipynb")["cells"]]
    monkeypatch.syspath_prepend(str(course))
    yield_modules = [name for name in sys.modules if name.partition(".")[0] == "finetune_lib"]
    for name in yield_modules:
        monkeypatch.delitem(sys.modules, name)

    def run(old="", new=""):
        namespace = {"__name__": "__main__"}
        for cell in cells:
            if not cell.startswith("assert"):
                exec(cell.replace(old, new) if old else cell, namespace)  # noqa: S102
        return lambda task: check_live(task, namespace, kit, course)
    yield run
    for name in [name for name in sys.modules if name.partition(".")[0] == "finetune_lib"]:
        del sys.modules[name]


def test_right_code_is_green(notebook):
    verdict = notebook()("2.3")
    assert verdict.passed and repr(verdict) == ("Task 2.3: right, 30 of 30 points\n  ✓ forward adds the scaled product")


def test_wrong_code_is_red_with_expected_got_and_reason(notebook):
    verdict = notebook("return base_answer + scaling(self.alpha, len(self.a)) *", "return base_answer +")("2.3")
    text = verdict._repr_html_()
    assert not verdict.passed and "the adapter is not scaled" in text
    assert "expected" in text and "float64(5, 4)" in text and "at [" in text


def test_the_fault_of_an_earlier_task_is_named(notebook):
    assert "mend task 2.1 first" in repr(notebook("return alpha / r", "return alpha")("2.3"))


def test_an_unknown_task_says_so(notebook):
    assert repr(notebook()("2.9")) == "Task 2.9: there is no check for it"


def test_a_missing_name_is_named(course, kit):
    assert "`count` is missing" in repr(check_live("2.10", {"Layer": lambda *a: None}, kit, course))


def test_a_notebook_that_is_the_only_file_open_is_judged(notebook, kit, tmp_path, monkeypatch):
    """As in Colab: the folder one stands in holds nothing; tasks and checks are found beside the kit."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert course_folder() == KIT.parent
    names = {"__name__": "__main__", "product": lambda x, a, b: x @ a.T}
    assert "✗" in repr(check_live("2.2", names, kit))
    names["product"] = lambda x, a, b: x @ a.T @ b.T
    assert check_live("2.2", names, kit).passed


def test_checks_leave_random_numbers_and_tasks_alone(notebook):
    check = notebook()
    random.seed(1), np.random.seed(1)
    expected = random.random(), np.random.random()
    random.seed(1), np.random.seed(1)
    check("2.3")
    assert (random.random(), np.random.random()) == expected


def test_tasks_of_the_sample_have_one_module(course):
    assert {task.module for task in find_tasks(course)} == {"finetune_lib.lora.scale"}
