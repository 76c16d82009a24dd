"""What an adapter is refused for, one row each, by both back ends; a base in few bits has its rows in tests/qlora."""
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_lib.core import ConfigError
from finetune_lib.lora.adapter import LoRAConfig, attach_lora, is_adapted, load_adapter, save_adapter

from .conftest import tiny_llama


def with_config(**fields):
    return lambda folder, backend: attach_lora(tiny_llama(), LoRAConfig(**fields), backend=backend)


def for_another_base(folder, backend):
    save_adapter(attach_lora(tiny_llama(seed=1)), folder)
    return load_adapter(tiny_llama(), folder, backend=backend)


def with_tensors(change):
    def call(folder, backend):
        save_adapter(attach_lora(tiny_llama(), LoRAConfig(r=2)), folder)
        tensors = change(load_file(folder / "adapter_model.safetensors"))
        save_file(tensors, folder / "adapter_model.safetensors")
        return load_adapter(tiny_llama(), folder, backend=backend)
    return call


def renamed(tensors):
    return {name.replace("self_attn", "attention"): tensor for name, tensor in tensors.items()}


def halved(tensors):
    return dict(list(tensors.items())[::2])


def transposed(tensors):
    return {name: tensor.T.contiguous() for name, tensor in tensors.items()}


@pytest.mark.parametrize("backend", ["own", "peft"])
@pytest.mark.parametrize("call, message", [
    (with_config(r=0), "rank must be at least 1, got 0; 8 is a good start"),
    (with_config(r=-4), "rank must be at least 1, got -4"),
    (with_config(target_modules=["q_porj"]), "no layer is called 'q_porj'; did you mean 'q_proj'"),
    (with_config(target_modules=["embed_tokens"]), "which is Embedding .* put it into modules_to_save"),
    (with_config(target_modules=["q_proj", "lm_head"]), "lm_head.* put it into modules_to_save"),
    (with_config(target_modules=["input_layernorm"]), "LlamaRMSNorm"),
    (for_another_base, "was trained on another base"),
    (with_tensors(renamed), "16 missing .* 16 unexpected"), (with_tensors(halved), "14 missing"),
    (with_tensors(transposed), "of another shape"),
], ids=["rank 0", "rank below 0", "unknown target", "embedding", "head", "norm", "another base", "renamed keys",
        "missing keys", "transposed"])
def test_bad_input_is_refused_and_says_what_to_do(tmp_path, call, message, backend):
    with pytest.raises((ConfigError, ValueError), match=message):
        call(tmp_path, backend)


@pytest.mark.parametrize("backend", ["own", "peft"])
def test_a_rank_above_the_width_warns_for_each_layer_and_can_be_loaded(tmp_path, backend):
    with pytest.warns(UserWarning, match="rank 40 is above the smaller side of .*q_proj, 32: it can use no more"):
        model = attach_lora(tiny_llama(), LoRAConfig(r=40, target_modules=["q_proj"]), backend=backend)
    save_adapter(model, tmp_path)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert is_adapted(load_adapter(tiny_llama(), tmp_path, backend=backend))
    assert sum("above the smaller side" in str(one.message) for one in seen) == 2


def test_a_refused_file_leaves_the_model_as_it_was(tmp_path):
    save_adapter(attach_lora(tiny_llama(seed=1)), tmp_path)
    model, ids = tiny_llama(), torch.arange(8).unsqueeze(0)
    before = model(ids).logits
    with pytest.raises(ConfigError, match="another base"):
        load_adapter(model, tmp_path)
    assert not is_adapted(model) and torch.equal(model(ids).logits, before)
