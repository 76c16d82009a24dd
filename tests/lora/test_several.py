"""Several adapters on one base: named, switched, disabled, deleted, and saved as peft saves them."""
import pytest
import torch

from finetune_lib.core import ConfigError
from finetune_lib.lora.adapter import LoRAConfig, adapter_disabled, adapter_parameters, attach_lora, save_adapter
from finetune_lib.lora.files import quiet_peft
from finetune_lib.lora.several import (
    active_adapter,
    adapters,
    add_adapter,
    delete_adapter,
    load_adapters,
    save_adapters,
    switch_adapter,
)

CONFIGS = {"default": LoRAConfig(r=2), "second": LoRAConfig(r=4, target_modules=["q_proj"], use_rslora=True),
           "third": LoRAConfig(r=3, target_modules="mlp")}


@pytest.fixture
def loaded(tiny, ids):
    """A model with three adapters that have learned something, and what each says; None: the base."""
    model = tiny()
    said = {None: model(ids).logits}
    for name, config in CONFIGS.items():
        add_adapter(model, name, config)
        for weight in adapter_parameters(model):
            weight.data += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(said)))
        said[name] = model(ids).logits
    return model, said


def test_each_adapter_speaks_as_it_did_after_any_change(loaded, ids):
    model, said = loaded
    for name in ("second", None, "default", "third", "third", "second"):
        switch_adapter(model, name)
        assert active_adapter(model) == name and torch.equal(model(ids).logits, said[name])
    assert len({logits.sum().item() for logits in said.values()}) == 4


def test_only_the_active_adapter_learns(loaded):
    model, _ = loaded
    for name, config in CONFIGS.items():
        switch_adapter(model, name)
        learning = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        assert learning == {id(layer.lora_A) for layer in adapters(model)[name].layers.values()} | {
            id(layer.lora_B) for layer in adapters(model)[name].layers.values()}, config


def test_disabled_is_the_base_and_deleted_is_gone(loaded, ids):
    model, said = loaded
    with adapter_disabled(model):
        assert torch.equal(model(ids).logits, said[None])
    delete_adapter(model, "third")  # it was on
    assert active_adapter(model) is None and torch.equal(model(ids).logits, said[None])
    delete_adapter(model, "default")
    assert list(adapters(model)) == ["second"]
    assert torch.equal(switch_adapter(model, "second")(ids).logits, said["second"])


def test_folders_open_in_peft_and_its_folders_open_here_with_equal_logits_for_each_name(loaded, tiny, ids, tmp_path):
    from peft import PeftModel

    model, said = loaded
    save_adapters(model, tmp_path / "ours")
    assert active_adapter(model) == "third"
    with quiet_peft():
        theirs = PeftModel.from_pretrained(tiny(), tmp_path / "ours")
        for name in ("second", "third"):
            theirs.load_adapter(tmp_path / "ours" / name, name)
        for name in CONFIGS:
            theirs.set_adapter(name)
            torch.testing.assert_close(theirs(ids).logits, said[name], rtol=0, atol=1e-6)
        with theirs.disable_adapter():
            assert torch.equal(theirs(ids).logits, said[None])
        theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    back = load_adapters(tiny(), tmp_path / "theirs")
    assert active_adapter(back) == "default" and set(adapters(back)) == set(CONFIGS)
    for name in CONFIGS:
        torch.testing.assert_close(switch_adapter(back, name)(ids).logits, said[name], rtol=0, atol=1e-6)


def test_what_attach_lora_put_on_is_the_default(tiny, tmp_path):
    model = attach_lora(tiny(), LoRAConfig(r=2))
    add_adapter(model, "other", LoRAConfig(r=2))
    assert list(adapters(model)) == ["default", "other"]
    save_adapters(model, tmp_path)
    assert {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("*.safetensors")} == {".", "other"}


@pytest.mark.parametrize("name, message", [
    ("second", "called 'second' already"), ("a/b", "plain word"), ("..", "plain word"), ("", "plain word"),
])
def test_a_name_that_cannot_be_is_refused(loaded, name, message):
    with pytest.raises(ConfigError, match=message):
        add_adapter(loaded[0], name, LoRAConfig())


def test_a_failed_addition_leaves_the_adapter_before_on(loaded, tiny, ids, tmp_path):
    model, said = loaded
    save_adapter(attach_lora(tiny(seed=1)), tmp_path)
    for source, message in ((LoRAConfig(target_modules=["q_porj"]), "did you mean"), (tmp_path, "another base")):
        with pytest.raises(ConfigError, match=message):
            add_adapter(model, "fourth", source)
        assert active_adapter(model) == "third" and torch.equal(model(ids).logits, said["third"])
    with pytest.raises(ConfigError, match="did you mean 'second'"):
        switch_adapter(model, "secnd")
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        load_adapters(model, tmp_path / "nowhere")
