"""A wheel holds what a checkout holds: every module, the milestones' numbered folders, the licence."""
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("finetune_lib", "milestones")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The project's wheel, built from a copy."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    build = [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", "dist"]
    subprocess.run(build, cwd=folder, check=True, capture_output=True)
    return zipfile.ZipFile(next((folder / "dist").glob("*.whl")))


def test_every_file_of_both_packages_is_in_the_wheel(wheel):
    files = {str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*")
             if path.is_file() and "__pycache__" not in path.parts}
    assert files - set(wheel.namelist()) == set()


def test_the_wheel_carries_name_licence_and_commands(wheel):
    said = {Path(name).name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
    assert "finetune = finetune_lib.pipeline.command:main" in said["entry_points.txt"]
    assert "course = milestones.command:main" in said["entry_points.txt"]
    assert "Name: finetune_lib" in said["METADATA"].replace("finetune-lib", "finetune_lib")
    assert "Apache License" in said["LICENSE"]
