"""Ways to do it wrong: each has its exit code, a line of what, one of why, one of what to do, and leaves nothing."""
import http.server
import json
import re
import threading

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from finetune_lib.core import read_json
from finetune_lib.pipeline.command import SEE, main

FILES = {"empty.jsonl": "", "notes.docx": "x", "text.jsonl": '{"text": "Once"}\n', "mine.yaml": "a: 1",
         "pairs.jsonl": '{"prompt": "p", "chosen": "c", "rejected": "r"}\n', "broken.jsonl": '{"a": 1,}\n',
         "unanswered.jsonl": '{"instruction": "Who?", "output": ""}\n', "table.csv": "x,y\n1,2\n", "list.yaml": "- a\n",
         "twice.yaml": "model: m\nmodel: n\ndata: a\n", "half.yaml": "model: [", "ring.yaml": "base: ring.yaml\n",
         "orphan.yaml": "base: gone.yaml\n", "bare.yaml": "model: m\n", "bare/config.json": "{}"}
MISTAKES = [
    # a configuration that is not there, or no YAML
    ("run tiiny", 2, "did you mean 'tiny'"),
    ("run nowhere.yaml", 2, "does not exist"),
    ("merge nowhere.yaml", 2, "does not exist"),
    ("run mine.yaml", 2, "unknown setting a"),
    ("run list.yaml", 2, "must hold settings"),
    ("run twice.yaml", 2, "stands twice at line 2"),
    ("run half.yaml", 2, "must be YAML"),
    ("run ring.yaml", 2, "come back"),
    ("run orphan.yaml", 2, "does not exist"),
    ("run bare.yaml", 2, "data is missing"),
    # a setting that cannot be
    ("run --set lora.r=0", 2, "rank must be at least 1"),
    ("run --set lora.r=[1", 2, "must be YAML"),
    ("run --set lora.rank=4", 2, "did you mean 'r'"),
    ("run --set lora.target_modules=[]", 2, "at least one"),
    ("run --set lora.target_modules=[q_prj]", 2, "did you mean 'q_proj'"),
    ("run --set foo.bar=1", 2, "unknown setting foo"),
    ("run --set model", 2, "section.name=value"),
    ("run --set method=dora", 2, "'lora', 'qlora' or 'full'"),
    ("run --set merge.dtype=int8", 2, "'float32', 'bfloat16' or 'float16'"),
    ("run --set quantization.quant_type=int3", 2, "'nf4' or 'fp4'"),
    ("run --set data.template=nobody", 2, "template"),
    ("run --set data.ratios=[0.5,0.5,0.5]", 2, "sum 1.5"),
    ("run --set data.max_length=1", 2, "greater than or equal to 8"),
    ("run --set data.overlong=cut", 2, "truncate_prompt"),
    ("run --set evaluation.limit=0", 2, "greater than or equal to 1"),
    ("train --set training.learnin_rate=1", 2, "learning_rate"),
    ("train --set training.learning_rate=fast", 2, "valid number"),
    ("train --set training.learning_rate=3", 2, "at most 0.5"),
    ("train --set training.warmup_steps=1000", 2, "below max_steps"),
    ("train --set training.eval_steps=500", 2, "at most max_steps"),
    ("train --set training.early_stopping_patience=2", 2, "set eval_steps"),
    ("train --set training.optim=sgd", 2, "adamw_torch"),
    ("run --from trian", 2, "did you mean 'train'"),
    # a model that is not there
    ("run --set model=./nowhere", 2, "does not exist"),
    ("run --set model=./bare", 2, "tokenizer.json"),
    ("run --set model=nobody/nothing", 2, "HF_HUB_OFFLINE"),
    ("fit --set model=nobody/nothing", 2, "HF_HUB_OFFLINE"),
    ("fit --card T4 --set model=nobody/nothing", 2, "HF_HUB_OFFLINE"),
    ("targets nobody/nothing", 2, "HF_HUB_OFFLINE"),
    ("generate nobody/nothing hello", 2, "HF_HUB_OFFLINE"),
    ("generate ./nowhere hello", 2, "does not exist"),
    ("generate . hello --file nowhere.txt", 2, "does not exist"),
    # what is asked for beside a run
    ("prepare --explain", 2, "needs a data file"),
    ("prepare tiny csv", 2, "takes one configuration"),
    ("doctor .", 2, "must hold config.yaml"),
    ("doctor tiiny", 2, "did you mean 'tiny'"),
    ("targets --choice nonsense", 2, "nonsense"),
    ("fit --card abacus", 2, "abacus"),
    ("init mine.yaml", 2, "is there already"),
    ("init new.yaml --method magic", 2, "'lora', 'qlora' or 'full'"),
    ("init new.yaml --card abacus", 2, "abacus"),
    # data
    ("run --set data=nowhere.csv", 3, "no such data file"),
    ("run --dry-run --set data=nowhere.csv", 3, "no such data file"),
    ("run --set data.test=nowhere.jsonl", 3, "no such data file"),
    ("run --set data=empty.jsonl", 3, "empty"),
    ("run --set data=unanswered.jsonl", 3, "nothing is left to train on"),
    ("run --set data=table.csv", 3, "table.csv"),
    ("prepare --explain nowhere.csv", 3, "no such data file"),
    ("prepare --explain empty.jsonl", 3, "empty"),
    ("prepare --explain notes.docx", 3, "must end in"),
    ("prepare --explain broken.jsonl", 3, "broken.jsonl"),
    ("prepare --explain text.jsonl", 3, "can be trained on"),
    ("prepare --explain pairs.jsonl", 3, "can be trained on"),
    # a place that cannot be written to
    ("run --set output=/proc/run", 4, "name another with --set output"),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the files of FILES, without the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "bare").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def three_lines(err):
    """What, why and what to do, each on its line; where several settings are wrong, of the first."""
    assert re.fullmatch(r"(error: .+\n  why: .+\n  fix: .+\n)+", err), err
    return tuple(line[7:] for line in err.splitlines()[:3])  # "error: " and "  why: " are equally long


