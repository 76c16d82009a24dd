"""Checks that must fail. Where one passes after the learner's code was imported, that code has changed the judge."""
import numpy as np
import pytest

from milestones.expecting import expect, refuses, same


@pytest.mark.task("0.1", points=0)
def test_an_assertion_can_fail():
    assert [1] == [2]


@pytest.mark.task("0.1", points=0)
def test_different_numbers_are_not_the_same():
    same(1.0, 1.05, "a number")


@pytest.mark.task("0.1", points=0)
def test_different_arrays_are_not_the_same():
    same(np.zeros(3), np.ones(3), "an array")


@pytest.mark.task("0.1", points=0)
def test_what_is_false_is_not_expected():
    expect(False, "never")


@pytest.mark.task("0.1", points=0)
def test_what_is_accepted_is_not_refused():
    refuses(lambda: 1, "nothing")
