"""The command: exit codes, and what each command prints."""
import io
import json
import os
import signal
import subprocess
import sys

import pytest

from finetune_lib.pipeline import command
from finetune_lib.pipeline.command import classify, main, told
from finetune_lib.pipeline.config import load_config, ready_configs
from finetune_lib.pipeline.doctor import memory_needed


def test_help_lists_every_command_without_torch():
    code = ("import sys; from finetune_lib.pipeline.command import main; main(['--help']); "
            "print('heavy:', sorted({'torch', 'transformers', 'pydantic'} & set(sys.modules)))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("heavy: []")
    for name in "run prepare train evaluate merge export generate fit doctor init targets demo".split():
        assert f" {name} " in out


@pytest.mark.parametrize("error, code", [
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 4), (MemoryError(), 4),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), 4),
    (OSError("No space left on device"), 4), (FileNotFoundError("gone.txt"), 2), (RuntimeError("shapes; and more"), 1)])
def test_an_error_from_elsewhere_has_its_code_and_its_three_parts(error, code):
    text, found = classify(error)
    assert found == code
    assert all(told(text).values()) and len(set(told(text).values())) == 3


@pytest.mark.parametrize("text, parts", [
    ("rank must be at least 1, got 0; 8 is a good start", ("rank must be at least 1", "got 0", "8 is a good start")),
    ("unknown card 'T5'; did you mean 'T4'?", ("unknown card 'T5'", command.NAMELESS, "did you mean 'T4'?")),
    ("the name is long, but it must fit, got 9; cut it", ("the name is long", "it must fit, got 9", "cut it")),
    ("nothing is left: 1 read, 0 kept; look", ("nothing is left", "1 read, 0 kept", "look")),
    ("onnx export needs: pip install x", ("onnx export must have its library", "it is not installed", "pip install x")),
    ("a.json is a web page: refused", ("a.json is a web page", "refused", command.SEE))])
def test_an_error_is_told_in_three_parts(text, parts):
    assert tuple(told(text).values()) == parts


def test_ctrl_c_is_clean_and_the_same_command_goes_on(settings, tmp_path, monkeypatch, capsys):
    real = command.show_event

    def pressed(record):
        if record["event"] == "progress" and not (tmp_path / "pressed").exists():
            (tmp_path / "pressed").touch()
            os.kill(os.getpid(), signal.SIGINT)
        real(record)

    monkeypatch.setattr(command, "show_event", pressed)
    line = ["train", *(word for one in settings("training.max_steps=24") for word in ("--set", one))]
    assert main(line) == 130
    err = capsys.readouterr().err
    assert err.startswith("error: stopped\n") and "after step 20" in err and err.count("\n") == 3
    assert not (tmp_path / "run" / "train").exists()
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "stage.failed" and last["done"] == ["prepare", "baseline"] and last["config"]["lora.r"] == 8
    assert len(last["samples"]) == 4 and all(one["id"] and one["length"] for one in last["samples"])
    assert main(line) == 0
    assert "prepare  nothing changed, kept" in capsys.readouterr().out


def test_dry_run_shows_origin_and_plan_and_makes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--dry-run", "--set", "lora.r=4", "--set", "data.limit=40"]) == 0
    out = capsys.readouterr().out
    assert "lora.r = 4  (--set)" in out and "prepare   run, not done yet" in out and "total" in out
    assert "training about" in out and "230 steps of" in out
    assert list(tmp_path.iterdir()) == []


PAGE = {"tiny", "qwen-0.5b", "llama-7b-qlora", "mistral-7b-qlora", "phi-2", "gpt2", "csv", "sharegpt", "alpaca",
        "dolly", "openassistant"}


def test_every_configuration_that_was_promised_is_ready():
    assert PAGE <= set(ready_configs())


@pytest.mark.parametrize("name", ready_configs())
def test_ready_configs_pass_a_dry_run_offline(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", name, "--dry-run"]) == 0
    assert "memory" in capsys.readouterr().out


@pytest.mark.parametrize("data", ["alpaca.json", "sharegpt.json", "dolly.jsonl", "openassistant.jsonl",
                                  "instructions.csv", "instructions.parquet"])
def test_init_writes_a_file_that_passes_a_dry_run_for_each_kind_of_data(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine.yaml", "--data", f"{{data}}/instructions/samples/{data}"]) == 0
    assert "#" in (tmp_path / "mine.yaml").read_text()
    assert main(["run", "mine.yaml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "lora.r = 16  (mine.yaml)" in out and "training about" in out


@pytest.mark.parametrize("method, card", [("lora", "T4"), ("qlora", "RTX 3060"), ("full", "A100 80GB")])
def test_init_takes_a_card_and_writes_batches_that_fit_it(method, card, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine.yaml", "--method", method, "--card", card]) == 0
    config = load_config("mine.yaml", environment={})
    assert config.method == method and config.training.effective_batch_size == 16
    assert memory_needed(config, card).fits


def test_targets_count_what_the_adapter_will_have(capsys):
    assert main(["targets", "--choice", "attention", "-r", "8"]) == 0
    total, verdict = capsys.readouterr().out.splitlines()[-2:]
    assert total.split() == ["all", "24", "43,008"] and verdict.startswith("peft's default for llama is ours")


def test_a_finished_run_answers_and_is_examined(finished, capsys, tmp_path):
    (tmp_path / "questions.txt").write_text("Where does Mara live?\n\nWho is there?\n")
    questions = ["--file", str(tmp_path / "questions.txt")]
    assert main(["generate", str(finished.folder), *questions, "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.count("\n") == 2
    assert main(["doctor", str(finished.folder), "--json"]) in (0, 1)
    assert {"level", "symptom", "evidence", "cause", "fix"} == set(json.loads(capsys.readouterr().out)[0])


def test_questions_are_answered_one_a_line_as_they_come(finished, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Where does Mara live?\n\nWho is there?\n"))
    assert main(["generate", str(finished.folder), "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.count("\n") == 2


def test_json_is_all_that_stands_on_the_standard_output(finished, capsys):
    """What a program reads must parse from its first byte to its last."""
    settings = ["--set", f"output={finished.folder}"]
    config = str(finished.folder / "config.yaml")
    for line in (["run", config, *settings, "--json"], ["fit", config, "--json"], ["doctor", "--json"],
                 ["doctor", str(finished.folder), "--json"]):
        main(line)
        assert json.loads(capsys.readouterr().out), line


COMMANDS = "run prepare train evaluate merge export generate fit doctor init targets demo".split()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_what_it_does(name, capsys):
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"finetune {name}" in out and len(out.split()) > 40


@pytest.mark.parametrize("words, wanted", [("finetune tr", "train"), ("finetune run --dr", "--dry-run"),
                                           ("finetune do", "doctor")])
def test_the_shell_completes_commands_and_options(words, wanted, monkeypatch, capsys):
    """What bash asks when somebody presses the tabulator."""
    monkeypatch.setenv("_FINETUNE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    main([])
    assert wanted in capsys.readouterr().out.split()


def test_a_run_with_profile_names_its_bottleneck(settings, tmp_path, capsys):
    line = [word for one in settings("data.test=null", "data.validation=null") for word in ("--set", one)]
    assert main(["run", *line, "--profile"]) == 0
    assert "bottleneck" in capsys.readouterr().out
    trace = json.loads((tmp_path / "run" / "profile" / "trace.json").read_text())
    found = json.loads((tmp_path / "run" / "profile" / "profile.json").read_text())
    assert {event.get("name") for event in trace["traceEvents"]} >= {one["name"] for one in found["operations"][:3]}
    assert found["advice"] and 0 < found["share"] <= 1
