"""What the formats refuse, and what they change on the way: all that needs no extra."""
import copy
import importlib.util
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_lib.core import ExportError, MissingExtraError, TrainingError
from finetune_lib.evaluation.export import export_huggingface
from finetune_lib.evaluation.formats import (
    affixes,
    check_gguf,
    kind_of,
    modelfile,
    neighbors,
    optional,
    plain_template,
    split_rule,
    write_gguf,
    write_onnx,
)
from finetune_lib.evaluation.perplexity import perplexity
from finetune_lib.evaluation.runtimes import BOUNDS, Measured, export_format, measure, require_close, run_transformers


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 8))
def test_moved_rows_turn_the_rotation_of_halves_into_that_of_neighbors(heads, half):
    size, angle = 2 * half, torch.rand(half, dtype=torch.double)
    query = torch.randn(heads, size, dtype=torch.double)
    low, high = query[:, :half], query[:, half:]
    apart = torch.cat([low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()], 1)
    pairs = neighbors(query.reshape(-1), heads).reshape(heads, half, 2)
    one, two = pairs[..., 0], pairs[..., 1]
    beside = torch.stack([one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()], -1)
    assert torch.allclose(neighbors(apart.reshape(-1), heads), beside.reshape(-1))


@pytest.mark.parametrize("kind, fields, message", [
    ("gpt2", {}, "got 'gpt2'"), ("mistral", {"sliding_window": 16}, "a window of 16"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type 'linear'"),
    ("llama", {"hidden_size": 48, "head_dim": 12}, "divide by 32, got model.embed_tokens.weight with 48; take f16")])
def test_what_llama_cpp_would_not_run_rightly_is_refused_before_anything_is_written(
        kind, fields, message, make_model, tokenizer, tmp_path):
    with pytest.raises(ExportError, match=message):
        write_gguf(make_model(kind, **fields), tokenizer, tmp_path / "model.gguf", "q4_0")
    assert not list(tmp_path.iterdir())


def test_an_unknown_kind_is_refused_with_the_known_ones(llama):
    with pytest.raises(ExportError, match="f16, q8_0, q4_0, got 'q4_k_m'"):
        check_gguf(llama, "q4_k_m")


@pytest.mark.skipif(importlib.util.find_spec("gguf") is not None, reason="gguf is installed")
def test_without_the_extra_the_error_names_it_and_nothing_is_written(llama, tokenizer, tmp_path):
    with pytest.raises(MissingExtraError, match=r"pip install 'finetune_lib\[gguf\]'"):
        write_gguf(llama, tokenizer, tmp_path / "model.gguf", "f16")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is not None, reason="onnx is installed")
def test_without_the_extra_onnx_says_so(llama, tmp_path):
    with pytest.raises(MissingExtraError, match=r"pip install 'finetune_lib\[onnx\]'"):
        write_onnx(llama, tmp_path / "model.onnx")


def test_a_library_that_is_there_is_given_back():
    assert optional("json", "gguf") is json


def test_a_head_keeps_eight_bits_in_the_four_bit_kind_and_vectors_stay_exact():
    matrix, vector = torch.zeros(32, 32), torch.zeros(32)
    assert kind_of("model.embed_tokens.weight", matrix, "q4_0") == kind_of("lm_head.weight", matrix, "q4_0") == "Q8_0"
    assert kind_of("model.layers.0.mlp.up_proj.weight", matrix, "q4_0") == "Q4_0"
    assert kind_of("model.embed_tokens.weight", matrix, "f16") == "F16"
    assert {kind_of("model.norm.weight", vector, kind) for kind in ("f16", "q8_0", "q4_0")} == {"F32"}


def test_the_course_tokenizer_is_cut_by_gpt2s_rule_and_others_are_refused(tokenizer):
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    assert split_rule(backend) == "gpt-2"
    for strange in ({"type": "Metaspace"}, {"type": "ByteLevel", "add_prefix_space": True}, None,
                    {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": r"\d"}},
                                                           {"type": "ByteLevel", "add_prefix_space": False}]}):
        with pytest.raises(ExportError, match="cut words like gpt-2, qwen2"):
            split_rule({**backend, "pre_tokenizer": strange})


def test_the_template_renders_the_same_text_without_the_marks_of_training(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = plain_template(tokenizer.chat_template.replace("{% generation %}", "{%- generation -%}"))
    chat = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    assert "generation %" not in plain.chat_template and "add_generation_prompt" in plain.chat_template
    assert plain.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(chat, tokenize=False)


def test_a_modelfile_puts_the_templates_text_around_each_turn(tokenizer):
    assert affixes(tokenizer) == {
        "system": ("<|system|> ", "<|end|>"), "user": ("<|user|> ", "<|end|>"),
        "assistant": ("<|assistant|> ", "<|end|>"), "": ("<|assistant|>", "")}
    text = modelfile(tokenizer, "m.gguf")
    assert text.startswith("FROM ./m.gguf\n") and 'PARAMETER stop "<|end|>"' in text and "<s>" not in text
    assert text.count("{{ if") + text.count("{{ else if") == 3 and text.count("{{ end }}") == 2


def test_a_template_that_does_more_has_no_modelfile(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = other.chat_template.replace("{{ bos_token }}", "{{ bos_token }}{{ messages | length }}")
    with pytest.raises(ExportError, match="write its template by hand"):
        modelfile(other)


def test_transformers_as_a_runtime_measures_what_perplexity_does(llama, samples, prompts):
    found, answers = measure(run_transformers(llama, [1]), samples, prompts[:4], max_new_tokens=6)
    assert found.perplexity == pytest.approx(perplexity(llama, samples, 2).overall, rel=1e-5)
    other = [answers[0], *([[9]] * 3)]
    assert measure(run_transformers(llama, [1]), samples, prompts[:4], other, 7, 6)[0].greedy_agreement == 0.25


def test_a_runtime_that_gives_nan_is_stopped(make_model, samples, prompts):
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(TrainingError, match="finite, got nan"):
        measure(run_transformers(model, [1]), samples, prompts[:1])


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_a_format_beyond_its_bound_is_not_kept_in_either_direction(name):
    wanted = Measured(1, 10.0, 1.0, 1.0)
    for sign in (-1, 1):
        inside, outside = (Measured(1, 10 * (1 + sign * share * BOUNDS[name]), 1.0, 1.0) for share in (0.9, 1.1))
        assert require_close(name, inside, wanted) is inside
        with pytest.raises(ExportError, match=f"perplexity in {name} must stay within"):
            require_close(name, outside, wanted)


def test_an_unknown_format_or_architecture_leaves_no_folder(make_model, tokenizer, samples, prompts, tmp_path):
    export_huggingface(make_model("gpt2"), tokenizer, tmp_path / "hf")
    reference = (Measured(1, 10.0, 1.0, 1.0), [[1]])
    for name, message in (("gguf-q9", "a format must be one of"), ("gguf-f16", "got 'gpt2'")):
        with pytest.raises(ExportError, match=message):
            export_format(name, tmp_path / "hf", tmp_path / "new", samples, prompts[:1], reference)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
