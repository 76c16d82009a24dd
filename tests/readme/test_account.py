"""Every command and every block of README is run by a test, or excepted by name with the reason."""
import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WALKS = ("tests/readme/test_practitioners.py", "tests/readme/test_instructors.py", "tests/readme/test_authors.py",
         "tests/kit/test_journeys.py")
EXCEPTED = {  # command → why no test runs it
    "make test": "this test is a part of it",
    "make lab": "a server that does not end; tests/browser works in JupyterLab as it starts it",
    "make lab DIR=../my-course": "the same server, in a learner's folder",
    "finetune run my.yaml --set model.name_or_path=Qwen/Qwen2.5-0.5B --set output.folder=runs/qwen":
        "fetches a model from the hub; tests/pipeline/test_ready.py trains that shape, scaled down",
    "make lint": "ruff, and tests/house, which is a part of `make test`",
    "make studies": "two hours of measuring; tests/house/test_data.py reads what it stored",
    "make notebooks": "rewrites the notebooks; `make test` runs each of them with nbval",
    "make soak": "a hundred trainings; tests/training/test_resume.py kills a few",
    "make test-export": "compiles llama.cpp for minutes; it is a run of tests/export",
    "pip install -e '.[gguf]'": "compiles llama.cpp for minutes; the environment of `make test-export` has it",
    "finetune export my.yaml --format gguf-q8_0": "needs that extra; tests/export/test_shipping.py runs it",
    "make bench-data": "ten minutes of timing",
    "make bench-train": "minutes of timing",
    "finetune fit --validate": "a process for each of its points; tests/qlora/test_fitting.py runs one",
    "course grade": "the command's name in a sentence; each of its forms is run",
    "course audit": "measures the grader for minutes; tests/kit/test_audit.py does so on a small course",
}
SHOWN = {  # the first line of a block in which nothing is typed → what it is
    "#!/usr/bin/env bash": "scripts for Gradescope, in test_instructors.py",
    "from finetune_lib import FineTuningPipeline": "Python, in test_practitioners.py",
    '  "points": 0, "max_points": 90,': "a report's lines, in test_instructors.py",
    "README.md        this page; its numbers are made by milestones/readme.py": "the tree, in test_readme.py",
}


def walked() -> set[str]:
    """Every string that stands in the tests that walk through README."""
    trees = [ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in WALKS]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return {node.value for node in nodes if isinstance(node.value, str)}


def test_every_command_of_readme_is_run_or_excepted(told):
    open_ones = [command for command in told if command not in walked() and command not in EXCEPTED]
    assert open_ones == [], "run them in one of WALKS, or add them to EXCEPTED with the reason"


def test_what_is_excepted_stands_in_readme_and_is_not_run(told):
    assert set(EXCEPTED) <= set(told) and not set(EXCEPTED) & walked()


def test_every_other_block_is_known(silent_blocks):
    assert {lines[0] for _, lines in silent_blocks} == set(SHOWN)


@pytest.mark.parametrize("command", [command for command in EXCEPTED if command.startswith("make ")])
def test_what_make_would_do_for_an_excepted_command_is_there(command):
    words = ["make", "--dry-run", "-o", ".venv/installed", "-o", ".venv/export/installed", *command.split()[1:]]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ".venv/" in said
    assert [path for path in re.findall(r"tests/[\w/]+\.py", said) if not (ROOT / path).is_file()] == []
