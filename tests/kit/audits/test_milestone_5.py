"""The checks of milestone 5 are measured: `course audit 5`."""
import pytest


@pytest.mark.slow
def test_the_audit_of_milestone_5_has_no_gap(audited):
    assert audited(5) == "no gap"
