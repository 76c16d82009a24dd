"""Each mistake that a milestone must catch has its entry in mistakes.py, or the test of the library that holds it."""
import re

import pytest

from milestones.checking import KIT
from milestones.listed import mistakes, pages

ROOT = KIT.parent
LEAST = {1: 22, 2: 20, 3: 19, 4: 26, 5: 27}  # mistakes on the pages of the five milestones
ENTRIES = {f"{mistake.task} {mistake.name}" for mistake in mistakes(KIT)}


@pytest.mark.parametrize("milestone", LEAST)
def test_every_mistake_that_must_be_caught_is_an_entry_or_a_test(milestone):
    page = pages(KIT, milestone)
    assert len(page) >= LEAST[milestone]
    assert [words for words, place in page.items() if not (place in ENTRIES or is_test(place))] == []


def is_test(place: str) -> bool:
    file, _, name = place.partition("::")
    path = ROOT / file
    return path.is_file() and bool(re.search(rf"^def {re.escape(name)}\(", path.read_text(encoding="utf-8"), re.M))


def test_an_entry_or_a_test_that_is_not_there_is_noticed():
    assert is_test("tests/kit/test_pages.py::test_an_entry_or_a_test_that_is_not_there_is_noticed")
    assert not is_test("tests/kit/test_pages.py::test_an_entry") and not is_test("4.4 mean of means")


def test_names_of_entries_are_their_own():
    names = [f"{mistake.task} {mistake.name}" for mistake in mistakes(KIT)]
    assert len(names) == len(set(names))
