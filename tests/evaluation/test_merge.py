"""A merged model is the adapted one: for both back ends, every kind of layer, in full and in 4 bits."""
import copy
import json

import pytest
import torch

from finetune_lib.core import ExportError, ResourceError
from finetune_lib.evaluation.merge import (
    TOLERANCE,
    MergeCheck,
    adapted_layers,
    behavior,
    check_base,
    largest_difference,
    merge_adapter,
    merge_folder,
    merged_weight,
    verify_merge,
    whole_folder,
)
from finetune_lib.lora.adapter import load_adapter, save_adapter
from finetune_lib.qlora.loading import QuantizationConfig, load_base


@pytest.mark.parametrize("backend", ["own", "peft"])
@pytest.mark.parametrize("kind, fields", [
    ("llama", {}), ("llama", {"r": 1, "lora_alpha": 7}), ("llama", {"use_rslora": True, "r": 16}), ("gpt2", {}),
    ("qwen2", {"target_modules": ["q_proj", "v_proj"]}), ("mistral", {"rank_pattern": {"q_proj": 2}}),
    ("qwen2", {"bias": "lora_only"}), ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]})])
def test_a_merged_model_answers_like_the_adapted_one(backend, kind, fields, make_model, adapt, prompts):
    adapted = adapt(make_model(kind), backend, **fields)
    wanted = behavior(adapted, prompts[:6])
    assert largest_difference(behavior(make_model(kind), prompts[:6]).logits, wanted.logits) > 1e-2
    merged = merge_adapter(adapted)
    check = verify_merge(merged, wanted).require()
    assert check.difference <= 1e-5 and check.greedy_agreement == 1.0 and check.first_difference is None
    assert type(merged) is type(make_model(kind)) and not adapted_layers(merged)
    assert set(merged.state_dict()) == set(make_model(kind).state_dict())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_weights_are_those_of_peft_merge_and_unload(kind, make_model, adapt, tmp_path):
    adapted = adapt(make_model(kind))
    save_adapter(adapted, tmp_path)
    ours = merge_adapter(adapted).state_dict()
    theirs = load_adapter(make_model(kind), tmp_path, backend="peft").merge_and_unload().state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


def test_what_is_more_than_plain_lora_is_merged_by_peft_in_float32(make_model, prompts):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], use_dora=True, init_lora_weights=False)
    adapted = get_peft_model(make_model(), config).eval()
    wanted = behavior(adapted, prompts[:4])
    assert verify_merge(merge_adapter(adapted), wanted).passed


@pytest.mark.parametrize("backend", ["own", "peft"])
def test_a_tied_embedding_keeps_its_weight(backend, make_model, adapt):
    before = make_model().model.embed_tokens.weight.clone()
    merged = merge_adapter(adapt(make_model(), backend))
    assert torch.equal(merged.model.embed_tokens.weight, before)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight and merged.config.tie_word_embeddings


