"""The checks of milestone 2 are measured: `course audit 2`."""
import pytest


@pytest.mark.slow
def test_the_audit_of_milestone_2_has_no_gap(audited):
    assert audited(2) == "no gap"
