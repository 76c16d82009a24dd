"""The library is what the notebooks export: generated, whole, and nothing beside it."""
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def modules(folder: Path) -> dict[str, str]:
    """Text of each Python file of the library, by its path inside the package."""
    package = folder / "finetune_lib"
    return {str(path.relative_to(package)): path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}


def test_exporting_the_notebooks_again_changes_nothing(tmp_path):
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "finetune_lib").mkdir()
    shutil.copy(ROOT / "finetune_lib/__init__.py", tmp_path / "finetune_lib")
    export = Path(sys.executable).with_name("nbdev-export")
    subprocess.run([export], cwd=tmp_path, check=True, capture_output=True, text=True)
    stored, fresh = modules(ROOT), modules(tmp_path)
    assert sorted(stored) == sorted(fresh), "modules without a notebook, or notebooks not exported: run nbdev-export"
    differing = [name for name in stored if stored[name] != fresh[name]]
    assert not differing, f"run nbdev-export: {differing} differ from their notebooks"
