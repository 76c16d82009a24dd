"""Properties 5 to 8, 10 and 11 of training an adapter, over settings nobody chose. Property 9 is in tests/qlora."""
import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from finetune_lib.lora.adapter import (
    LoRAConfig,
    LoRALinear,
    adapter_parameters,
    attach_lora,
    load_adapter,
    remove,
    save_adapter,
)
from finetune_lib.lora.targets import match_targets
from finetune_lib.training.step import train_step

from .conftest import tiny_gpt2, tiny_llama

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
names = st.lists(st.sampled_from(LAYERS), min_size=1, unique=True)
configs = st.builds(
    LoRAConfig, r=st.integers(1, 16), lora_alpha=st.integers(1, 64), lora_dropout=st.sampled_from((0.0, 0.05, 0.3)),
    target_modules=names | st.sampled_from(("attention", "mlp", "all-linear", None)), use_rslora=st.booleans(),
    bias=st.sampled_from(("none", "lora_only", "all")))
some = settings(max_examples=12, deadline=None)


def batch_of(seed: int, rows: int = 2) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 96, (rows, 8), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def steps(model, count: int = 2, seed: int = 0) -> None:
    optimizer = torch.optim.AdamW(adapter_parameters(model.train()), lr=1e-2)
    for step in range(count):
        train_step(model, optimizer, [batch_of(seed + step)], 14)


def wrapped(model) -> dict[str, LoRALinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


@some
@given(config=configs)
def test_property_5_the_config_sets_all_parameters(config):
    model = attach_lora(tiny_llama(bias=True), config)
    for layer in wrapped(model).values():
        assert layer.lora_A.shape[0] == layer.lora_B.shape[1] == config.r
        assert layer.scaling == config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
        assert layer.dropout.p == config.lora_dropout
    biases = {name for name, weight in model.named_parameters() if name.endswith("bias") and weight.requires_grad}
    count = {"none": 0, "all": 8, "lora_only": sum("self_attn" in name for name in wrapped(model))}  # 4 in each layer
    assert len(biases) == count[config.bias]


@some
@given(config=configs, conv=st.booleans())
def test_property_6_adapters_stand_on_all_targets_and_nowhere_else(config, conv):
    if conv and isinstance(config.target_modules, list):
        config = config.model_copy(update={"target_modules": ["c_attn", "c_fc"]})
    bare = tiny_gpt2() if conv else tiny_llama()
    expected = match_targets(bare, config.target_modules)
    assert expected and list(wrapped(attach_lora(bare, config))) == expected


@some
@given(config=configs.filter(lambda config: config.bias == "none"), seed=st.integers(0, 2**31),
       backend=st.sampled_from(("own", "peft")))
def test_property_7_training_preserves_the_base_weights_bit_for_bit(config, seed, backend):
    bare = tiny_llama(bias=True)
    before = {name: tensor.clone() for name, tensor in bare.state_dict().items()}
    model = attach_lora(bare, config, backend=backend)
    start = [weight.detach().clone() for weight in adapter_parameters(model)]
    steps(model, seed=seed)
    assert any(not torch.equal(a, b) for a, b in zip(start, adapter_parameters(model), strict=True))
    after = (model.unload() if backend == "peft" else remove(model)).state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@some
@given(config=configs, backend=st.sampled_from(("own", "peft")))
def test_property_8_only_adapter_weights_are_saved(config, backend):
    model = attach_lora(tiny_llama(bias=True), config, backend=backend)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder)
        with safe_open(Path(folder) / "adapter_model.safetensors", "pt") as file:
            saved = {name: file.get_slice(name).get_shape() for name in file.keys()}
    learned = sum(weight.numel() for weight in adapter_parameters(model))
    assert all("lora_" in name or (config.bias != "none" and name.endswith("bias")) for name in saved)
    assert sum(torch.Size(shape).numel() for shape in saved.values()) == learned


@some
@given(micro=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_property_10_accumulation_delays_the_update_to_the_end_of_the_window(micro, seed):
    model = attach_lora(tiny_llama(), LoRAConfig(r=2, lora_dropout=0.0)).train()
    weights = adapter_parameters(model)
    start, seen = [weight.detach().clone() for weight in weights], []
    optimizer = torch.optim.SGD(weights, lr=0.5)
    hook = model.register_forward_hook(
        lambda *_: seen.append(all(torch.equal(a, b) for a, b in zip(start, weights, strict=True))))
    window = [batch_of(seed + part) for part in range(micro)]
    train_step(model, optimizer, window, 14.0 * micro, max_grad_norm=0)
    hook.remove()
    assert seen == [True] * micro and any(not torch.equal(a, b) for a, b in zip(start, weights, strict=True))
    whole = attach_lora(tiny_llama(), LoRAConfig(r=2, lora_dropout=0.0)).train()
    for weight, value in zip(adapter_parameters(whole), start, strict=True):
        weight.data.copy_(value)
    large = {key: torch.cat([part[key] for part in window]) for key in window[0]}
    train_step(whole, torch.optim.SGD(adapter_parameters(whole), lr=0.5), [large], 14.0 * micro, max_grad_norm=0)
    for ours, theirs in zip(weights, adapter_parameters(whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@some
@given(config=configs)
@pytest.mark.filterwarnings("error")
def test_property_11_config_and_weights_are_saved_together_and_come_back_together(config):
    model = attach_lora(tiny_llama(bias=True), config)
    steps(model)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder)
        assert sorted(path.name for path in Path(folder).iterdir()) == ["adapter_config.json",
                                                                       "adapter_model.safetensors"]
        fields = json.loads((Path(folder) / "adapter_config.json").read_text())
        assert (fields["r"], fields["lora_alpha"], fields["bias"]) == (config.r, config.lora_alpha, config.bias)
        back = load_adapter(tiny_llama(bias=True), folder)
    ids = batch_of(3)["input_ids"]
    assert torch.equal(back(ids).logits, model.eval()(ids).logits)
