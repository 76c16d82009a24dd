"""What a check says: `same`, `expect`, `gives` and `refuses` fail with expected, got and the likely reason.

A reason is a known mistake by its effect: the value it gives (or a condition that it makes true). So it is found from
what came out, wherever the check runs, and whatever the learner's code looks like.
"""
from collections.abc import Callable, Iterable
from typing import Any

from milestones.comparing import equal, is_array
from milestones.saying import NOTHING, article, describe, likely, when, where


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
    dtype: Any = None,  # a tensor's type, where another one of the same values would be wrong
) -> None:
    """Fail with a `Mismatch` unless `got` equals `expected`, in structure, shape, device and value."""
    if not equal(got, expected, rtol, atol):
        reason = likely(got, expected, reasons or {}, rtol, atol)
        raise Mismatch(f"not right: {what}{where(got, expected)}", describe(expected), describe(got), reason)
    if dtype is not None and getattr(got, "dtype", None) != dtype:
        found = str(getattr(got, "dtype", type(got).__name__))
        raise Mismatch(f"not of the right type: {what}", str(dtype), found,
                       f"the values are right, but they are {found.removeprefix('torch.')}: "
                       f"bring them to {str(dtype).removeprefix('torch.')}")


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


def gives(
    got: Any,  # what the learner's code returned
    what: str,  # what was called, as "freeze"
    kind: type | tuple[type, ...] = object,  # what it must be
    fields: Iterable[str] = (),  # names that it must have, for a dataclass of the learner's library
    parts: int | None = None,  # how many values, for a tuple
) -> Any:
    """`got` itself when a check can look into it; else a `Mismatch` that says what was returned instead."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    missing = [name for name in fields if not hasattr(got, name)]
    names = " or ".join(article(known.__name__) for known in kinds if known is not object)
    expected = names or f"something with {', '.join(fields) or 'a value'}"
    if parts is not None:
        expected = f"{parts} values, `return a, b`" if parts == 2 else f"{parts} values"
    if got is None or not isinstance(got, kinds) or missing:
        came = describe(got) if got is None or is_array(got) else f"{article(type(got).__name__)}: {describe(got)}"
        reason = NOTHING if got is None else f"{article(type(got).__name__)} has no {', '.join(missing)}" if missing \
            else f"{expected} must be returned, not {article(type(got).__name__)}"
        raise Mismatch(f"{what} returns something else", expected, came, reason)
    if parts is not None and len(got) != parts:
        raise Mismatch(f"{what} returns another number of values", expected, f"{len(got)}: {describe(got)}",
                       f"{parts} values belong behind `return`, in the order that the docstring says")
    return got


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
                       "an error of another kind is raised, or bad input is used before it is checked") from raised
    raise Mismatch(f"{what} must be refused", expected, f"no error, but {describe(value)}",
                   "bad input is not checked, or it is answered in place of an error")
