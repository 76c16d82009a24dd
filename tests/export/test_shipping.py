"""A run's model in another format by the command: written, run where it will run, made again after a new training."""
import pytest

from finetune_lib.core import read_json, sha256
from finetune_lib.evaluation.export import check_manifest
from finetune_lib.pipeline.command import main

for name in ("llama_cpp", "onnxruntime"):
    pytest.importorskip(name, reason=f"{name} is not installed: make test-export")

SMALL = ["data.limit=400", "data.replay=null", "data.general=null", "training.max_steps=30", "evaluation.limit=40",
         "evaluation.max_new_tokens=24", "training.use_cpu=true"]


@pytest.fixture
def ask(tmp_path):
    """ask("lora.r=2"): the command's exit code, with the options of a test's small run."""
    def export(*more: str, name: str) -> int:
        settings = [*SMALL, f"output={tmp_path / 'run'}", *more]
        return main(["export", "tiny", *(word for one in settings for word in ("--set", one)), "--format", name])
    return export


def test_a_run_goes_to_llama_cpp_by_one_command_and_again_only_when_it_has_changed(ask, tmp_path, capsys):
    made, source = tmp_path / "run" / "formats" / "gguf-q8_0", tmp_path / "run" / "export" / "huggingface"
    assert ask(name="gguf-q8_0") == 0
    manifest = read_json(made / "manifest.json")
    assert manifest["lineage"]["export"] == sha256(source / "manifest.json") and not check_manifest(made)
    assert {"base", "trained", "merged", "perplexity", "greedy_agreement"} <= set(manifest["lineage"])
    assert "answers as in transformers" in capsys.readouterr().out and (made / "Modelfile").is_file()

    assert ask(name="gguf-q8_0") == 0 and "nothing changed, kept" in capsys.readouterr().out
    assert ask("lora.r=2", name="gguf-q8_0") == 0
    again = read_json(made / "manifest.json")
    assert again["lineage"]["export"] == sha256(source / "manifest.json") != manifest["lineage"]["export"]


def test_the_same_run_goes_to_onnx(ask, tmp_path):
    assert ask(name="onnx") == 0
    assert (tmp_path / "run" / "formats" / "onnx" / "model.onnx").is_file()
