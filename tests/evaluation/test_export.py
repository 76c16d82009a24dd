"""What leaves is clean, whole, and the model that was evaluated."""
import ast
import copy
import json
import pickle

import pytest
import torch

from finetune_lib.core import ExportError, ResourceError
from finetune_lib.evaluation.export import (
    check_manifest,
    export_huggingface,
    rendered,
    scan,
    validate_export,
    write_manifest,
)
from finetune_lib.evaluation.merge import behavior, merge_adapter


@pytest.fixture
def exported(make_model, adapt, tokenizer, prompts, tmp_path):
    """exported("llama"): (folder, what the adapted model did)."""
    def make(kind: str = "llama", backend: str = "own", dtype: torch.dtype = torch.float32, **fields):
        adapted = adapt(make_model(kind, **fields), backend)
        wanted = behavior(adapted, prompts[:3])
        export_huggingface(merge_adapter(adapted).to(dtype), tokenizer, tmp_path / "out", wanted, base="test")
        return tmp_path / "out", wanted
    return make


@pytest.mark.parametrize("kind, backend, fields", [
    ("llama", "own", {}), ("llama", "peft", {"tie_word_embeddings": False}), ("gpt2", "own", {}), ("qwen2", "peft", {}),
])
def test_the_folder_answers_like_the_adapted_model_in_plain_transformers(kind, backend, fields, exported, tokenizer):
    folder, wanted = exported(kind, backend, **fields)
    check = validate_export(folder, tokenizer, wanted)
    assert check.difference <= 1e-5 and check.greedy_agreement == 1.0


def test_generate_of_transformers_stops_and_is_greedy_without_being_told(exported):
    from transformers import GenerationConfig

    folder, _ = exported()
    config = GenerationConfig.from_pretrained(folder)
    assert (config.do_sample, config.eos_token_id, config.pad_token_id) == (False, 1, 2)


def test_the_chat_template_renders_the_ids_of_training(exported, tokenizer):
    from transformers import AutoTokenizer

    folder, _ = exported()
    assert rendered(AutoTokenizer.from_pretrained(folder)) == rendered(tokenizer)
    stranger = copy.deepcopy(tokenizer)
    stranger.chat_template = stranger.chat_template.replace("' ' + ", "")
    with pytest.raises(ExportError, match="ids of training"):
        validate_export(folder, stranger)


def test_16_bits_are_allowed_their_rounding(exported, tokenizer):
    folder, wanted = exported(dtype=torch.bfloat16)
    assert 1e-5 < validate_export(folder, tokenizer, wanted).difference < 5e-2


@pytest.mark.parametrize("backend", ["own", "peft"])
def test_a_model_with_an_adapter_is_refused(backend, make_model, adapt, tokenizer, tmp_path):
    with pytest.raises(ExportError, match="merge_adapter"):
        export_huggingface(adapt(make_model(), backend), tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_in_4_bits_is_refused(base_folder, tokenizer, tmp_path):
    from finetune_lib.qlora.loading import QuantizationConfig, load_base

    model = load_base(base_folder(), QuantizationConfig(), "own", device="cpu")
    with pytest.raises(ExportError, match="4-bit layers"):
        export_huggingface(model, tokenizer, tmp_path / "out")


def test_an_export_that_answers_otherwise_leaves_nothing_behind(make_model, tokenizer, prompts, tmp_path):
    wanted = behavior(make_model(seed=1), prompts[:3])
    with pytest.raises(ExportError, match="answer alike"):
        export_huggingface(make_model(seed=2), tokenizer, tmp_path / "out", wanted)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_do_not_leave(make_model, tokenizer, tmp_path):
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("inf")
    with pytest.raises(ExportError, match="model.norm.weight holds NaN or infinity"):
        export_huggingface(model, tokenizer, tmp_path / "out")
    assert not list(tmp_path.iterdir())


SPOILED = {
    "pickle by name": ("weights.bin", b"anything", "pickle"),
    "pickle by content": ("notes.txt", pickle.dumps({"a": 1}), "pickle"),
    "remote code": ("extra.json", json.dumps({"auto_map": {"AutoModel": "m.M"}}).encode(), "auto_map"),
    "code": ("modeling.py", b"print(1)", "does not belong"),
    "an adapter": ("adapter_config.json", b"{}", "does not belong"),
    "a token": ("notes.md", b"use hf_" + b"a" * 34, "secret"),
    "a private key": ("key.txt", b"-----BEGIN RSA PRIVATE KEY-----", "secret"),
    "torn weights": ("more.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "not a whole safetensors file"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_the_scan_finds(name, exported):
    folder, _ = exported()
    assert scan(folder) == []
    file, content, message = SPOILED[name]
    (folder / file).write_bytes(content)
    assert len(scan(folder)) == 1 and file in scan(folder)[0] and message in scan(folder)[0]
    with pytest.raises(ExportError, match=message):
        validate_export(folder)


def test_a_folder_without_weights_is_refused(exported):
    folder, _ = exported()
    (folder / "model.safetensors").unlink()
    assert scan(folder) == ["there is no .safetensors file"]


def test_the_manifest_finds_every_changed_missing_and_new_file(exported):
    folder, _ = exported()
    assert check_manifest(folder) == []
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["lineage"] == {"base": "test"}
    for path in folder.iterdir():
        assert path.name == "manifest.json" or manifest["files"][path.name]["bytes"] == path.stat().st_size
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "README.md").unlink()
    (folder / "new.txt").write_text("x")
    assert check_manifest(folder) == [
        "README.md: missing", "new.txt: not in the manifest", "model.safetensors: changed"]


def test_a_manifest_written_twice_is_the_same(exported):
    folder, _ = exported()
    assert write_manifest(folder, base="test") == write_manifest(folder, base="test")


def test_the_card_ends_with_a_script_that_is_python(exported):
    readme = (exported()[0] / "README.md").read_text()
    assert ast.parse(readme.split("```python\n")[1].split("```")[0]).body


def test_a_full_disk_leaves_nothing_behind_and_says_so(make_model, tokenizer, tmp_path, small_disk):
    with small_disk(), pytest.raises(ResourceError, match="room for the whole folder"):
        export_huggingface(make_model(), tokenizer, tmp_path / "out")
    assert not list(tmp_path.iterdir())
