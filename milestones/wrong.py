"""Calls of the judge that must fail: `unsound` makes them between any two checks, canary.py as checks of pytest."""
import sys

import numpy as np

from milestones.expecting import Mismatch, expect, refuses, same


def tensors():
    """Two different tensors, as far as torch is there."""
    torch = sys.modules.get("torch")
    return (torch.zeros(3), torch.ones(3)) if torch else (np.zeros(3), np.ones(3))


WRONG = {
    "different numbers are not the same": lambda: same(1.0, 1.05, "a number"),
    "different arrays are not the same": lambda: same(np.zeros(3), np.ones(3), "an array"),
    "different tensors are not the same": lambda: same(*tensors(), "a tensor"),
    "what is false is not expected": lambda: expect(False, "never"),
    "what is accepted is not refused": lambda: refuses(lambda: 1, "nothing"),
}


def unsound() -> str:
    """What passes of all that must fail; nothing when the judge is sound. Takes a millisecond."""
    for claim, check in WRONG.items():
        try:
            check()
        except Mismatch:
            continue
        return claim
    return ""
