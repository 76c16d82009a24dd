"""A task cell becomes a skeleton cell: what a learner needs stays, the code goes, and Python still reads it."""
import ast

import pytest

from milestones.tasks import TaskError, blank, body_lines, find_tasks, task_functions, unmark

FUNCTION = '''#| export
#| task: 2.1
def scaling(
    alpha: float,  # strength of the adapter
    r: int,  # rank
) -> float:
    """Factor of the adapter's product.

    # 9. not a step: this line is text
    """
    # 1. refuse a rank
    #    that cannot be
    if r < 1:
        raise ValueError(f"rank must be at least 1, got {r}")  # why not
    # not a step
    # 2. divide
    return alpha / r
'''
CLASS = '''#| export
#| task: 2.3 forward
class Layer:
    """One layer."""

    def __init__(self, r):
        self.r = r

    def forward(self, x):
        # 1. through the base
        y = x @ self.base
        return y

    @property
    def width(self): return self.base.shape[0]
'''


def test_signature_docstring_and_steps_stay_and_code_goes():
    text = blank(FUNCTION)
    assert "alpha: float,  # strength of the adapter" in text and "# 9. not a step" in text
    assert "    # TODO 1: refuse a rank\n    #    that cannot be\n    # TODO 2: divide\n" in text
    assert "alpha / r" not in text and "why not" not in text and "# not a step\n" not in text
    assert text.endswith('    raise NotImplementedError("task 2.1: write scaling; written already? '
                         'course check 2.1 exports it")\n')


def test_only_the_named_methods_of_a_class_are_blanked():
    text = blank(CLASS)
    assert "self.r = r" in text and "def width(self): return self.base.shape[0]" in text
    assert "x @ self.base" not in text and 'raise NotImplementedError("task 2.3: write Layer.forward;' in text
    assert "# TODO 1: through the base" in text


@pytest.mark.parametrize(
    "body",
    [
        "def f(x): return x + 1",
        "def f(x,\n      y=lambda a: a): return (x +\n  1)",
        "def f(x):\n  return x",
        "async def f(x) -> dict[str, int]:\n    # 1. wait\n    return x\n    # 2. after the code",
        "@staticmethod\ndef f(x):\n    '''Only a docstring, then code.'''\n    return '''\n# 3. text\n'''",
        "class A:\n    def f(self): return 1\n\n    def g(self):\n        for a in self:\n            # 1. deep\n"
        "            yield a",
        "def f(x):\n    # 1. first line\n    if x:\n        def g():\n            return 1\n    return g\n\n\n"
        "def h(): pass",
    ],
)
def test_every_blanked_cell_is_python_whose_functions_only_raise(body):
    source = "#| export\n#| task: 1.1\n" + body
    text = blank(source)
    for _, node in task_functions(text):
        code = [line for line in node.body if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))]
        assert [type(line) for line in code] == [ast.Raise]
    assert not set(map(str.strip, body_lines(source))) & set(map(str.strip, text.splitlines()))


def test_body_lines_are_the_code_and_not_the_steps():
    assert body_lines(FUNCTION) == [
        "    if r < 1:", '        raise ValueError(f"rank must be at least 1, got {r}")  # why not',
        "    # not a step", "    return alpha / r"]


def test_unmarked_cell_differs_by_the_directive_alone():
    assert unmark(CLASS) == CLASS.replace("#| task: 2.3 forward\n", "")


def test_a_directive_that_names_a_missing_method_is_refused():
    with pytest.raises(TaskError, match="names backward, but the cell defines __init__, forward, width"):
        task_functions(CLASS.replace("2.3 forward", "2.3 backward"))


def test_tasks_are_found_in_course_order_and_an_id_is_used_once(course, write):
    assert [task.id for task in find_tasks(course)] == ["2.1", "2.2", "2.3", "2.10"]
    write(course / "nbs/03_more/01_other.ipynb", ["#| default_exp more.other", FUNCTION])
    with pytest.raises(TaskError, match="2.1 in 02_lora/01_scale.ipynb and in 03_more/01_other.ipynb"):
        find_tasks(course)
