"""The audit passes a whole milestone, and each kind of gap makes it fail in words."""
import json

import pytest
from typer.testing import CliRunner

from milestones import command
from milestones.audit import Audit
from milestones.exporting import blank_all, copy_course
from milestones.leaks import leaked_lines
from milestones.matrix import audit_page
from milestones.tasks import find_tasks, read_notebook, write_notebook

CHECKS, MISTAKES = "milestones/02_lora/checks.py", "milestones/02_lora/mistakes.py"
NOTEBOOK, OTHERS = "nbs/02_lora/01_scale.ipynb", "milestones/02_lora/alternatives.py"
COMPARED = 'same(lib.product(x, a, b), np.einsum("ti,ri,or->to", x, a, b), "the product")'
SECRET = "base_answer = x @ self.weight.T"  # a line of task 2.3
READ = f"a line of task 2.3 can be read in the skeleton's {{}}: {SECRET}"


def audit_command(course, tmp_path, *more):
    """Exit code, output and JSON of `course audit 2`."""
    file = tmp_path / "audit.json"
    said = CliRunner().invoke(command.app, ["audit", "2", "--folder", str(course), "--json", str(file), *more])
    return said.exit_code, said.output, json.loads(file.read_text())


def test_a_whole_milestone_has_no_gap_and_exit_code_0(course, tmp_path):
    code, output, found = audit_command(course, tmp_path, "--markdown", str(tmp_path / "AUDIT.md"))
    assert code == 0 and "no gap" in output, output
    tolerances = found.pop("tolerances")
    assert found == {
        "mutants": {"total": 3, "killed": 3, "killed_with_hint": 3},
        "alternatives": {"total": 4, "passed": 4},
        "skeleton": {"checks": 5, "unattempted": 5, "leaked_lines": 0},
        "solution": {"checks": 25, "passed": 25},
    }
    assert tolerances == {"total": 14, "rejected": 14}
    assert "| 2.2 | product | 30 | 5/5 | 1/1 | · | 1/1 | · | · | · | 1/1 | 4/4 |" in (tmp_path / "AUDIT.md").read_text()


def test_gaps_are_printed_and_end_with_exit_code_1(course, tmp_path):
    replace(course / CHECKS, COMPARED, "assert lib.product(x, a, b).shape == (5, 4)")
    code, output, found = audit_command(course, tmp_path)
    assert code == 1 and "6 gaps" in output, output
    assert output.count("gap: test_product_goes_down_then_up passes when what task 2.2 returns is") == 3
    assert found["tolerances"] == {"total": 14, "rejected": 11}


def replace(path, old, new):
    assert old in path.read_text(), old
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("measure", "file", "old", "new", "gap"),
    [
        ("tolerances", CHECKS, COMPARED, "assert lib.product(x, a, b).shape == (5, 4)", "task 2.2 returns is zeros"),
        ("tolerances", CHECKS, "points=30)\ndef test_product", "points=30, values=False)\ndef test_product", ""),
        ("solution", CHECKS, "got == 30", "got == 31", "the solution fails test_count_is_both_matrices"),
        ("mutants", MISTAKES, '"if r < -1"', '"if r <= 0"', "survives test_rank_zero_is_refused"),
        ("mutants", MISTAKES, '"alpha / r"', '"a"', "must stand exactly once in task 2.1"),
        ("mutants", MISTAKES, '"not divided by r"', '"the moon"', "must show 'the moon', said was: "),
        ("mutants", MISTAKES, '"not divided by r"', '"the moon"', "the right reason must show for 80%"),
        ("mutants", MISTAKES, '"2.3", "scaling', '"2.2", "scaling', "task 2.2 has no check test_forward"),
        ("", MISTAKES, '"not divided by r"', '""', "'alpha not divided by r' must say which words show"),
        ("alternatives", OTHERS, "ti,ri,or->to", "ti,ri,or->ot", "alternative 'einsum' fails test_product"),
        ("", OTHERS, 'Alternative("division by another name", "2.1", "alpha / r", "alpha * r**-1"),', "",
         "milestone 2 must have at least 4 alternatives, it has 3"),
        ("blanked", CHECKS, "got = lib.count", "return; got = lib.count", "task 2.10 blanked fails none of its checks"),
        ("blanked", CHECKS, "x, a, b, _ = matrices\n", "x, a, b, _ = matrices\n    lib.Layer(b, a, b, 6).forward(a)\n",
         "task 2.3 blanked fails test_product_goes_down_then_up of an earlier task"),
        ("skeleton", CHECKS, "got = lib.count", "return; got = lib.count", "test_count_is_both_matrices is passed"),
        ("beginnings", NOTEBOOK, "import numpy as np", "import numpy as np; scaling", "stops: cell 1 raises NameError"),
        ("", CHECKS, '"2.10", points=10', '"2.3", points=10', "task 2.10 (count) has no check"),
        ("", CHECKS, '"2.10", points=10', '"9.9", points=10', "is for task 9.9, which no notebook has"),
        ("", CHECKS, "def test_rank_zero_is_refused", "def test_scale_is_alpha_over_r", "2 checks are called"),
        ("", CHECKS, "points=30", "points=20", "must make 90, they make 70"),
        ("skeleton", CHECKS, "import numpy", f"# {SECRET}\nimport numpy", READ.format(CHECKS)),
        ("skeleton", NOTEBOOK, '"product(np.ones', f'"# {SECRET}\\n", "product(np.ones', ""),
    ],
)
def test_a_gap_is_found_and_named(course, kit, measure, file, old, new, gap):
    replace(course / file, old, new)
    gaps = Audit(course, kit, 2).run([measure] if measure else []).gaps
    assert any(gap in found for found in gaps) if gap else gaps == [], gaps


