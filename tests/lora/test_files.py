"""An adapter's folder: what is written, what fits, what is refused."""
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from finetune_lib.core import ConfigError
from finetune_lib.lora.adapter import (
    LoRAConfig,
    adapter_state_dict,
    attach_lora,
    is_adapted,
    load_adapter,
    save_adapter,
)
from finetune_lib.lora.files import fingerprint, quiet_peft, read_adapter_config, shortest_names


@pytest.fixture
def saved(tiny, tmp_path):
    """A folder with an adapter that changes the logits, and the model that it was saved from."""
    model = attach_lora(tiny(), LoRAConfig(r=4, target_modules="attention"))
    for layer in model.lora_adapter.layers.values():
        nn.init.normal_(layer.lora_B, std=0.1)
    return save_adapter(model, tmp_path / "adapter"), model


def edit_config(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(folder, change):
    """Rewrite the tensors' file, its metadata kept, with what `change` makes of name → tensor."""
    file = folder / "adapter_model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(change(load_file(file)), file, metadata=metadata)


def refused(model, folder, message, **options):
    modules, flags = dict(model.named_modules()), [weight.requires_grad for weight in model.parameters()]
    with pytest.raises(ConfigError, match=message):
        load_adapter(model, folder, **options)
    assert not is_adapted(model) and [weight.requires_grad for weight in model.parameters()] == flags
    if options.get("backend", "own") == "own":
        assert dict(model.named_modules()) == modules


def test_the_folder_holds_two_files_and_nothing_of_the_base(saved):
    folder, model = saved
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    tensors = load_file(folder / "adapter_model.safetensors")
    assert tensors.keys() == adapter_state_dict(model).keys() and all("lora_" in name for name in tensors)


def test_saving_twice_writes_the_same_bytes(saved, tmp_path):
    folder, model = saved
    again = save_adapter(model, tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (again / name).read_bytes(), name


@pytest.mark.parametrize("change, message", [
    (lambda t: {name: tensor for name, tensor in list(t.items())[1:]}, "1 missing"),
    (lambda t: t | {"base_model.model.extra.lora_A.weight": torch.ones(4, 4)}, "1 unexpected"),
    (lambda t: {name.replace("base_model.model.", ""): tensor for name, tensor in t.items()}, "16 missing .* 16 unexp"),
    (lambda t: {name: tensor[..., :-1].contiguous() for name, tensor in t.items()}, "16 of another shape"),
])
def test_tensors_that_do_not_fit_are_refused(saved, tiny, change, message):
    folder, _ = saved
    edit_tensors(folder, change)
    refused(tiny(), folder, message)


def test_peft_only_warns_where_we_refuse(saved, tiny, ids):
    from peft import PeftModel

    folder, _ = saved
    edit_tensors(folder, lambda t: {name.replace("base_model.model.", ""): tensor for name, tensor in t.items()})
    with quiet_peft(), pytest.warns(UserWarning, match="missing adapter keys"):
        served = PeftModel.from_pretrained(tiny(), folder)
    assert torch.equal(served(ids).logits, tiny()(ids).logits)  # the day this fails, the lesson in 03_files is history


def test_an_adapter_of_another_base_is_refused_unless_it_is_wanted(saved, tiny):
    folder, _ = saved
    refused(tiny(seed=1), folder, "another base")
    refused(tiny(seed=1), folder, "another base", backend="peft")
    assert is_adapted(load_adapter(tiny(seed=1), folder, check_base=False))


def test_a_merged_or_further_trained_base_is_another_base(saved, tiny):
    folder, _ = saved
    model = tiny()
    model.model.layers[1].mlp.down_proj.weight.data *= 1.05
    refused(model, folder, "base_linear")


def test_the_fingerprint_is_that_of_the_base_in_every_disguise(tiny):
    mark = fingerprint(tiny())
    assert mark == fingerprint(tiny().to(torch.bfloat16)) == fingerprint(attach_lora(tiny()))
    assert mark == fingerprint(attach_lora(tiny(), backend="peft")) != fingerprint(tiny(seed=1))
    full = attach_lora(tiny(), LoRAConfig(modules_to_save=["embed_tokens"]))
    nn.init.normal_(full.get_input_embeddings().weight)
    assert fingerprint(full) == mark


def test_an_adapter_from_a_4bit_base_fits_the_same_base_in_full(tiny, tmp_path):
    with quiet_peft():
        import bitsandbytes as bnb
    packed = tiny()
    for name, layer in list(packed.named_modules()):
        if isinstance(layer, nn.Linear) and name != "lm_head":
            four = bnb.nn.Linear4bit(layer.in_features, layer.out_features, bias=False, quant_type="nf4")
            four.load_state_dict(layer.state_dict())
            packed.set_submodule(name, four.to("cpu"))
    assert fingerprint(packed) == {"base_embedding": fingerprint(tiny())["base_embedding"]}
    save_adapter(attach_lora(packed, LoRAConfig(r=2)), tmp_path)
    assert is_adapted(load_adapter(tiny(), tmp_path))


@pytest.mark.parametrize("changes, message", [
    ({"use_dora": True}, "use_dora"), ({"target_parameters": ["experts.w1"]}, "target_parameters"),
    ({"layers_to_transform": [0]}, "layers_to_transform"), ({"init_lora_weights": "pissa"}, "pissa"),
    ({"peft_type": "IA3"}, "LORA, got 'IA3'"), ({"target_modules": ["c_attn"]}, "no layer is called 'c_attn'"),
])
def test_what_our_layers_do_not_do_is_refused_by_name(saved, tiny, changes, message):
    folder, _ = saved
    edit_config(folder, **changes)
    refused(tiny(), folder, message)


def test_a_rank_that_differs_from_the_tensors_is_refused(saved, tiny):
    folder, _ = saved
    edit_config(folder, r=8)
    refused(tiny(), folder, "16 of another shape")


def test_missing_files_are_named(saved, tiny, tmp_path):
    folder, _ = saved
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        load_adapter(tiny(), tmp_path / "nowhere")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors"):
        load_adapter(tiny(), folder)


def test_the_config_comes_back_as_it_was_saved(saved):
    folder, model = saved
    assert read_adapter_config(folder) == model.lora_adapter.config


def test_loading_into_an_adapted_model_keeps_its_layers(saved, tiny, ids):
    folder, model = saved
    other = attach_lora(tiny(), LoRAConfig(r=4, target_modules="attention"))
    layers = list(other.lora_adapter.layers.values())
    load_adapter(other, folder)
    assert list(other.lora_adapter.layers.values()) == layers
    assert torch.equal(other(ids).logits, model(ids).logits)


def test_shortest_names_never_reach_further(tiny):
    model = tiny()
    paths = [name for name, _ in model.named_modules() if name.endswith("layers.1.mlp.up_proj")]
    assert shortest_names(model, paths) == ["1.mlp.up_proj"]
    paths = ["transformer.h.0.attn.c_proj", "transformer.h.1.attn.c_proj"]
    assert shortest_names(tiny("gpt2"), paths) == ["attn.c_proj"]
