"""What the judge is made of, noted before a learner's code is imported and compared after every check.

The judge is pytest, this kit, and the functions of Python, numpy and torch that checks compute and compare with. A
patched one is found wherever it was patched: on import, or when a graded function was called.
"""
import builtins
import importlib
import sys
import types
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

PACKAGES = ("milestones", "_pytest", "pluggy", "pytest")  # with their classes and submodules
MODULES = ("builtins", "functools", "inspect", "json", "json.encoder", "math", "operator", "os", "random",
           "numpy", "numpy.linalg", "numpy.random", "numpy.testing", "numpy._core.fromnumeric", "numpy._core.numeric",
           "torch", "torch.functional", "torch.linalg", "torch.nn.functional", "torch.testing")
NEEDED = (*MODULES, "torch._dynamo")  # before the notes; the last puts a torch.manual_seed of its own in place, late
SET_BY_RUNS = ("_reprcompare", "_assertion_pass")  # pytest sets them for each run, and only to word a failure
CLASSES = (("torch", "Tensor"),)
Kept = tuple[Any, types.FunctionType | None, Any, Any, Any]


class Seal:
    """Notes on what must stay as it is; `broken` names the first that did not, or is empty."""

    def __init__(self) -> None:
        for name in NEEDED:  # before the notes: torch changes inspect.getfile when it is imported
            with suppress(ImportError):
                importlib.import_module(name)
        self.modules = {name: module for name, module in list(sys.modules.items())
                        if module is not None and (name in MODULES or name.partition(".")[0] in PACKAGES)}
        self.spaces: list[tuple[str, Mapping[str, Any], dict[str, Kept], frozenset[str]]] = []
        for name in sorted(self.modules, key=lambda name: name != "builtins"):
            self.note(name, vars(self.modules[name]), vars(builtins))
        for name in sorted(self.modules):
            if name.partition(".")[0] in PACKAGES:
                self.note_classes(name, vars(self.modules[name]).values())
        for name, kind in CLASSES:
            if name in self.modules:
                self.note_classes(name, [getattr(self.modules[name], kind)])

    def note(self, name: str, space: Mapping[str, Any], shadowed: Iterable[str] = ()) -> None:
        """Note all that can be called in a namespace, and what no name in it may hide from now on."""
        noted = {key: kept(value) for key, value in space.items() if can_be_called(value) and key not in SET_BY_RUNS}
        self.spaces.append((name, space, noted, frozenset(shadowed) - set(space)))

    def note_classes(self, module: str, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, type) and value.__module__.partition(".")[0] == module.partition(".")[0]:
                inherited = {key for base in value.__mro__[1:] for key in vars(base)} - {"__dict__", "__weakref__"}
                self.note(f"{value.__module__}.{value.__qualname__}", vars(value), inherited)

    def broken(self) -> str:
        """Plain syntax only: a call would go through what may have been patched."""
        for name in self.modules:
            if name not in sys.modules or sys.modules[name] is not self.modules[name]:
                return name
        for name, space, noted, shadowed in self.spaces:
            for key in noted:
                value, function, code, defaults, keywords = noted[key]
                if key not in space or space[key] is not value:
                    return name + "." + key
                if function is not None and (function.__code__ is not code or function.__defaults__ is not defaults
                                             or function.__kwdefaults__ is not keywords):
                    return name + "." + key
            for key in space:
                if key in shadowed:
                    return name + "." + key
        return ""


def can_be_called(value: Any) -> bool:
    return callable(value) or isinstance(value, (property, classmethod, staticmethod))


def kept(value: Any) -> Kept:
    """A value and, where Python code is behind it, what that code is."""
    function = value
    for name in ("fget", "__func__", "_implementation", "__wrapped__"):
        function = vars_of(function, name)
    if not isinstance(function, types.FunctionType):
        return value, None, None, None, None
    return value, function, function.__code__, function.__defaults__, function.__kwdefaults__


def vars_of(value: Any, name: str) -> Any:
    """The function inside another one; the value itself where there is none."""
    if isinstance(value, type):
        return value
    inner = getattr(value, name, None)
    return value if inner is None else inner