def test_a_merge_into_a_tied_head_leaves_the_embedding_alone_and_unties_the_two(make_model, prompts, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    before = make_model().model.embed_tokens.weight.clone()
    config = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    with pytest.warns(UserWarning, match="tie"):
        adapted = get_peft_model(make_model(), config).eval()
    wanted = behavior(adapted, prompts[:4])
    merged = merge_adapter(adapted)
    verify_merge(merged, wanted).require()
    assert torch.equal(merged.model.embed_tokens.weight, before) and not merged.config.tie_word_embeddings
    merged.save_pretrained(tmp_path)
    verify_merge(AutoModelForCausalLM.from_pretrained(tmp_path), wanted).require()


@pytest.mark.parametrize("layers, backend", [("own", "own"), ("bitsandbytes", "own"), ("bitsandbytes", "peft")])
def test_a_4_bit_model_is_merged_onto_what_its_codes_stand_for(layers, backend, base_folder, adapt, prompts):
    folder = base_folder("llama")
    adapted = adapt(load_base(folder, QuantizationConfig(), layers, device="cpu"), backend)
    wanted = behavior(adapted, prompts[:4])
    merged = merge_adapter(adapted)
    verify_merge(merged, wanted).require()
    assert all(parameter.dtype == torch.float32 for parameter in merged.parameters())
    assert getattr(merged.config, "quantization_config", None) is None


def test_a_merge_onto_the_original_weights_of_a_4_bit_base_is_another_model(base_folder, adapt, prompts, tmp_path):
    folder = base_folder("llama")
    adapted = adapt(load_base(folder, QuantizationConfig(), "own", device="cpu"))
    save_adapter(adapted, tmp_path / "adapter")
    other = merge_adapter(load_adapter(load_base(folder, device="cpu"), tmp_path / "adapter"))
    assert verify_merge(other, adapted, prompts[:4]).difference > 1e-3


def test_a_sum_in_16_bits_is_rounded_once():
    generator = torch.Generator().manual_seed(0)
    weight, A, B = (torch.randn(size, generator=generator) for size in [(64, 48), (4, 48), (64, 4)])
    exact = weight.bfloat16().double() + 0.5 * (B.double() @ A.double())
    merged = merged_weight(weight.bfloat16(), A, B, 0.5)
    assert merged.dtype == torch.bfloat16 and torch.equal(merged, exact.to(torch.bfloat16))


def test_the_kept_base_is_not_changed_by_a_merge_of_its_weights():
    weight = torch.randn(6, 4)
    before = weight.clone()
    merged_weight(weight, torch.randn(2, 4), torch.randn(6, 2), 1.0)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("backend", ["own", "peft"])
def test_merging_twice_is_refused(backend, make_model, adapt):
    merged = merge_adapter(adapt(make_model(), backend))
    with pytest.raises(ExportError, match="merged already"):
        merge_adapter(merged)


def test_a_wrong_merge_is_found_and_the_first_wrong_layer_named(make_model, adapt, prompts):
    adapted = adapt(make_model())
    wrong = copy.deepcopy(adapted)
    wrong.get_submodule("model.layers.1.mlp.gate_proj").scaling *= 4
    check = verify_merge(merge_adapter(wrong), adapted, prompts[:4])
    assert not check.passed and check.first_difference == "model.layers.1.mlp.gate_proj"
    with pytest.raises(ExportError, match="first layer that differs is model.layers.1.mlp.gate_proj"):
        check.require()


def test_a_broken_adapter_is_refused_instead_of_merged(make_model, adapt):
    adapted = adapt(make_model())
    with torch.no_grad():
        adapted.get_submodule("model.layers.0.self_attn.q_proj").lora_B[0, 0] = float("nan")
    with pytest.raises(ExportError, match="finite"):
        merge_adapter(adapted)


def test_nan_is_infinitely_far_and_a_check_without_prompts_is_refused(llama):
    assert largest_difference([torch.tensor([float("nan"), 1.0])], [torch.ones(2)]) == float("inf")
    with pytest.raises(ExportError, match="at least one prompt"):
        behavior(llama, [])


def test_watching_layers_does_not_change_what_they_give(make_model, adapt, prompts):
    adapted = adapt(make_model())
    watched, alone = behavior(adapted, prompts[:3]), behavior(adapted, prompts[:3], layers={})
    assert all(torch.equal(one, other) for one, other in zip(watched.logits, alone.logits, strict=True))
    assert list(watched.layers) == list(adapted_layers(adapted)) and not alone.layers


def test_a_check_in_16_bits_forgives_rounding_and_nothing_more():
    assert MergeCheck(1e-3, TOLERANCE[torch.bfloat16], 0.9, None).passed
    assert not MergeCheck(1e-3, TOLERANCE[torch.float32], 1.0, None).passed
    assert not MergeCheck(0.0, TOLERANCE[torch.float32], 0.9, None).passed


@pytest.fixture
def trained(base_folder, adapt, tmp_path):
    """(base folder, adapter folder)."""
    def make(quantization=None):
        base = base_folder("llama")
        save_adapter(adapt(load_base(base, quantization, "own", device="cpu")), tmp_path / "adapter")
        return base, tmp_path / "adapter"
    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_folder_loads_in_plain_transformers(dtype, trained, prompts, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, adapter = trained()
    check = merge_folder(base, adapter, tmp_path / "merged", dtype=dtype, prompts=prompts[:3])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert check.passed and model.dtype == getattr(torch, dtype)
    verify_merge(model, load_adapter(load_base(base, device="cpu"), adapter), prompts[:3]).require()
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    assert json.loads((tmp_path / "merged" / "merge.json").read_text())["onto"] == "base"


def test_a_folder_trained_on_4_bits_is_merged_onto_the_dequantized_base(trained, prompts, tmp_path):
    base, adapter = trained(QuantizationConfig())
    merge_folder(base, adapter, tmp_path / "merged", QuantizationConfig(), "own", prompts=prompts[:3])
    adapted = load_adapter(load_base(base, QuantizationConfig(), "own", device="cpu"), adapter)
    assert verify_merge(load_base(tmp_path / "merged", device="cpu"), adapted, prompts[:3]).passed


def test_an_adapter_for_another_base_is_refused_and_nothing_is_written(trained, base_folder, tmp_path):
    base, adapter = trained()
    with pytest.raises(ValueError, match="another base"):
        merge_folder(base_folder("llama", seed=5), adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_peft_for_another_base_is_refused_by_its_name(make_model, base_folder, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base, other = base_folder("llama"), base_folder("llama", seed=5)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    check_base(base, tmp_path / "adapter")
    with pytest.raises(ExportError, match="was trained on"):
        check_base(other, tmp_path / "adapter")


def test_the_same_adapter_is_not_merged_into_its_own_merge(trained, prompts, tmp_path):
    base, adapter = trained()
    merge_folder(base, adapter, tmp_path / "merged", prompts=prompts[:2])
    with pytest.raises(ExportError, match="is in .* already"):
        merge_folder(tmp_path / "merged", adapter, tmp_path / "again")


def test_a_merge_that_fails_leaves_nothing_behind(trained, tmp_path):
    from safetensors.torch import load_file, save_file

    base, adapter = trained()
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[next(name for name in tensors if "lora_B" in name)].fill_(float("inf"))
    save_file(tensors, adapter / "adapter_model.safetensors")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ExportError):
        merge_folder(base, adapter, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_that_is_there_is_not_written_over(trained, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "precious").write_text("x")
    with pytest.raises(ExportError, match="new or empty folder"):
        merge_folder(*trained(), tmp_path / "there")
    assert (tmp_path / "there" / "precious").read_text() == "x"


def test_a_whole_folder_appears_only_at_the_end(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "new") as part:
        (part / "half").write_text("x")
        assert not (tmp_path / "new").exists()
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_an_unknown_dtype_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ExportError, match="float32, bfloat16, float16"):
        merge_folder("nowhere", "nowhere", tmp_path / "out", dtype="int8")



@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("r, rslora", [(1, False), (4, True), (8, False), (32, True)])
def test_every_rank_and_scale_gives_pefts_weights(kind, r, rslora, make_model, adapt, tmp_path):
    adapted = adapt(make_model(kind), r=r, lora_alpha=2 * r + 1, use_rslora=rslora)
    save_adapter(adapted, tmp_path)
    ours = merge_adapter(adapted).state_dict()
    theirs = load_adapter(make_model(kind), tmp_path, backend="peft").merge_and_unload().state_dict()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_dora_gives_pefts_weights(kind, make_model):
    from peft import LoraConfig, get_peft_model

    targets, fan = (["c_attn"], True) if kind == "gpt2" else (["q_proj", "down_proj"], False)
    config = LoraConfig(r=4, target_modules=targets, use_dora=True, init_lora_weights=False, fan_in_fan_out=fan)
    torch.manual_seed(0)
    ours = get_peft_model(make_model(kind), config).eval()
    theirs = copy.deepcopy(ours).merge_and_unload().state_dict()
    merged = merge_adapter(ours).state_dict()
    assert all(torch.allclose(merged[name], theirs[name], atol=1e-6) for name in theirs)


@pytest.mark.parametrize("backend", ["own", "peft"])
def test_rows_of_added_tokens_travel_into_the_merge(backend, make_model, adapt, prompts, tmp_path):
    from transformers import AutoModelForCausalLM

    def resized():
        model = make_model()
        model.resize_token_embeddings(300, mean_resizing=False)
        return model

    adapted = adapt(resized(), backend, modules_to_save=["embed_tokens", "lm_head"])
    wanted = behavior(adapted, [*prompts[:3], [0, 290, 299, 5]])
    merged = merge_adapter(adapted)
    assert verify_merge(merged, wanted).require().difference <= 1e-5
    assert merged.get_input_embeddings().num_embeddings == 300
    merged.save_pretrained(tmp_path)
    verify_merge(AutoModelForCausalLM.from_pretrained(tmp_path), wanted).require()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_two_adapters_that_are_active_at_once_give_pefts_weights(kind, make_model, adapt, prompts, tmp_path):
    from peft import PeftModel

    for seed, fields in enumerate([{"r": 4}, {"r": 2, "lora_alpha": 5}]):
        save_adapter(adapt(make_model(kind), seed=seed, **fields), tmp_path / str(seed))
    both = PeftModel.from_pretrained(make_model(kind), tmp_path / "0", adapter_name="one")
    both.load_adapter(tmp_path / "1", adapter_name="two")
    both.base_model.set_adapter(["one", "two"])
    wanted = behavior(both.eval(), prompts[:4])
    theirs = copy.deepcopy(both).merge_and_unload(adapter_names=["one", "two"]).state_dict()
    merged = merge_adapter(both)
    assert verify_merge(merged, wanted).require().difference <= 1e-5
    assert all(torch.allclose(merged.state_dict()[name], theirs[name], atol=1e-6) for name in theirs)


def test_a_full_disk_during_a_merge_leaves_nothing_behind_and_says_so(trained, tmp_path, small_disk):
    base, adapter = trained()
    before = sorted(path.name for path in tmp_path.iterdir())
    with small_disk(), pytest.raises(ResourceError, match="room for the whole folder"):
        merge_folder(base, adapter, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("error, full", [
    (OSError(28, "No space left on device"), True), (OSError(2, "no file"), False), (ValueError("room"), False),
    (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True)])
def test_a_full_disk_is_known_from_other_errors(error, full, tmp_path):
    with pytest.raises(ResourceError if full else type(error)), whole_folder(tmp_path / "new"):
        raise error
    assert not list(tmp_path.iterdir())
