"""What a check says: `same`, `expect` and `refuses` fail with expected, got and the likely reason.

A reason is a known mistake by its effect: the value it gives (or a condition that it makes true). So it is found from
what came out, wherever the check runs, and whatever the learner's code looks like.
"""
import numbers
import reprlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

SHOWN = 8  # entries of a tensor or list that are shown
short = reprlib.Repr()
short.maxstring = short.maxother = 160
short.maxlist = short.maxtuple = short.maxdict = SHOWN


class Mismatch(AssertionError):
    """A check's finding, in the learner's terms."""

    def __init__(self, what: str, expected: str, got: str, reason: str = ""):
        self.what, self.expected, self.got, self.reason = what, expected, got, reason
        because = f"\nlikely reason: {reason}" if reason else ""
        super().__init__(f"{what}\nexpected: {expected}\ngot: {got}{because}")


def same(
    got: Any,  # what the learner's code gave: number, text, tensor, or lists, tuples and dicts of them
    expected: Any,  # what is right
    what: str,  # what was looked at, as "the output of LoRALinear"
    reasons: dict[str, Any] | None = None,  # known mistake → the value that it gives, or whether it happened (a bool)
    rtol: float = 1e-5,  # allowed relative difference
    atol: float = 1e-6,  # allowed absolute difference
) -> None:
    """Fail with a `Mismatch` unless `got` equals `expected`, in structure, shape and value."""
    if equal(got, expected, rtol, atol):
        return
    reason = likely(got, expected, reasons or {}, rtol, atol)
    raise Mismatch(f"{what} is not right{where(got, expected)}", describe(expected), describe(got), reason)


def expect(
    condition: bool,  # what must hold
    what: str,  # the claim, as "the base weight gets no gradient"
    expected: Any = "",  # shown as text when it is one
    got: Any = "",
    reasons: dict[str, bool] | None = None,  # known mistake → whether it happened
) -> None:
    """Fail with a `Mismatch` unless the condition holds."""
    if not condition:
        reason = next((text for text, happened in (reasons or {}).items() if happened), "")
        plain = [value if isinstance(value, str) else describe(value) for value in (expected, got)]
        raise Mismatch(f"this does not hold: {what}", plain[0] or what, plain[1] or "it does not", when(reason))


def refuses(
    call: Callable[[], Any],  # what must be refused
    what: str,  # the bad input, as "a rank of 0"
    error: type[Exception] | tuple[type[Exception], ...] = ValueError,
    mentions: str = "",  # what the message must hold, in any case
) -> None:
    """Fail unless the call raises `error` with a message that says what is wrong."""
    names = " or ".join(kind.__name__ for kind in (error if isinstance(error, tuple) else (error,)))
    expected = names + (f" with a message that mentions {mentions!r}" if mentions else "")
    try:
        value = call()
    except NotImplementedError:
        raise
    except error as raised:
        if mentions.lower() not in str(raised).lower():
            raise Mismatch(f"the message for {what} does not help", expected, f"{type(raised).__name__}: {raised}",
                           "the message does not say what must hold") from raised
        return
    except Exception as raised:
        raise Mismatch(f"{what} is refused in the wrong way", expected, f"{type(raised).__name__}: {raised}",
                       "bad input is not checked before it is used") from raised
    raise Mismatch(f"{what} must be refused", expected, f"no error, but {describe(value)}", "bad input is not checked")


def equal(got: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> bool:
    """Equal in structure and shape, and in value within the tolerances; whole numbers exactly. NaN equals NaN.

    A tensor without dimensions counts as its number.
    """
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
        exact = isinstance(expected, int) and isinstance(got, int)
        return got == expected if exact else bool(np.isclose(got, expected, rtol=rtol, atol=atol, equal_nan=True))
    if isinstance(expected, dict) and isinstance(got, dict):
        return got.keys() == expected.keys() and all(equal(got[key], expected[key], rtol, atol) for key in expected)
    if isinstance(expected, (list, tuple)) and isinstance(got, (list, tuple)):
        return len(got) == len(expected) and all(equal(a, b, rtol, atol) for a, b in zip(got, expected, strict=True))
    if is_array(got):
        return False
    return bool(got == expected)


def is_array(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))