@pytest.mark.parametrize("line, code, said", MISTAKES, ids=[line.replace(" ", "_") for line, *_ in MISTAKES])
def test_each_mistake_has_its_code_and_three_lines(line, code, said, place, capsys):
    before = sorted(place.rglob("*"))
    staged = line.split()[0] in ("run", "train", "merge") and "output" not in line
    assert main([*line.split(), *(["--set", "output=run"] if staged else [])]) == code
    err = capsys.readouterr().err
    parts = three_lines(err)
    assert said in err and "Traceback" not in err and len(set(parts)) == 3
    assert parts[2] != SEE, f"what to do is missing: {err}"
    assert not [part for part in parts if len(part) < 4 or part.endswith((",", ":", "("))], parts
    if code == 2:
        assert sorted(place.rglob("*")) == before
    assert not [path for path in place.rglob("manifest.json")]


def test_there_are_forty_mistakes_and_more():
    assert len({line for line, *_ in MISTAKES}) == len(MISTAKES) >= 40


@pytest.mark.parametrize("line", ["run --nonsense", "nonsense", "targets -r 0"])
def test_a_word_that_is_no_option_leads_to_help(line, capsys):
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert "--help" in err and "Traceback" not in err


def test_debug_shows_where_an_error_comes_from(place):
    with pytest.raises(ValueError, match="did you mean 'tiny'"):
        main(["run", "tiiny", "--debug"])


def test_two_wrong_settings_are_two_errors(place, capsys):
    assert main("run --set lora.r=0 --set data.max_length=1".split()) == 2
    err = capsys.readouterr().err
    assert err.count("error: ") == err.count("  why: ") == err.count("  fix: ") == 2 and err.count("\n") == 6


READ_BY_PROGRAMS = ["run tiiny", "run --set lora.r=0", "fit --card abacus", "doctor tiiny",
                    "prepare --explain empty.jsonl"]


@pytest.mark.parametrize("line", READ_BY_PROGRAMS)
def test_a_program_gets_the_three_as_fields(line, place, capsys):
    code = main([*line.split(), "--json"])
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["exit_code"] == code > 0
    assert [tuple(one.values()) for one in found["errors"]] == [three_lines(captured.err)]
    assert set(found["errors"][0]) == {"what", "why", "fix"}


def test_an_error_that_nobody_foresaw_has_three_lines_too(place, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    (place / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    assert main(["run", "mine.yaml"]) != 0
    assert "this should not happen" in three_lines(capsys.readouterr().err)[0]


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine that knows no model."""
    class Unknown(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *arguments):
            """Quiet."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Unknown)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def test_a_name_that_the_hub_does_not_know_is_said_so(hub, capsys):
    assert main(["fit", "--set", "model=nobody/nothing"]) == 2
    what, why, _ = three_lines(capsys.readouterr().err)
    assert "the hub does not know the model 'nobody/nothing'" in what and "404" in why


def test_a_hub_that_cannot_be_reached_is_said_so(hub, capsys):
    hub.shutdown()
    hub.server_close()
    assert main(["fit", "--set", "model=nobody/nothing"]) == 2
    assert "cannot be reached" in capsys.readouterr().err


def changed_weights(folder, to, change):
    """A copy of a model's folder with one tensor changed."""
    import shutil

    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    changed = {name: change(name, tensor) for name, tensor in tensors.items()}
    save_file(changed, to / "model.safetensors", {"format": "pt"})
    return to


def test_training_that_cannot_go_on_ends_with_5(model_folder, settings, tmp_path, capsys):
    nan = changed_weights(model_folder("llama"), tmp_path / "nan",
                          lambda name, tensor: tensor * float("nan") if "layers.1.mlp.down" in name else tensor)
    line = [word for one in settings(f"model={nan}") for word in ("--set", one)]
    capsys.readouterr()  # what the making of the model said
    assert main(["train", *line]) == 5
    err = capsys.readouterr().err
    assert three_lines(err) and not (tmp_path / "run" / "train").exists()


def test_a_merge_that_answers_otherwise_ends_with_6_and_the_adapter_survives(model_folder, settings, tmp_path, capsys):
    loud = changed_weights(model_folder("llama"), tmp_path / "loud",
                           lambda name, tensor: tensor * 1e6 if "layers.1.mlp.down" in name else tensor)
    line = [word for one in settings(f"model={loud}", "merge.dtype=float16") for word in ("--set", one)]
    capsys.readouterr()
    assert main(["merge", *line]) == 6
    err = capsys.readouterr().err
    assert "must answer alike" in three_lines(err)[0]
    report = read_json(tmp_path / "run" / "report.json")
    assert "must answer alike" in report["failed"]["merge"] and set(report["models"]) == {"base", "tuned"}
    assert "must answer alike" in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "run/train/adapter/adapter_model.safetensors").is_file()
    assert not (tmp_path / "run" / "merge").exists()
