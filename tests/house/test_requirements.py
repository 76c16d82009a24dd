"""Every third-party library that is imported is declared in settings.ini, the only place for it."""
import ast
import re
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = {"finetune_lib", "milestones", "__future__"}


def settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*keys: str) -> set[str]:
    lines = [line.strip() for key in keys for line in settings().get(key, "").splitlines() if line.strip()]
    return {plain(re.match(r"[\w.-]+", line)[0]) for line in lines}


def imports(folder: str) -> dict[str, set[str]]:
    """Top-level names that the files of a folder import, each with the files that do."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(str(path.relative_to(ROOT)))
    return {name: files for name, files in found.items() if name not in sys.stdlib_module_names | OURS}


def undeclared(folder: str, *keys: str) -> dict[str, set[str]]:
    distributions = packages_distributions()
    known = declared(*keys)
    return {name: files for name, files in imports(folder).items()
            if not {plain(item) for item in distributions.get(name, [name])} & known}


def extras() -> list[str]:
    return [key for key in settings() if key.endswith("_requirements")]


def test_the_library_imports_only_what_it_declares():
    assert undeclared("finetune_lib", "requirements", *extras()) == {}


def test_the_kit_imports_only_what_it_declares():
    assert undeclared("milestones", "requirements", "dev_requirements") == {}


def test_every_requirement_has_a_floor():
    lines = [line.strip() for key in ("requirements", "dev_requirements") for line in settings()[key].splitlines()]
    assert [line for line in lines if line and ">=" not in line] == []
