"""The checks of milestone 4 are measured: `course audit 4`."""
import pytest


@pytest.mark.slow
def test_the_audit_of_milestone_4_has_no_gap(audited):
    assert audited(4) == "no gap"
