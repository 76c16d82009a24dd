"""When two values count as the same: structure, shape and device, and numbers within tolerances."""
import numbers
import sys
from typing import Any

import numpy as np


def equal(got: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> bool:
    """Equal in structure, shape and device, and in value within the tolerances; whole numbers exactly. NaN equals NaN.

    A tensor without dimensions counts as its number.
    """
    if elsewhere(got, expected):
        return False
    got, expected = (value.item() if is_array(value) and not value.shape else value for value in (got, expected))
    if is_array(expected):
        if not is_array(got):
            return False
        left, right = to_numpy(got), to_numpy(expected)
        if left.shape != right.shape:
            return False
        if left.dtype.kind in "biu" and right.dtype.kind in "biu":
            return bool(np.array_equal(left, right))
        return bool(np.allclose(left, right, rtol=rtol, atol=atol, equal_nan=True))
    if isinstance(expected, bool) or isinstance(got, bool):
        return got is expected
    if isinstance(expected, numbers.Number) and isinstance(got, numbers.Number):
        if isinstance(expected, int) and isinstance(got, int):
            return int.__eq__(expected, got) is True
        left, right = (np.asarray(number, dtype=float) for number in (got, expected))  # no class's own comparison
        return bool(np.isclose(left, right, rtol=rtol, atol=atol, equal_nan=True))
    if isinstance(expected, dict) and isinstance(got, dict):
        return got.keys() == expected.keys() and all(equal(got[key], expected[key], rtol, atol) for key in expected)
    if isinstance(expected, (list, tuple)) and isinstance(got, (list, tuple)):
        return len(got) == len(expected) and all(equal(a, b, rtol, atol) for a, b in zip(got, expected, strict=True))
    if is_array(got):
        return False
    return type(expected).__eq__(expected, got) is True  # what is compared has no say in it


def is_array(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))


def device_type(value: Any) -> str:
    return value.device.type if hasattr(getattr(value, "device", None), "type") else "cpu"


def elsewhere(got: Any, expected: Any) -> bool:
    """Whether a tensor lies on another kind of device than was expected, or on meta, where it has no values."""
    there = {device_type(value) for value in (got, expected) if is_array(value)}
    return "meta" in there or (is_array(got) and is_array(expected) and len(there) > 1)


def to_numpy(value: Any) -> np.ndarray:
    """Tensor or array as an array on the CPU; floats in float64, so that bfloat16 can be compared."""
    if isinstance(value, np.ndarray):
        return value
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()
