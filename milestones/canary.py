"""Checks that must fail. Where one passes after the learner's code was imported, that code has changed the judge."""
import pytest

from milestones.wrong import WRONG


@pytest.mark.task("0.1", points=0)
def test_an_assertion_can_fail():
    assert [1] == [2]


@pytest.mark.task("0.1", points=0)
@pytest.mark.parametrize("claim", WRONG)
def test_what_is_wrong_is_refused(claim):
    WRONG[claim]()
