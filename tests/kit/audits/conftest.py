"""One file for each milestone, so that two workers share the five audits."""
import subprocess
import sys

import pytest

from milestones.checking import KIT


@pytest.fixture
def audited():
    """What `course audit` says of a milestone; in a process of its own, since a large one is slow to fork from."""
    def run(milestone: int) -> str:
        done = subprocess.run([sys.executable, "-m", "milestones", "audit", str(milestone)], cwd=KIT.parent,
                              capture_output=True, text=True)
        return done.stdout[-4000:] + done.stderr[-2000:] if done.returncode else "no gap"
    return run
