"""The commands of README, read from it, and a place that looks like a clone in which they are run as they stand."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from milestones.starting import make_environment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
PROGRAMS = ("make", "finetune", "course", "git", "source", "python", "pip", "pre-commit", "jupyter", "cut")
COMMAND = re.compile(rf"(?:\.venv/bin/)?(?:{'|'.join(PROGRAMS)})\b(?! *[\"(])")


def blocks() -> list[tuple[str, list[str]]]:
    """(language, lines) of each fenced block."""
    return [(language, text.splitlines()) for language, text in FENCE.findall(README)]


def commands_of(lines: list[str]) -> list[str]:
    """What a block tells to type: the lines after a prompt, else all lines where the first is a command."""
    typed = [line[2:] for line in lines if line.startswith("$ ")]
    if not typed and COMMAND.match(lines[0]):
        typed = [line for line in lines if line.strip()]
    return [re.sub(r"\s+#.*", "", line).strip() for line in typed]


def inline_commands() -> list[str]:
    """Commands in the running text, with something after the program's name."""
    spans = re.findall(r"`([^`\n]+)`", FENCE.sub("", README))
    return [span for span in spans if COMMAND.match(span) and " " in span]


@pytest.fixture(scope="session")
def told() -> list[str]:
    """Every command of README once, in its order."""
    found = [command for _, lines in blocks() for command in commands_of(lines)]
    return list(dict.fromkeys([*found, *inline_commands()]))


@pytest.fixture(scope="session")
def silent_blocks() -> list[tuple[str, list[str]]]:
    """Blocks in which nothing is to be typed: scripts, Python, and what is only shown."""
    return [(language, lines) for language, lines in blocks() if not commands_of(lines)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """What a clone looks like after `make`'s install: the files by links, an environment with this one's packages."""
    folder = tmp_path_factory.mktemp("readme") / "course"
    folder.mkdir()
    for name in ("Makefile", "settings.ini", "setup.py", "pyproject.toml", "LICENSE", ".gitignore", "nbs", "data",
                 "finetune_lib", "milestones", "tests"):
        (folder / name).symlink_to(ROOT / name)
    make_environment(folder)
    (folder / ".venv/installed").touch()
    return folder


@pytest.fixture(scope="module")
def run(told, checkout):
    """run("finetune fit"): a command that stands in README, in a shell; capitals such as RUN stand for a path."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FINETUNE_", "PYTHONPATH"))}
    programs = os.pathsep.join([f"{checkout}/.venv/bin", str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**inherited, "PATH": programs, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}

    def run(command: str, cwd: Path = checkout, codes: tuple = (0,), **paths: object) -> str:
        assert command in told, f"README does not say {command!r} any more"
        for name, path in paths.items():
            command = command.replace(name, str(path))
        done = subprocess.run(["bash", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL)
        assert done.returncode in codes, f"{command}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout
    return run
