"""What a learner reads under a red check: expected, got, likely reason, where to read, and what to do when stuck."""
import io

import pytest
from rich.console import Console

from milestones.checking import BLOCKED, FAILED, PASSED, UNATTEMPTED, Check, CheckResult
from milestones.live import check_live
from milestones.showing import Verdict, print_results, where_to_read
from milestones.tasks import Task, cell_source, read_notebook

TASK = Task("2.1", "02_lora/01_scale.ipynb", "finetune_lib.lora.scale", 3, ("scaling",), "", "The factor")
CHECK = Check("2.1", "test_scale_is_alpha_over_r", "checks.py", 10, "think of <b>two</b> ranks")
RED = CheckResult(CHECK, FAILED, "the factor is not right " * 8, "2.0", "16.0", "alpha is not divided by r")


def printed(results, width):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_results(console, results, [TASK])
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_red_verdict_says_all_there_is_to_know():
    verdict = Verdict("2.1", [RED], read=where_to_read(TASK))
    for text in (repr(verdict), verdict._repr_html_().replace("<i>", "").replace("</i>", "")):
        for part in ("not yet right, 0 of 10 points", "expected: 2.0", "got: 16.0", "alpha is not divided by r",
                     "read: nbs/02_lora/01_scale.ipynb, “The factor”", "stuck?: course hint 2.1"):
            assert part in text
    assert "<b>two</b>" not in verdict._repr_html_()


@pytest.mark.parametrize("width", [80, 160])
def test_the_terminal_says_the_same_and_keeps_its_indent(width):
    lines = printed([RED], width)
    assert all(len(line) <= width for line in lines)
    assert lines[0] == "✗ 2.1 scaling: not yet right, 0 of 10 points" and len(lines) > 7
    wrapped = lines[2:-2]
    assert all(line.startswith("      ") and not line.startswith("       ") for line in wrapped)
    assert lines[-2:] == ["    read: nbs/02_lora/01_scale.ipynb, “The factor”", "    stuck?: course hint 2.1"]


def test_what_is_not_written_takes_one_line_and_what_waits_names_its_reason():
    assert printed([CheckResult(CHECK, UNATTEMPTED)] * 3, 80) == ["○ 2.1 scaling: not written yet, 0 of 30 points"]
    assert printed([CheckResult(CHECK, BLOCKED, "mend task 2.0 first")], 80)[-1] == "      mend task 2.0 first"
    assert printed([CheckResult(CHECK, PASSED)], 80) == [
        "✓ 2.1 scaling: right, 10 of 10 points", "  ✓ scale is alpha over r (10/10)"]


def test_brackets_in_what_a_learner_wrote_are_not_read_as_markup():
    assert "      got: [red]no[/]" in printed([CheckResult(CHECK, FAILED, got="[red]no[/]")], 80)


def test_code_above_a_forgotten_raise_is_told_from_a_stub(course, kit):
    namespace = {"__name__": "__main__"}
    for cell in read_notebook(course / "nbs/02_lora/01_scale.ipynb")["cells"][1:3]:
        text = cell_source(cell).replace("return alpha / r", 'a = alpha\n    raise NotImplementedError("task 2.1: …")')
        exec(text, namespace)  # noqa: S102
    said = repr(check_live("2.1", namespace, kit, course))
    assert "comes to `raise NotImplementedError`" in said and "and that line gone" in said
