"""Wrong numbers on purpose: results replaced by zeros, 5 % more, the other sign, or turned. Checks must refuse them."""

import dataclasses
import functools
import importlib
import inspect
import numbers
from collections.abc import Callable
from typing import Any

from milestones.expecting import equal, is_array
from milestones.tasks import Task

Change = Callable[[Any], Any]
CHANGES: dict[str, Change] = {
    "zeros": lambda value: value * 0,
    "×1.05": lambda value: value * 1.05,
    "sign flipped": lambda value: -value,
    "transposed": lambda value: value.T if is_array(value) and value.ndim == 2 else value,
}


def changed(value: Any, change: Change) -> Any:
    """The value with its numbers and tensors changed, also those inside lists, tuples, dicts and dataclasses.

    The value itself where nothing in it is another one: text, a truth value, zeros times 1.05, whole numbers that
    5 % do not move.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Number):
        return other(value, type(value)(change(value)))
    if is_array(value):
        new = change(value)
        return other(value, new.astype(value.dtype) if hasattr(new, "astype") else new.to(value.dtype))
    if type(value) in (tuple, list):
        parts = [changed(part, change) for part in value]
        return value if alike(parts, value) else type(value)(parts)
    if type(value) is dict:
        parts = [changed(part, change) for part in value.values()]
        return value if alike(parts, value.values()) else dict(zip(value, parts, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        parts = [changed(part, change) for part in fields.values()]
        return value if alike(parts, fields.values()) else dataclasses.replace(
            value, **dict(zip(fields, parts, strict=True)))
    return value


def other(value: Any, new: Any) -> Any:
    """The new value, or the old one itself where they are equal."""
    return value if equal(new, value, rtol=0, atol=0) else new


def alike(parts: Any, before: Any) -> bool:
    return all(part is old for part, old in zip(parts, before, strict=True))


def spoil(task: Task, change: str) -> Callable[[], int]:
    """Wrap the task's functions in the imported library; returns how often a result was really changed so far."""
    module, count = importlib.import_module(task.module), [0]
    for target in task.targets:
        *path, name = target.split(".")
        owner = functools.reduce(getattr, path, module)
        found = inspect.getattr_static(owner, name)
        kind = type(found) if isinstance(found, (staticmethod, classmethod)) else None
        function = found.__func__ if kind else found
        if not inspect.isfunction(function) or inspect.isgeneratorfunction(function):
            continue

        def wrapped(*args: Any, _function: Callable = function, **options: Any) -> Any:
            value = _function(*args, **options)
            new = changed(value, CHANGES[change])
            count[0] += new is not value
            return new

        functools.update_wrapper(wrapped, function)
        setattr(owner, name, kind(wrapped) if kind else wrapped)
    return lambda: count[0]
