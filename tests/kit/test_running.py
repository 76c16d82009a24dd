"""States, reasons and points of checks on the sample course, also when the code under them misbehaves."""
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from milestones.account import understood
from milestones.checking import BLOCKED, FAILED, PASSED, UNATTEMPTED, Check, CheckResult
from milestones.running import Guard, Limits, all_checks, in_child, run_in_folder
from milestones.tasks import blank, cell_source, find_tasks, read_notebook, set_source, write_notebook

LIMITS, SHORT = Limits(memory=2**30), Limits(seconds=4, start=20, memory=2**30)
GUARD = Guard(writable=(Path(tempfile.gettempdir()),))


@pytest.fixture
def run(course, kit, export_course):
    """Change the notebook's task cells with a function of (task, source); run all checks; states by check."""
    tasks = find_tasks(course)

    def with_change(change, guard=None, limits=LIMITS):
        path = course / "nbs/02_lora/01_scale.ipynb"
        notebook = read_notebook(path)
        for task in tasks:
            cell = notebook["cells"][task.cell]
            set_source(cell, change(task, cell_source(cell)))
        write_notebook(path, notebook)
        export_course(course)
        results = run_in_folder(course, tasks, all_checks(kit), kit, limits=limits, guard=guard)
        return {result.check.name: result for result in results}
    return with_change


def states(results):
    return [result.state for result in results.values()]


def replacing(old, new):
    return lambda task, source: source.replace(old, new)


def test_the_solution_passes_all(run):
    results = run(lambda task, source: source, guard=GUARD)
    assert states(results) == [PASSED] * 5, results
    assert sum(result.points for result in results.values()) == 90


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


def test_a_task_that_stops_fails_its_own_check_and_the_rest_goes_on(run):
    stop = "    import os; os.kill(os.getpid(), 9)\n"
    results = run(replacing("    return layer.a.size", f"{stop}    return layer.a.size"))
    assert states(results) == [PASSED, PASSED, PASSED, PASSED, FAILED]
    assert "SIGKILL" in results["test_count_is_both_matrices"].what


def test_checks_that_follow_one_that_ran_out_of_time_have_less_of_it(run):
    results = run(replacing("return alpha / r", "while True: pass"), limits=SHORT)
    assert states(results) == [FAILED, PASSED, PASSED, FAILED, PASSED]
    said = [result.what for result in results.values() if result.state == FAILED]
    assert said == [f"it took more than {seconds} s and was stopped" for seconds in (4, 1)], said


def test_a_module_that_stops_on_import_is_the_reason_of_the_check_that_needs_it(run):
    results = run(replacing("def count(", "raise SystemExit(3)\ndef count("), guard=GUARD)
    assert states(results)[-1] == FAILED
    assert "scale stops on import with SystemExit: 3" in results["test_count_is_both_matrices"].reason


def test_a_task_that_is_skipped_has_not_passed(run):
    results = run(replacing("    return layer.a.size", "    import pytest; pytest.skip('no')\n    return layer.a.size"))
    assert states(results)[-1] == FAILED


def check_named(name, points=5):
    return Check("2.1", name, "02_lora/checks.py", points)


def result_of(name, **said):
    return {"result": CheckResult(check_named(name, 1000), PASSED).to_dict() | said}


def test_points_are_the_graders_own():
    found = understood([{"begin": "test_a"}, result_of("test_a")], [check_named("test_a")], "")
    assert [result.points for result in found] == [5]


@pytest.mark.parametrize("messages", [
    [result_of("test_a")],
    [{"begin": "test_a"}, result_of("test_b")],
    [{"begin": "test_a"}, result_of("test_a"), result_of("test_a")],
    [{"begin": "test_a"}, {"begin": "test_b"}, result_of("test_b")],
    [{"begin": "test_a"}, result_of("test_a", state="splendid")],
    [{"begin": "test_a"}, result_of("test_a", needs=None)],
    [{"begin": "test_a"}, result_of("test_a"), {"points": 100}],
])
def test_what_comes_out_of_turn_is_not_believed(messages):
    found = understood(messages, [check_named("test_a"), check_named("test_b")], "")
    assert {result.state for result in found} == {FAILED} and "tampered" in found[0].what


def test_a_child_that_is_stopped_says_what_it_had_started_and_nobody_else():
    def work(send):
        for _ in range(2):
            if os.fork() == 0:
                signal.pause()
        while True:
            pass

    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as other:
        _, ended = in_child(work, Limits(seconds=1, start=1))
        other.kill()
    assert ended == "it took more than 1 s and was stopped, with 2 processes that it had started"


def test_a_child_computes_in_one_thread_and_makes_what_torch_keeps_of_them_before_anything_else_runs():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        messages, ended = in_child(lambda send: send({"threads": torch.get_num_threads()}))
    finally:
        torch.set_num_threads(before)
    assert (messages, ended) == ([{"threads": 1}], "")
