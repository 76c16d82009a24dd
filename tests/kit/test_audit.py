"""The audit passes a whole milestone, and each kind of gap makes it fail in words."""
import pytest

from milestones.audit import Audit

CHECKS, MISTAKES = "milestones/02_lora/checks.py", "milestones/02_lora/mistakes.py"
COMPARED = 'same(lib.product(x, a, b), np.einsum("ti,ri,or->to", x, a, b), "the product")'


def test_a_whole_milestone_has_no_gap(course, kit):
    done = Audit(course, kit, 2).run()
    assert done.gaps == []
    found = done.to_dict()
    assert found["solution"] == {"checks": 25, "passed": 25}
    assert found["skeleton"] == {"checks": 5, "unattempted": 5, "leaked_lines": 0}
    assert found["mutants"] == {"total": 3, "killed": 3, "killed_with_hint": 3}
    assert found["alternatives"] == {"total": 2, "passed": 2}
    assert found["blanked"] == {"failed_as_they_should": 4, "total": 4}
    assert found["tolerances"]["total"] == found["tolerances"]["rejected"] >= 3 + 4 + 4


@pytest.mark.parametrize(
    ("measure", "file", "old", "new", "gap"),
    [
        ("tolerances", CHECKS, COMPARED, "assert lib.product(x, a, b).shape == (5, 4)", "task 2.2 returns is zeros"),
        ("solution", CHECKS, "got == 30", "got == 31", "the solution fails test_count_is_both_matrices"),
        ("mutants", MISTAKES, '"if r < -1"', '"if r <= 0"', "survives test_rank_zero_is_refused"),
        ("mutants", MISTAKES, '"alpha / r"', '"a"', "must stand exactly once in task 2.1"),
        ("mutants", MISTAKES, '"not divided by r"', '"the moon"', "the right reason must show for 80%"),
        ("alternatives", "milestones/02_lora/alternatives.py", "ti,ri,or->to", "ti,ri,or->ot", "'einsum' fails"),
        ("blanked", CHECKS, "got = lib.count", "return; got = lib.count", "task 2.10 blanked fails none of its checks"),
        ("", CHECKS, '"2.10", points=10', '"2.3", points=10', "task 2.10 (count) has no check"),
        ("", CHECKS, "points=30", "points=20", "must make 100, they make 80"),
    ],
)
def test_a_gap_is_found_and_named(course, kit, measure, file, old, new, gap):
    path = course / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    gaps = Audit(course, kit, 2).run([measure] if measure else []).gaps
    assert any(gap in found for found in gaps), gaps


def test_a_solution_line_in_the_skeleton_is_a_leak(course, kit, monkeypatch):
    monkeypatch.setattr("milestones.exporting.blank", lambda source: source)
    assert Audit(course, kit, 2).run(["skeleton"]).leaked >= 3


def test_a_line_that_main_has_outside_of_tasks_is_no_leak(course, kit):
    path = course / "nbs/02_lora/01_scale.ipynb"
    path.write_text(path.read_text().replace("assert scaling(16, 8) == 2", "base_answer = x @ self.weight.T"))
    assert Audit(course, kit, 2).run(["skeleton"]).gaps == []
