"""Code that stops with an error, in the learner's terms: which of the learner's lines, and the likely reason."""
import linecache
import re
from pathlib import Path
from types import FrameType, TracebackType

from milestones.saying import NOTHING

LIBRARY = "finetune_lib"
REASONS = {  # words of an error → what they mean, for errors inside the learner's code or in what it returned
    "shapes? .*cannot be multiplied|size mismatch|must match the size of tensor|is invalid for input of size":
        "shapes do not fit: write them beside each line; a product x @ W wants the last axis of x to be the first of W",
    "same dtype|expected scalar type|but found (Half|Float|BFloat16|Double)|have different dtypes":
        "two types of numbers meet: bring one to the other's with `.to(…)`",
    "before Module.__init__": "`super().__init__()` must be the first thing in `__init__`",
    "same device|on different devices|meta tensor": "two devices meet: make new tensors on the input's device",
    "incorrect number of gradients|gradient different than None":
        "backward returns one thing for each argument of forward, in their order; None where there is no gradient",
    "can only save variables": "save_for_backward takes tensors alone; anything else is kept on ctx: `ctx.name = …`",
    "does not require grad": "the graph is cut: a detach, `.data`, `.item()` or no_grad stands on the way",
    "leaf Variable that requires grad": "a parameter is changed in place: work on a copy, or under no_grad",
    "shape of the mask": "bytes as an index are taken for a mask: make the index `.int()` or `.long()`",
    "values to unpack": "another number of values is returned, or taken, than there are",
    "division by zero": "a sum or count is zero there: treat that case first",
    "maximum recursion depth": "a function calls itself without end",
    "object has no attribute": "that kind of object has no such name: is it set before, and spelled so?",
    "is not defined|referenced before assignment|cannot access local variable":
        "a name is used that was never set: is it spelled as where it was set, and set on every way?",
}


def stopped(error: BaseException, traceback: TracebackType | None) -> tuple[str, str, str]:
    """(what, got, reason) for an error that is not a check's own finding."""
    frames = frames_of(traceback)
    own = [(frame, line) for frame, line in frames if is_learners(frame)]
    check = [(frame, line) for frame, line in frames if Path(frame.f_code.co_filename).name.startswith("checks")]
    frame, line = (own or check or frames)[-1]
    place = f"in {frame.f_code.co_qualname}, at `{source_line(frame, line)}`"
    what = f"the code stops with {type(error).__name__}: {error}"
    if own:
        return what, place, reason_for(error)
    return f"{what} (in the check, which looks at what came back)", place, reason_in_check(error) or reason_for(error)


def frames_of(traceback: TracebackType | None) -> list[tuple[FrameType, int]]:
    found = []
    while traceback is not None:
        found.append((traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    return found


def is_learners(frame: FrameType) -> bool:
    """Whether the frame runs code of a notebook: of its library, or of the open one."""
    name = frame.f_globals.get("__name__", "")
    return name == "__main__" or name.partition(".")[0] == LIBRARY


def source_line(frame: FrameType, line: int) -> str:
    return linecache.getline(frame.f_code.co_filename, line, frame.f_globals).strip()


def reason_for(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    if "NoneType" in text:
        return "something is None there: a function without `return` was called, or a value was never set"
    return next((reason for words, reason in REASONS.items() if re.search(words, text)), "")


def reason_in_check(error: BaseException) -> str:
    """An error in the check itself: it looked into what the learner's code gave."""
    text = str(error)
    if "NoneType" in text:
        return NOTHING
    if isinstance(error, AttributeError) and (found := re.search(r"'(\w+)' object has no attribute '(\w+)'", text)):
        return f"`{found[2]}` is looked for in what was made, and this {found[1]} has none: is it called so?"
    if isinstance(error, KeyError):
        return f"the key {text} is missing in what was returned"
    if isinstance(error, (TypeError, IndexError)) and re.search("subscriptable|iterable|index|len\\(\\)", text):
        return "something of another kind is returned than the docstring says"
    return ""
