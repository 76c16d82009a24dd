"""What is not written yet: a function that does nothing but raise `NotImplementedError("task 2.1: …")`."""
import dis
import functools
import inspect
import re
from typing import Any

MESSAGE = re.compile(r"^task (\d+\.\d+): ")
SETUP = {"RESUME", "NOP", "COPY_FREE_VARS", "MAKE_CELL", "RETURN_GENERATOR", "POP_TOP"}


def stub_of(error: BaseException | None) -> str | None:
    """The id of the open task that an error comes from, also when it was raised while another one was handled."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        found = MESSAGE.match(str(error)) if isinstance(error, NotImplementedError) else None
        if found:
            return found[1]
        error = error.__cause__ or error.__context__
    return None


def is_stub(names: Any, target: str) -> bool:
    """Whether `target` ("scaling", or "LoRALinear.forward") among `names` raises before it does anything else."""
    try:
        value = functools.reduce(inspect.getattr_static, target.split(".")[1:], getattr(names, target.split(".")[0]))
    except Exception:  # a name that cannot be had is not a stub; the check itself says what is missing
        return False
    code = getattr(plain(value), "__code__", None)
    first = next((step for step in dis.get_instructions(code) if step.opname not in SETUP), None) if code else None
    return first is not None and first.argval == "NotImplementedError" and any(
        isinstance(const, str) and MESSAGE.match(const) for const in code.co_consts)


def plain(value: Any) -> Any:
    """The function inside a property, class method, static method or decorator."""
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, (classmethod, staticmethod)):
        value = value.__func__
    return inspect.unwrap(value) if callable(value) else value
