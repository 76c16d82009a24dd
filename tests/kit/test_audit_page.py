"""milestones/AUDIT.md is the matrix of the course as it is: `course audit --markdown milestones/AUDIT.md` writes it."""
import re
from collections import Counter

from milestones.audit import LEAST_ALTERNATIVES, LEAST_MISTAKES, MEASURES, SEEDS
from milestones.branches import AUTHORS_ONLY
from milestones.checking import KIT, collect
from milestones.leaks import AUTHORS
from milestones.listed import alternatives, mistakes
from milestones.tasks import find_tasks

ROWS = [line.strip("| \n").split(" | ") for line in (KIT / "AUDIT.md").read_text(encoding="utf-8").splitlines()
        if re.match(r"\| \d", line)]


def column(measure):
    """Task → how many were measured; a dot is none."""
    place = 3 + MEASURES.index(measure)
    return {row[0]: 0 if row[place] == "·" else int(row[place].split("/")[1]) for row in ROWS}


def counted(entries):
    """Task → how many entries it has; 0 where none."""
    found = Counter(entry.task for entry in entries)
    return {row[0]: found[row[0]] for row in ROWS}


def test_the_page_has_the_tasks_of_the_course_in_their_order():
    assert [row[:2] for row in ROWS] == [[task.id, task.title] for task in find_tasks(KIT.parent)]


def test_the_page_counts_what_is_listed():
    checks = collect()
    assert column("mutants") == column("hints") == column("reasons") == counted(mistakes(KIT))
    assert column("alternatives") == counted(alternatives(KIT))
    assert column("skeleton") == counted(checks)
    assert column("solution") == {task: count * len(SEEDS) for task, count in counted(checks).items()}
    assert {row[0]: float(row[2]) for row in ROWS} == {
        row[0]: sum(check.points for check in checks if check.task == row[0]) for row in ROWS}


def test_the_page_shows_no_gap():
    gaps = [(row[0], measure) for row in ROWS for measure, cell in zip(MEASURES, row[3:], strict=True)
            if measure != "reasons" and cell != "·" and len(set(cell.split("/"))) > 1]
    assert gaps == []
    assert sum(column("mutants").values()) >= LEAST_MISTAKES
    assert sum(column("alternatives").values()) >= LEAST_ALTERNATIVES


def test_learners_do_not_get_the_page():
    assert "AUDIT.md" in AUTHORS and "milestones/AUDIT.md" in AUTHORS_ONLY
