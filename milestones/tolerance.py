"""Wrong numbers on purpose: results replaced by zeros, 5 % more, the other sign, or turned. Checks must refuse them."""

import functools
import importlib
import inspect
import numbers
from collections.abc import Callable
from typing import Any

from milestones.expecting import equal, is_array
from milestones.tasks import Task

CHANGES: dict[str, Callable[[Any], Any]] = {
    "zeros": lambda value: value * 0,
    "×1.05": lambda value: value * 1.05,
    "sign flipped": lambda value: -value,
    "transposed": lambda value: value.T if is_array(value) and value.ndim == 2 else value,
}


def changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """The value with its numbers and float tensors changed; all else as it is. Tuples and lists of them: each."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, numbers.Number):
        return type(value)(change(value))
    if is_array(value):
        new = change(value)
        return new.astype(value.dtype) if hasattr(new, "astype") else new.to(value.dtype)
    if type(value) in (tuple, list) and any(is_array(part) or isinstance(part, numbers.Number) for part in value):
        return type(value)(changed(part, change) for part in value)
    return value


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
            if type(new) is type(value) and equal(new, value, rtol=0, atol=0):
                return value
            count[0] += 1
            return new

        functools.update_wrapper(wrapped, function)
        setattr(owner, name, kind(wrapped) if kind else wrapped)
    return lambda: count[0]