def to_numpy(value: Any) -> np.ndarray:
    """Tensor or array as an array on the CPU; floats in float64, so that bfloat16 can be compared."""
    if isinstance(value, np.ndarray):
        return value
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()


def likely(got: Any, expected: Any, reasons: dict[str, Any], rtol: float, atol: float) -> str:
    """The first known mistake that gives what was got; then the general ones."""
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
    if got is None:
        return "nothing is returned: is there a `return` at the end?"
    numeric = is_array(got) or (isinstance(got, numbers.Number) and not isinstance(got, bool))
    if not numeric or not (is_array(expected) or isinstance(expected, numbers.Number)):
        return (
            ""
            if type(got) is type(expected)
            else f"a {type(expected).__name__} was expected, not a {type(got).__name__}"
        )
    left, right = (np.asarray(to_numpy(v) if is_array(v) else v, dtype=float) for v in (got, expected))
    if left.shape == right.shape[::-1] != right.shape and left.ndim == 2:
        return "rows and columns are exchanged: it is transposed"
    if left.shape != right.shape:
        return f"the shape is {left.shape} where {right.shape} was expected"
    if np.isnan(left).any() and not np.isnan(right).any():
        return "there are NaNs in it: a division by zero, or the logarithm of zero"
    if not left.any():
        return "all of it is zero"
    if np.allclose(left, -right, rtol=rtol, atol=atol):
        return "the sign is the wrong way round"
    factor = left[right != 0] / right[right != 0]
    if factor.size and np.allclose(factor, factor.flat[0], rtol=1e-4) and np.allclose(left[right == 0], 0, atol=atol):
        return f"it is {factor.flat[0]:.4g} times what it should be: a factor is wrong or missing"
    return ""


def where(got: Any, expected: Any) -> str:
    """Where two arrays of one shape, or two lists, differ most or first."""
    if is_array(got) and is_array(expected) and got.shape == expected.shape and len(got.shape):
        gap = np.abs(np.asarray(to_numpy(got), float) - np.asarray(to_numpy(expected), float))
        place = np.unravel_index(np.argmax(np.nan_to_num(gap, nan=np.inf)), gap.shape)
        return f": the largest difference is {gap[place]:.3g}, at [{', '.join(map(str, map(int, place)))}]"
    if isinstance(got, dict) and isinstance(expected, dict) and got.keys() != expected.keys():
        missing, extra = sorted(map(str, expected.keys() - got.keys())), sorted(map(str, got.keys() - expected.keys()))
        return "".join(
            f", {word} {', '.join(keys[:SHOWN])}"
            for word, keys in (("missing", missing), ("unexpected", extra))
            if keys
        )
    if isinstance(got, (list, tuple, str)) and isinstance(expected, (list, tuple, str)):
        first = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if not equal(a, b)), None)
        return f", from position {first}" if first is not None else f": its length is {len(got)}, not {len(expected)}"
    return ""


def describe(value: Any) -> str:
    """A value in one short line: shape and first entries of a tensor, few digits."""
    if is_array(value):
        flat = to_numpy(value).reshape(-1)
        shown = ", ".join(f"{float(entry):.5g}" for entry in flat[:SHOWN])
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{dtype}{tuple(value.shape)} [{shown}{', …' if flat.size > SHOWN else ''}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)) and value and all(isinstance(entry, float) for entry in value[:SHOWN]):
        return "[" + ", ".join(f"{entry:.4g}" for entry in value[:SHOWN]) + (", …]" if len(value) > SHOWN else "]")
    return short.repr(value)
