"""What the authors of the five milestones listed fits the notebooks as they are; `course audit` measures the rest."""
import pytest

from milestones.beside import points_of_checks
from milestones.checking import KIT, Engine, check_files, collect, run_checks
from milestones.learning import hints_for
from milestones.listed import alternatives, mistakes
from milestones.rubric import readmes
from milestones.tasks import blank, find_tasks, task_functions

ROOT = KIT.parent
TASKS = {task.id: task for task in find_tasks(ROOT)}
MILESTONES = sorted({task.milestone for task in TASKS.values()})


def test_every_milestone_has_at_least_four_tasks_and_the_points_of_its_checks():
    checks = collect()
    for milestone in (1, 2, 3, 4, 5):
        own = [task for task in TASKS.values() if task.milestone == milestone]
        assert len(own) >= 4, milestone
        points = sum(check.points for check in checks if TASKS[check.task].milestone == milestone)
        assert points == points_of_checks(milestone), milestone
    assert {check.task for check in checks} == set(TASKS)
    assert len({check.name for check in checks}) == len(checks)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_blanks_to_python_and_has_two_hints(task):
    assert task_functions(blank(task.source)) and "raise NotImplementedError" in blank(task.source)
    assert len(hints_for(task)) == 2


@pytest.mark.parametrize("entry", [*mistakes(KIT), *alternatives(KIT)], ids=lambda entry: f"{entry.task} {entry.name}")
def test_every_listed_text_fits_its_task(entry):
    changed = entry.applied(TASKS[entry.task])
    assert changed != TASKS[entry.task].source
    compile(changed, entry.name, "exec")


def test_checks_are_read_as_pytest_collects_them():
    engine = Engine()
    run_checks(check_files(), engine, collect_only=True)
    assert engine.checks == collect()


@pytest.mark.parametrize("text, said", [
    ("def test_a(): pass", "test_a must be a function with one marker"),
    ("@pytest.mark.task('2.1')\ndef test_a(): pass", "test_a must be .* points=10"),
    ("@pytest.mark.task('2.1', points=2 * POINTS)\ndef test_a(): pass", "test_a must be .* of plain values"),
    ("@pytest.mark.parametrize('n', [1])\n@pytest.mark.task('2.1', points=2)\ndef test_a(n): pass", "one marker"),
    ("class TestA:\n    def test_a(self): pass", "TestA must be a function"),
    ("async def test_a(): pass", "test_a must be a function"),
    ("def test_a(:", "checks could not be read: .*invalid syntax"),
], ids=["no marker", "no points", "points that are computed", "two in one", "a class", "async", "no Python"])
def test_a_check_that_cannot_be_read_is_refused_by_name(tmp_path, text, said):
    file = tmp_path / "02_lora/checks.py"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(ValueError, match=said) as refused:
        collect(tmp_path)
    assert str(file) in str(refused.value)


def test_every_mistake_names_a_check_of_its_task():
    of_task = {(check.task, check.name) for check in collect()}
    assert [entry.name for entry in mistakes(KIT) if (entry.task, entry.check) not in of_task] == []


def test_every_milestone_has_four_alternatives():
    for milestone in MILESTONES:
        assert len(alternatives(KIT, milestone)) >= 4, milestone


def test_the_rubrics_in_the_readmes_are_those_of_the_checks():
    stale = [path.parent.name for path, text in readmes().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "python -m milestones.rubric writes them"
