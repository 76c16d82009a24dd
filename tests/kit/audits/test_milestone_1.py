"""The checks of milestone 1 are measured: `course audit 1`."""
import pytest


@pytest.mark.slow
def test_the_audit_of_milestone_1_has_no_gap(audited):
    assert audited(1) == "no gap"
