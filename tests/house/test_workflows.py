"""The workflow files are what GitHub and pre-commit expect, as far as this can be known without them."""
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
CONTEXTS = {"github", "matrix", "runner", "env", "secrets", "steps", "needs", "inputs"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_triggers_and_jobs_with_complete_steps(path):
    workflow = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # BaseLoader: `on` stays a string
    assert workflow["on"] and workflow["jobs"] and "permissions" in workflow
    for job in workflow["jobs"].values():
        assert job["runs-on"] and job["timeout-minutes"].isdigit()
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            assert "@" in step.get("uses", "@"), step


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_names_only_what_it_defines(path):
    text = path.read_text(encoding="utf-8")
    for job in yaml.load(text, Loader=yaml.BaseLoader)["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        for name in re.findall(r"\$\{\{\s*matrix\.(\w+)", str(job)):
            assert name in matrix
    for context in re.findall(r"\$\{\{\s*(\w+)\.", text):
        assert context in CONTEXTS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_commands_of_a_workflow_are_bash(path):
    for job in yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)["jobs"].values():
        for step in job["steps"]:
            code = re.sub(r"\$\{\{.*?\}\}", "value", step.get("run", ""))
            assert subprocess.run(["bash", "-n"], input=code, text=True).returncode == 0, code


def test_ci_runs_on_every_python_and_system_promised():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    assert {name.split("-")[0] for name in matrix["os"]} == {"ubuntu", "macos"}


def test_ci_makes_every_export_and_keeps_what_was_measured():
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]["export"]
    commands = [step.get("run", "") for step in job["steps"]]
    assert commands.index("make test-export") > next(place for place, command in enumerate(commands)
                                                     if command.endswith("make .venv/export/installed"))
    assert "runs/export/report.json" in [step.get("with", {}).get("path") for step in job["steps"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\ntest-export: $(EXPORT)/installed" in makefile and "\n$(EXPORT)/installed: $(STAMP)" in makefile


def test_the_ci_script_is_executable_bash_and_calls_the_test_command():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert re.search(r"^make test", script.read_text(encoding="utf-8"), re.M)


def test_ci_brings_what_the_browser_tests_need():
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]["test"]
    commands = [step.get("run", "") for step in job["steps"]]
    assert commands.index(".ci/run") > next(place for place, command in enumerate(commands)
                                            if "playwright install" in command)
    assert re.search(r"lacking\+=\(chromium\)", (ROOT / ".ci/run").read_text(encoding="utf-8"))


def test_pre_commit_checks_style_and_export():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = {hook["id"]: hook for repository in config["repos"] for hook in repository["hooks"]}
    assert set(hooks) == {"ruff", "export"}
    assert (ROOT / hooks["export"]["entry"].split()[-1]).is_file()
