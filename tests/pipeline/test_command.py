"""The command: exit codes, one line for each error, and what each command prints."""
import json
import subprocess
import sys

import pytest

from finetune_lib.pipeline.command import classify, main


@pytest.mark.parametrize("line, code, said", [
    ("run tiiny", 2, "did you mean 'tiny'"),
    ("run nowhere.yaml", 2, "does not exist"),
    ("run --set lora.r=0", 2, "rank must be at least 1"),
    ("run --set lora.rank=4", 2, "did you mean 'r'"),
    ("run --set training.learnin_rate=1", 2, "learning_rate"),
    ("run --from trian", 2, "did you mean 'train'"),
    ("run --set model=./nowhere", 2, "does not exist"),
    ("run --set lora.target_modules=[q_prj]", 2, "did you mean 'q_proj'"),
    ("run --set data.template=nobody", 2, "template"),
    ("run --set data=nowhere.csv", 3, "no such data file"),
    ("run --set data.test=nowhere.jsonl", 3, "no such data file"),
    ("prepare --explain nowhere.csv", 3, "no such data file"),
    ("prepare --explain empty.jsonl", 3, "empty"),
    ("prepare --explain notes.docx", 3, "must end in"),
    ("prepare --explain text.jsonl", 3, "can be trained on"),
    ("prepare --explain pairs.jsonl", 3, "can be trained on"),
    ("prepare --explain", 2, "needs a data file"),
    ("generate ./nowhere hello", 2, "does not exist"),
    ("generate . hello --file nowhere.txt", 2, "does not exist"),
    ("doctor .", 2, "must hold config.yaml"),
    ("targets --choice nonsense", 2, "nonsense"),
    ("fit --card abacus", 2, "abacus"),
    ("init mine.yaml", 2, "is there already"),
    ("init new.yaml --method magic", 2, "'lora' or 'qlora'"),
])
def test_each_mistake_has_its_code_and_one_line(line, code, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in {"empty.jsonl": "", "notes.docx": "x", "text.jsonl": '{"text": "Once"}\n', "mine.yaml": "a: 1",
                       "pairs.jsonl": '{"prompt": "p", "chosen": "c", "rejected": "r"}\n'}.items():
        (tmp_path / name).write_text(text)
    assert main([*line.split(), *(["--set", "output=run"] if line.startswith("run") else [])]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err and "Traceback" not in err
    assert not (tmp_path / "run" / "prepare").exists()


def test_debug_shows_where_an_error_comes_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="did you mean 'tiny'"):
        main(["run", "tiiny", "--debug"])


def test_help_lists_every_command_without_torch():
    code = ("import sys; from finetune_lib.pipeline.command import main; main(['--help']); "
            "print('heavy:', sorted({'torch', 'transformers', 'pydantic'} & set(sys.modules)))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("heavy: []")
    for name in "run prepare train evaluate merge export generate fit doctor init targets demo".split():
        assert f" {name} " in out


def test_memory_that_ran_out_names_the_setting_to_change():
    text, code = classify(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert code == 4 and "per_device_train_batch_size" in text
    assert classify(OSError("No space left on device"))[1] == 4


def test_dry_run_shows_origin_and_plan_and_makes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--dry-run", "--set", "lora.r=4"]) == 0
    out = capsys.readouterr().out
    assert "lora.r = 4  (--set)" in out and "prepare   run, never finished" in out and "total" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", "qwen-0.5b mistral-7b-qlora llama-7b-qlora phi-2 gpt2 csv alpaca sharegpt".split())
def test_ready_configs_pass_a_dry_run_offline(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", name, "--dry-run"]) == 0
    assert "memory" in capsys.readouterr().out


def test_init_writes_a_file_that_passes_a_dry_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine.yaml"]) == 0 and main(["run", "mine.yaml", "--dry-run"]) == 0
    assert "lora.r = 16  (mine.yaml)" in capsys.readouterr().out


def test_targets_count_what_the_adapter_will_have(capsys):
    assert main(["targets", "--choice", "attention", "-r", "8"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("all") and "parameters" in last


def test_a_finished_run_answers_and_is_examined(finished, capsys, tmp_path):
    (tmp_path / "questions.txt").write_text("Where does Mara live?\n\nWho is there?\n")
    questions = ["--file", str(tmp_path / "questions.txt")]
    assert main(["generate", str(finished.folder), *questions, "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.count("\n") == 2
    assert main(["doctor", str(finished.folder), "--json"]) in (0, 1)
    assert {"level", "symptom", "evidence", "cause", "fix"} == set(json.loads(capsys.readouterr().out)[0])
