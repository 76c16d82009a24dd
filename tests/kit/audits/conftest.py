"""One file for each milestone, so that two workers share the five audits."""
import pytest

from milestones.audit import Audit
from milestones.checking import KIT


@pytest.fixture
def audited():
    """The gaps of a milestone's audit."""
    return lambda milestone: Audit(KIT.parent, KIT, milestone).run().gaps
