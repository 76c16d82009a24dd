"""States, reasons and points of checks on the sample course, also when the code under them misbehaves."""
import pytest

from milestones.checking import BLOCKED, FAILED, PASSED, UNATTEMPTED
from milestones.running import Limits, all_checks, run_in_folder
from milestones.tasks import blank, cell_source, find_tasks, read_notebook, set_source, write_notebook

LIMITS = Limits(seconds=4, start=20, memory=2**30)


@pytest.fixture
def run(course, kit, export_course):
    """Change the notebook's task cells with a function of (task, source); run all checks; states by check."""
    tasks = find_tasks(course)

    def with_change(change, sealed=False):
        path = course / "nbs/02_lora/01_scale.ipynb"
        notebook = read_notebook(path)
        for task in tasks:
            cell = notebook["cells"][task.cell]
            set_source(cell, change(task, cell_source(cell)))
        write_notebook(path, notebook)
        export_course(course)
        results = run_in_folder(course, tasks, all_checks(kit), kit, limits=LIMITS, sealed=sealed)
        return {result.check.name: result for result in results}
    return with_change


def states(results):
    return [result.state for result in results.values()]


def replacing(old, new):
    return lambda task, source: source.replace(old, new)


def test_the_solution_passes_all(run):
    results = run(lambda task, source: source, sealed=True)
    assert states(results) == [PASSED] * 5, results
    assert sum(result.points for result in results.values()) == 100


def test_the_skeleton_is_unattempted_throughout(run):
    assert states(run(lambda task, source: blank(source))) == [UNATTEMPTED] * 5


def test_a_task_that_runs_through_an_open_one_is_blocked_by_it(run):
    results = run(lambda task, source: blank(source) if task.id == "2.2" else source)
    assert states(results) == [PASSED, PASSED, UNATTEMPTED, BLOCKED, PASSED]
    assert "mend task 2.2 first" in results["test_forward_adds_the_scaled_product"].what


def test_a_task_that_runs_through_a_wrong_one_is_blocked_by_it(run):
    results = run(replacing("return alpha / r", "return alpha"))
    assert states(results) == [FAILED, PASSED, PASSED, BLOCKED, PASSED]
    first = results["test_scale_is_alpha_over_r"]
    assert first.reason == "this is what comes out when alpha is not divided by r" and first.expected and first.got


@pytest.mark.parametrize(("code", "said"), [
    ("while True: pass", "more than 4 s"),
    ("import os; os._exit(0)", "exit code 0"),
    ("raise SystemExit(0)", "SystemExit"),
    ("np.ones(10 * 2**30, dtype=np.uint8)", "Unable to allocate"),
    ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
    ("1 / 0", "ZeroDivisionError"),
])
def test_a_hostile_task_fails_its_own_check_and_the_rest_goes_on(run, code, said):
    results = run(replacing("    return layer.a.size", f"    {code}\n    return layer.a.size"))
    assert states(results) == [PASSED, PASSED, PASSED, PASSED, FAILED]
    assert said in results["test_count_is_both_matrices"].what


def test_a_patched_judge_is_noticed_and_nothing_it_said_counts(run):
    patch = "import milestones.expecting as judge\njudge.equal = lambda *a, **k: True\n"
    results = run(replacing("def scaling(", patch + "def scaling("), sealed=True)
    assert states(results) == [FAILED] * 5
    assert all("tampered" in result.what for result in results.values())
