"""The checks of milestone 3 are measured: `course audit 3`."""
import pytest


@pytest.mark.slow
def test_the_audit_of_milestone_3_has_no_gap(audited):
    assert audited(3) == "no gap"