def test_the_whole_course_must_have_ninety_mistakes_and_twenty_alternatives(course, kit):
    gaps = Audit(course, kit).run([]).gaps
    assert gaps == ["the course must have at least 90 mistakes, it has 3",
                    "the course must have at least 20 alternatives, it has 4"]


def test_two_checks_of_one_name_are_a_gap_across_files(course, kit):
    first = (course / CHECKS).read_text()
    (kit / "02_lora/checks_more.py").write_text(first[:first.index("@pytest.mark.task")] + (
        '@pytest.mark.task("2.1", points=0)\ndef test_scale_is_alpha_over_r(lib):\n    assert lib.scaling(2, 1) == 2'))
    assert any("2 checks are called test_scale_is_alpha_over_r" in gap for gap in Audit(course, kit, 2).run([]).gaps)


@pytest.mark.parametrize("place", ["hints", "prose"])
def test_a_solution_line_in_hints_or_prose_is_a_leak(course, kit, place):
    (kit / "02_lora/hints.md").write_text(f"Write `{SECRET}` first." if place == "hints" else "")
    if place == "prose":
        add_cell(course, {"cell_type": "markdown", "id": "prose", "metadata": {}, "source": [f"First `{SECRET}`."]})
    found = Audit(course, kit, 2).run(["skeleton"])
    assert found.leaked == 1
    assert READ.format("milestones/02_lora/hints.md" if place == "hints" else NOTEBOOK) in found.gaps


def test_a_stored_output_is_taken_from_the_skeleton_and_would_be_a_leak(course, kit, tmp_path):
    output = {"output_type": "stream", "name": "stdout", "text": ["def forward:\n", f"    {SECRET}\n"]}
    cell = {"cell_type": "code", "id": "out", "metadata": {}, "source": ["1"], "execution_count": 1}
    add_cell(course, cell | {"outputs": [output]})
    assert Audit(course, kit, 2).run(["skeleton"]).leaked == 0
    tasks, skeleton = find_tasks(course), copy_course(course, tmp_path / "skeleton")
    blank_all(skeleton, tasks)
    assert not [leak for leak in leaked_lines(course, skeleton, tasks) if leak[2] == NOTEBOOK]
    add_cell(skeleton, cell | {"outputs": [output]})
    assert ("2.3", SECRET, NOTEBOOK) in leaked_lines(course, skeleton, tasks)


def add_cell(folder, cell):
    notebook = read_notebook(folder / NOTEBOOK)
    notebook["cells"].append(cell)
    write_notebook(folder / NOTEBOOK, notebook)


def test_task_bodies_that_stay_in_the_skeleton_are_leaks(course, kit, monkeypatch):
    monkeypatch.setattr("milestones.exporting.blank", lambda source: source)
    assert Audit(course, kit, 2).run(["skeleton"]).leaked >= 3


def test_a_page_keeps_the_milestones_that_were_not_audited(course, kit):
    done = Audit(course, kit, 2).run([])
    page = audit_page(done, "# old head\n\n## Milestone 1\n\nas it was\n\n## Milestone 2\n\nold\n")
    assert page.count("## Milestone 1\n\nas it was\n") == 1 and "old" not in page and "| 2.10 | count | 10 |" in page
    assert audit_page(done, page) == page
