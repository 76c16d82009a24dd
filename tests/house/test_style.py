"""Ruff is clean, and the library is written as STYLE asks."""
import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARY = sorted((ROOT / "finetune_lib").rglob("*.py"))


def test_ruff_is_clean():
    result = subprocess.run([Path(sys.executable).with_name("ruff"), "check"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def functions(path: Path) -> list[ast.FunctionDef]:
    """Functions and methods of a module; not those inside functions, which nobody can call from outside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bodies = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef)]
    return [node for body in bodies for node in body.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_every_public_function_of_the_library_has_a_docstring():
    missing = [f"{path.relative_to(ROOT)}:{node.name}" for path in LIBRARY for node in functions(path)
               if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert missing == []


def test_the_library_does_not_print():
    calls = [f"{path.relative_to(ROOT)}:{node.lineno}" for path in LIBRARY
             for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"]
    assert calls == []


def test_no_module_is_named_for_nothing():
    vague = {"utils", "util", "helpers", "helper", "manager", "misc", "common"}
    folders = ("finetune_lib", "milestones", "tests", "data")
    assert [str(path) for folder in folders for path in (ROOT / folder).rglob("*.py") if path.stem in vague] == []
