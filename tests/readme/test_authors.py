"""README's other commands: what a learner's folder offers, and what an author types."""
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def test_a_work_folder_tells_what_is_next_and_can_be_renewed(run, checkout):
    run(".venv/bin/course start ../my-course")
    folder = checkout.parent / "my-course"
    assert run("course next", folder).startswith("1.1 ") and "unattempted" in run("course progress", folder)
    assert "kit, data and environment are new" in run("course update", folder)


def test_help_lists_what_make_can_do(run):
    assert "make demo" in run("make help")


def test_the_skeleton_is_packed_for_gradescope_without_a_solution(run, tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--depth=1", f"file://{ROOT}", clone], check=True)
    subprocess.run([sys.executable, "-m", "milestones", "branches"], cwd=clone, check=True, capture_output=True)
    run("git archive -o course.zip skeleton", clone)
    held = zipfile.ZipFile(clone / "course.zip").namelist()
    assert "milestones/02_lora/checks.py" in held and "milestones/02_lora/mistakes.py" not in held


def test_style_and_export_are_checked_before_each_commit(run, tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    shutil.copy(ROOT / ".pre-commit-config.yaml", tmp_path)
    run("pre-commit install", tmp_path)
    assert (tmp_path / ".git/hooks/pre-commit").is_file()
