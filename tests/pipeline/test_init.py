"""`finetune init`: options for scripts, questions at a terminal, and a file that passes a dry run either way."""
import os
import pty
import shutil
import subprocess
import sys

import pytest

from finetune_lib.core import base_model, data_folder
from finetune_lib.pipeline.command import main
from finetune_lib.pipeline.config import load_config
from finetune_lib.pipeline.doctor import starter

COMMAND = [sys.executable, "-c", "import sys; from finetune_lib.pipeline.command import main; sys.exit(main())", "init"]


def at_a_terminal(place, *typed, words=("mine.yaml",)):
    """(exit code, all that stood on the screen) of `finetune init` in a pseudo-terminal, with these lines typed."""
    here, terminal = pty.openpty()
    os.write(here, "".join(f"{line}\n" for line in typed).encode())
    environment = os.environ | {"FINETUNE_DATA": str(data_folder()), "COLUMNS": "200"}
    child = subprocess.Popen([*COMMAND, *words], cwd=place, env=environment, stdin=terminal, stdout=terminal,
                             stderr=terminal, start_new_session=True)
    os.close(terminal)
    screen = b""
    try:
        while piece := os.read(here, 4096):
            screen += piece
    except OSError:  # what Linux says where the other end is closed
        pass
    finally:
        os.close(here)
    return child.wait(), screen.decode()


@pytest.fixture
def mine(tmp_path):
    """A folder with a table."""
    rows = "".join(f"What is {n} and {n}?,{n} and {n} is {2 * n}.\n" for n in range(40))
    (tmp_path / "mine.csv").write_text(f"question,answer\n{rows}")
    return tmp_path


def test_it_asks_for_model_data_and_card_and_what_it_writes_passes_a_dry_run(mine, monkeypatch, capsys):
    code, screen = at_a_terminal(mine, "", "mine.csv", "T4")
    assert code == 0 and "wrote mine.yaml" in screen
    places = [screen.index(word) for word in ("Model (", "Data (", "Card ")]
    assert places == sorted(places)
    text = (mine / "mine.yaml").read_text()
    assert "chosen for a T4" in text and '"mine.csv"' in text and text.count("#") >= 10
    monkeypatch.chdir(mine)
    assert load_config("mine.yaml", environment={}).data.train == ("mine.csv",)
    assert main(["run", "mine.yaml", "--dry-run"]) == 0
    assert "training about" in capsys.readouterr().out


def test_an_answer_that_cannot_be_is_asked_for_again_with_the_reason(mine):
    code, screen = at_a_terminal(mine, "./nowhere", "", "your.csv", "mine.csv", "abacus", "")
    assert code == 0 and "chosen for a" not in (mine / "mine.yaml").read_text()
    for said in ("'./nowhere' does not", "there is no file 'your.csv'", "unknown card 'abacus'"):
        assert said in screen


def test_with_an_option_it_does_not_ask_even_at_a_terminal(mine):
    code, screen = at_a_terminal(mine, words=("mine.yaml", "--data", "mine.csv"))
    assert code == 0 and "Model (" not in screen and '"mine.csv"' in (mine / "mine.yaml").read_text()


def test_without_a_terminal_it_does_not_wait_for_anybody(mine):
    done = subprocess.run([*COMMAND, "mine.yaml"], cwd=mine, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0 and (mine / "mine.yaml").is_file() and "Model (" not in done.stdout


def test_nothing_is_written_where_somebody_leaves_in_the_middle(mine):
    code, _ = at_a_terminal(mine, "", "\x04")
    assert code != 0 and not (mine / "mine.yaml").exists()


@pytest.mark.parametrize(("method", "rate"), [("lora", "0.003"), ("full", "0.0003")])
def test_a_small_model_in_a_folder_gets_a_rate_for_small_models(tmp_path, method, rate):
    shutil.copytree(base_model(), tmp_path / "mine")
    assert f"learning_rate: {rate}  #" in starter(str(tmp_path / "mine"), "my.csv", method)
    assert "learning_rate: 0.0002  #" in starter(str(tmp_path / "elsewhere"), "my.csv")
