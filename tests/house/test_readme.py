"""README tells the truth: its numbers are made, its commands exist, its tree is the tree."""
import importlib
import re
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest
import typer

from milestones import readme

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", TEXT, re.S))


def names(command: str) -> list[str]:
    """What follows a command in README's code: its targets or subcommands."""
    return sorted(set(re.findall(rf"(?:^|`|bin/){command} ([a-z-]+)\b", CODE, re.M)))


def test_every_made_section_is_up_to_date():
    assert readme.render(TEXT) == TEXT, "run: python -m milestones.readme"


def test_every_section_that_can_be_made_stands_in_readme():
    assert [match[2] for match in readme.SECTION.finditer(TEXT)] == list(readme.MAKERS)


def test_every_make_target_named_in_readme_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    assert {"demo", "test"} <= set(names("make")) <= targets
    assert targets == set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())


def test_every_make_target_does_something():
    for line in re.findall(r"^[a-z-]+:.*\n.*", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M):
        assert "\n\t" in line, f"a target without a command: {line}"


@pytest.mark.parametrize(("command", "module"), [("finetune", "finetune_lib.pipeline.command"),
                                                 ("course", "milestones.command")])
def test_every_subcommand_named_in_readme_exists(command, module):
    known = typer.main.get_command(importlib.import_module(module).app).commands
    assert names(command) and set(names(command)) <= set(known)


def test_every_link_in_readme_leads_to_a_file():
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()] == []


def test_the_tree_in_readme_is_the_tree():
    tree = re.search(r"## What is where\n+```\n(.*?)```", TEXT, re.S)[1]
    told = {line.split()[0].rstrip("/") for line in tree.splitlines()}
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout.splitlines()
    there = {path.split("/")[0] for path in listed} - {".gitignore", ".gitattributes", ".pre-commit-config.yaml"}
    assert told == there


def test_the_public_address_stands_in_settings_alone():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    name = f"{config['DEFAULT']['user']}/{config['DEFAULT']['repo']}"
    folders = ("finetune_lib", "milestones", ".github", ".ci", "tests")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".yml", ".md"}
             and name in path.read_text(encoding="utf-8")]
    assert found == []
