"""The words for a finding: where two values differ, what each is in one short line, and the likely reason."""
import numbers
import sys
from typing import Any

import numpy as np

from milestones.comparing import device_type, elsewhere, equal, is_array, to_numpy

SHOWN = 8  # entries of a tensor or list that are shown
LENGTH = 320  # characters of a description
NOTHING = "nothing is returned: is there a `return` at the end?"
ROUND_FACTORS = 300  # a single number that is off by such a whole factor, or its inverse, is told the factor


def likely(got: Any, expected: Any, reasons: dict[str, Any], rtol: float, atol: float) -> str:
    """The first known mistake that gives what was got; then the general ones."""
    if got is None:
        return NOTHING
    if elsewhere(got, expected):
        return f"it is on {device_type(got)}, and {device_type(expected)} was expected: make it on the input's device"
    for text, wrong in reasons.items():
        if is_array(wrong) and not wrong.shape and "bool" in str(wrong.dtype):
            wrong = bool(wrong)
        happened = wrong if isinstance(wrong, bool) else equal(got, wrong, rtol, atol)
        if happened:
            return when(text)
    return general(got, expected, rtol, atol)


def when(text: str) -> str:
    return f"this is what comes out when {text}" if text else ""


def general(got: Any, expected: Any, rtol: float, atol: float) -> str:
    """Mistakes that can be seen without knowing the task."""
    numeric = [is_array(v) or (isinstance(v, numbers.Number) and not isinstance(v, bool)) for v in (got, expected)]
    if not all(numeric):
        return different_kind(got, expected)
    left, right = (np.asarray(to_numpy(v) if is_array(v) else v, dtype=float) for v in (got, expected))
    if left.shape == right.shape[::-1] != right.shape and left.ndim == 2:
        return "rows and columns are exchanged: it is transposed"
    if left.shape != right.shape:
        more = ": the same numbers in other axes" if left.size == right.size else ""
        return f"the shape is {left.shape} where {right.shape} was expected{more}"
    if np.isnan(left).any() and not np.isnan(right).any():
        return "there are NaNs in it: a division by zero, or the logarithm of zero"
    if np.isinf(left).any() and not np.isinf(right).any():
        return "there are infinities in it: a division by zero, or a number too large for its type"
    if not left.any():
        return "all of it is zero"
    if np.allclose(left, -right, rtol=rtol, atol=atol):
        return "the sign is the wrong way round"
    return factor_between(left, right, atol) or kept_in_16_bits(got, left, right)


def different_kind(got: Any, expected: Any) -> str:
    if type(got) is type(expected) or (isinstance(got, (list, tuple)) and isinstance(expected, (list, tuple))):
        return ""
    return f"{article(type(expected).__name__)} was expected, not {article(type(got).__name__)}"


def factor_between(left: np.ndarray, right: np.ndarray, atol: float) -> str:
    """One factor for all entries; a single number is always some multiple, so there only a whole one counts."""
    if not right.any() or not np.allclose(left[right == 0], 0, atol=atol):
        return ""
    factors = left[right != 0] / right[right != 0]
    factor = float(factors.flat[0])
    whole = max(abs(factor), 1 / abs(factor)) if factor else 0
    if not np.allclose(factors, factor, rtol=1e-4):
        return ""
    if factors.size == 1 and (abs(whole - round(whole)) > 1e-4 * whole or not 2 <= round(whole) <= ROUND_FACTORS):
        return ""
    return "" if abs(factor - 1) < 0.01 else f"it is {factor:.4g} times what it should be: a factor is wrong or missing"


def kept_in_16_bits(got: Any, left: np.ndarray, right: np.ndarray) -> str:
    kind = str(getattr(got, "dtype", "")).removeprefix("torch.")
    close = kind in ("float16", "bfloat16") and np.allclose(left, right, rtol=2e-2, atol=1e-3)
    return f"it is in {kind}, which rounds away the last digits: compute in float32" if close else ""


def where(got: Any, expected: Any) -> str:
    """Where two arrays of one shape, two dicts, or two lists differ most or first."""
    if elsewhere(got, expected):
        return ""
    if is_array(got) and is_array(expected) and got.shape == expected.shape and len(got.shape):
        gap = np.abs(np.asarray(to_numpy(got), float) - np.asarray(to_numpy(expected), float))
        place = np.unravel_index(np.argmax(np.nan_to_num(gap, nan=np.inf)), gap.shape)
        return f"; the largest difference is {gap[place]:.3g}, at [{', '.join(map(str, map(int, place)))}]"
    if isinstance(got, dict) and isinstance(expected, dict):
        wrong = [key for key in expected.keys() & got.keys() if not equal(got[key], expected[key])]
        said = {"missing": expected.keys() - got.keys(), "unexpected": got.keys() - expected.keys(), "different": wrong}
        return "".join(f"; {word}: {some(sorted(map(str, keys)))}" for word, keys in said.items() if keys)
    if isinstance(got, (list, tuple)) and isinstance(expected, (list, tuple)):
        first = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if not equal(a, b)), None)
        length = "" if len(got) == len(expected) else f"; its length is {len(got)}, not {len(expected)}"
        if first is None:
            return length
        return f"{length}; at position {first}: {describe(got[first])} where {describe(expected[first])} was expected"
    if isinstance(got, str) and isinstance(expected, str) and min(len(got), len(expected)) > SHOWN:
        first = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), None)
        return f"; from position {first}" if first is not None else f"; its length is {len(got)}, not {len(expected)}"
    return ""


def describe(value: Any, length: int = LENGTH) -> str:
    """A value in one short line: shape and first entries of a tensor, few digits, a module by its name."""
    torch = sys.modules.get("torch")
    if is_array(value):
        text = describe_array(value)
    elif isinstance(value, float):
        text = f"{value:.6g}"
    elif torch is not None and isinstance(value, torch.nn.Module):
        text = f"the {type(value).__name__}"
    elif isinstance(value, dict):
        text = "{" + some([f"{key!r}: {describe(entry, 80)}" for key, entry in list(value.items())[:SHOWN + 1]]) + "}"
    elif type(value) in (list, tuple):
        left, right = "[]" if isinstance(value, list) else "()"
        text = left + some([describe(entry, 80) for entry in value[:SHOWN + 1]]) + right
    else:
        text = repr(value)
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length - 1].rstrip()}…"


def some(texts: list[str]) -> str:
    return ", ".join(texts[:SHOWN]) + (", …" if len(texts) > SHOWN else "")


def describe_array(value: Any) -> str:
    dtype, there = str(value.dtype).removeprefix("torch."), device_type(value)
    place = "" if there == "cpu" else f" on {there}"
    if there == "meta":
        return f"{dtype}{tuple(value.shape)}{place}, without values"
    flat = to_numpy(value).reshape(-1)
    shown = some([f"{float(entry):.5g}" for entry in flat[:SHOWN + 1]])
    return f"{dtype}{tuple(value.shape)}{place} [{shown}]"


def article(name: str) -> str:
    return f"{'an' if name[:1] in 'aeiouAEIOU' else 'a'} {name}"
