"""Every format in its own runtime. Needs the extras gguf and onnx: `make test-export` brings them."""
import ast
import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune_lib.core import ExportError
from finetune_lib.evaluation.export import check_manifest, leaving, rendered
from finetune_lib.evaluation.formats import write_gguf
from finetune_lib.evaluation.runtimes import (
    BOUNDS,
    export_format,
    load_llama_cpp,
    require_same_ids,
    run_llama_cpp,
    run_onnx,
)
from finetune_lib.qlora.loading import load_base

for name in ("gguf", "llama_cpp", "onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason=f"{name} is not installed: make test-export")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # the first test makes all exports: minutes on busy cores
NAMES = sorted(BOUNDS)


@pytest.mark.parametrize("name", NAMES)
def test_perplexity_stays_within_the_bound_of_the_format(name, exported):
    found = exported[1]
    assert abs(found[name].perplexity / found["hf"].perplexity - 1) <= BOUNDS[name]


@pytest.mark.parametrize("name", ["gguf-f16", "onnx"])
def test_a_float_format_answers_token_for_token_like_transformers(name, exported):
    assert exported[1][name].greedy_agreement == 1.0


def test_fewer_bits_are_fewer_bytes(exported):
    sizes = {name: one.bytes for name, one in exported[1].items()}
    assert sizes["gguf-q4_0"] < sizes["gguf-q8_0"] < sizes["gguf-f16"] < sizes["hf"]
    assert sizes["onnx-int8"] < sizes["onnx"]
    for name in NAMES:
        assert sizes[name] == sum(path.stat().st_size for path in (exported[0] / name).glob("model.*"))


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_whole_and_says_what_was_measured(name, exported):
    folder = exported[0] / name
    assert check_manifest(folder) == []
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == name and manifest["lineage"]["perplexity"] == exported[1][name].perplexity
    assert not list(folder.glob("whole*")) and folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["hf", *NAMES])
def test_a_proven_folder_may_be_pushed_whole_and_a_spoiled_one_not(name, exported, tmp_path):
    folder = shutil.copytree(exported[0] / name, tmp_path / name)
    assert leaving(folder) == sorted(path.name for path in folder.iterdir())
    with open(next(folder.glob("model.*")), "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01\x02")
    with pytest.raises(ExportError, match="changed"):
        leaving(folder)


@pytest.mark.parametrize("name", ["gguf-f16", "onnx"])
def test_the_usage_script_answers_without_our_library(name, exported, reference, held_out, tokenizer, questions):
    script = (exported[0] / name / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert ast.parse(script)
    script = script.replace("Where does Mara live?", questions[0].turns[0].content)
    ran = subprocess.run([sys.executable, "-c", script + "\nimport sys; assert 'finetune_lib' not in sys.modules"],
                         cwd=exported[0] / name, capture_output=True, text=True)
    assert ran.stdout.strip() == tokenizer.decode(reference[1][0], skip_special_tokens=True).strip(), ran.stderr


def test_llama_cpp_gives_the_logits_of_transformers(exported, source, held_out):
    model, runtime = load_base(source), run_llama_cpp(exported[0] / "gguf-f16" / "model.gguf", [1])
    for sample in held_out[0][:10]:
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor([sample.input_ids])).logits[0]
        assert (runtime.logits(sample.input_ids) - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_onnx_gives_the_logits_of_transformers_for_any_batch_and_length(exported, source):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported[0] / "onnx" / "model.onnx")
    model, chance = load_base(source), np.random.default_rng(0)
    for shape in ((1, 1), (1, 37), (3, 20), (7, 2)):
        ids = chance.integers(0, 2048, shape)
        with torch.no_grad():
            wanted = model(input_ids=torch.from_numpy(ids)).logits
        got = torch.from_numpy(session.run(None, {"input_ids": ids})[0])
        assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_what_stands_behind_a_short_row_does_not_change_it(exported):
    runtime = run_onnx(exported[0] / "onnx" / "model.onnx", [1])
    assert torch.allclose(runtime.logits([0, 4, 9, 11])[:3], runtime.logits([0, 4, 9])[:3], atol=1e-4)


def test_the_template_in_the_file_renders_the_ids_of_training(exported, tokenizer, questions):
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    loaded = load_llama_cpp(exported[0] / "gguf-q8_0" / "model.gguf")
    formatter = Jinja2ChatFormatter(loaded.metadata["tokenizer.chat_template"], tokenizer.eos_token,
                                    tokenizer.bos_token)
    for question in questions[:20]:
        chat = [{"role": "user", "content": question.turns[0].content}]
        wanted = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert loaded.tokenize(formatter(messages=chat).prompt.encode(), add_bos=False, special=True) == wanted
    assert rendered(tokenizer)[0] == tokenizer.bos_token_id


STRANGE = ["  two  spaces", "tab\tand\nline\n\n", "don't, it's 1234567 owls!", "ünïcödé 日本語 🙂", "<|end|> typed",
           "x" * 60]


def test_llama_cpp_cuts_strange_text_as_training_did(exported, tokenizer):
    require_same_ids(exported[0] / "gguf-f16" / "model.gguf", tokenizer, STRANGE)


def test_another_tokenizer_is_noticed(exported, tokenizer):
    stranger = copy.deepcopy(tokenizer)
    stranger.chat_template = stranger.chat_template.replace("' ' + message", "message")
    with pytest.raises(ExportError, match="ids of training"):
        require_same_ids(exported[0] / "gguf-f16" / "model.gguf", stranger, [])


def test_rows_left_where_they_were_are_caught_by_the_proof(source, held_out, reference, tmp_path, monkeypatch):
    from finetune_lib.evaluation import formats

    monkeypatch.setattr(formats, "neighbors", lambda weight, heads: weight)
    with pytest.raises(ExportError, match="perplexity in gguf-f16 must stay within"):
        export_format("gguf-f16", source, tmp_path / "out", *held_out, reference)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_every_named_architecture_runs_in_llama_cpp(kind, tokenizer, tmp_path):
    from transformers import LlamaConfig, MistralConfig, Qwen2Config
    from transformers import LlamaForCausalLM as Llama
    from transformers import MistralForCausalLM as Mistral
    from transformers import Qwen2ForCausalLM as Qwen2

    config, build, more = {"llama": (LlamaConfig, Llama, {"attention_bias": True}),
                           "mistral": (MistralConfig, Mistral, {"sliding_window": None}),
                           "qwen2": (Qwen2Config, Qwen2, {})}[kind]
    torch.manual_seed(0)
    model = build(config(vocab_size=2048, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
                         initializer_range=0.2, **more)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    ids = list(range(3, 40))
    got = run_llama_cpp(write_gguf(model, tokenizer, tmp_path / "model.gguf", "f16"), [1]).logits(ids)
    wanted = model(input_ids=torch.tensor([ids])).logits[0].detach()
    assert (got - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_the_report_holds_the_four_numbers_of_every_format(exported):
    report = json.loads((Path(__file__).parents[2] / "runs" / "export" / "report.json").read_text())
    assert {"hf", "gguf-f16", "gguf-q8_0", "gguf-q4_0", "onnx"} <= set(report["formats"])
    for one in report["formats"].values():
        assert set(one) == {"bytes", "perplexity", "greedy_agreement", "tokens_per_second"}
        assert one["bytes"] > 0 and one["tokens_per_second"] > 0 and 0 <= one["greedy_agreement"] <= 1
        assert 1 < one["perplexity"] < 2048, "a uniform guess over the vocabulary has 2048"
