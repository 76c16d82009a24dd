"""Killed anywhere, and run again: only what is missing is done, and the result is the same."""
import json
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from finetune_lib.core import read_json
from finetune_lib.pipeline.manifest import STAGES
from finetune_lib.pipeline.run import FineTuningPipeline

# A process that imports once; then, for each stage, a child that kills itself while that stage writes a file.
KILLED = """
import json, os, signal, sys
from finetune_lib.pipeline import stages
from finetune_lib.pipeline.run import FineTuningPipeline
import transformers, peft, pyarrow.parquet, finetune_lib.training.loop, finetune_lib.evaluation.compare

def die_in(folder, part):
    def hook(event, arguments):
        if event == "open" and f"{folder}.partial" in str(arguments[0]) and part in str(arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

for stage, part, config in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        die_in(stage, part)
        FineTuningPipeline(config).run(until=stage)
        os._exit(3)  # the file was never opened
    status = os.waitpid(child, 0)[1]
    print(stage, os.WTERMSIG(status) if os.WIFSIGNALED(status) else f"ended with {status}", flush=True)
"""
PARTS = {"prepare": "quarantine.jsonl", "baseline": "evaluation.json", "train": "metrics.jsonl",
         "evaluate": "evaluation.json", "merge": "merge.json", "export": "manifest.json"}
SAME = {"prepare": ["train.jsonl", "accounting.json"], "baseline": ["evaluation.json"],
        "train": ["adapter/adapter_model.safetensors"], "evaluate": ["evaluation.json"],
        "merge": ["model/model.safetensors"], "export": ["huggingface/model.safetensors"]}


@pytest.fixture(scope="module")
def whole(model_folder, small, tmp_path_factory):
    """A run of a tiny random model that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    pipeline = FineTuningPipeline("tiny", [*small, f"model={model_folder('llama')}", f"output={folder}"])
    pipeline.run()
    return pipeline


@pytest.fixture(scope="module")
def killed(whole, tmp_path_factory):
    """Stage → a run that was killed in the middle of it, everything before it done."""
    folders, asked = {}, []
    for number, name in enumerate(STAGES):
        folders[name] = tmp_path_factory.mktemp(name) / "run"
        shutil.copytree(whole.folder, folders[name])
        for later in STAGES[number:]:
            shutil.rmtree(folders[name] / later)
        text = (whole.folder / "config.yaml").read_text().replace(str(whole.folder), str(folders[name]))
        (folders[name] / "config.yaml").write_text(text)
        asked.append([name, PARTS[name], str(folders[name] / "config.yaml")])
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(asked)], capture_output=True, text=True)
    assert done.stdout.split("\n")[:-1] == [f"{name} 9" for name in STAGES], done.stdout + done.stderr[-2000:]
    return folders


@pytest.mark.parametrize("name", STAGES)
def test_a_run_killed_in_a_stage_goes_on_from_there_and_ends_the_same(whole, killed, name):
    folder = killed[name]
    assert (folder / f"{name}.partial").is_dir() and not (folder / name).exists()
    events = []
    FineTuningPipeline(folder / "config.yaml", listen=events.append).run()
    skipped = [one["stage"] for one in events if one["event"] == "stage.skipped"]
    assert skipped == list(STAGES[:STAGES.index(name)])
    assert not list(folder.glob("*.partial"))
    for stage, files in SAME.items():
        for file in files:
            assert equal(whole.folder / stage / file, folder / stage / file), f"{stage}/{file}"
    assert read_json(folder / "report.json")["models"] == read_json(whole.folder / "report.json")["models"]


def equal(one, other):
    if one.suffix == ".safetensors":
        first, second = load_file(one), load_file(other)
        return first.keys() == second.keys() and all((second[name] == tensor).all() for name, tensor in first.items())
    return read_json(one) == read_json(other) if one.suffix == ".json" else one.read_bytes() == other.read_bytes()
