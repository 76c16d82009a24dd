"""The adapter by hand: its algebra, what it leaves alone, and peft as oracle."""
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from finetune_lib.core import ConfigError
from finetune_lib.lora.adapter import (
    LoRAConfig,
    LoRALinear,
    adapter_disabled,
    adapter_parameters,
    adapter_state_dict,
    attach_lora,
    disabled,
    freeze,
    inject,
    is_adapted,
    load_adapter,
    put_on,
    remove,
    save_adapter,
    take_off,
)
from finetune_lib.lora.files import TrainedCopy, quiet_peft
from finetune_lib.lora.quick import QuickLoRALinear


def randomize(model, seed=1):
    """Give A and B values of a trained adapter's size."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in adapter_state_dict(model).items():
        if "lora_" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)


def twins(make, folder, **fields):
    """The same base with the same adapter twice: ours and peft's."""
    fields = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, **fields}
    own = attach_lora(make(), LoRAConfig(**fields))
    randomize(own)
    save_adapter(own, folder)
    return own, load_adapter(make(), folder, backend="peft")


def weights(model):
    return {name: tensor.clone() for name, tensor in adapter_state_dict(model).items()}


def loss_of(model, ids):
    return model(input_ids=ids, labels=ids).loss


# ---- one layer -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(d_in=st.integers(1, 9), d_out=st.integers(1, 9), r=st.integers(1, 5), alpha=st.floats(0.1, 64), rs=st.booleans(),
       conv=st.booleans(), seed=st.integers(0, 2**31))
def test_output_is_base_plus_scaled_b_a(d_in, d_out, r, alpha, rs, conv, seed):
    torch.manual_seed(seed)
    base = Conv1D(d_out, d_in) if conv else nn.Linear(d_in, d_out)
    layer = LoRALinear(base, r, alpha, use_rslora=rs, init_lora_weights=False)
    x = torch.randn(2, 3, d_in)
    scale = alpha / (r**0.5 if rs else r)
    expected = base(x) + scale * torch.einsum("...i,ri,or->...o", x, layer.lora_A, layer.lora_B)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    merged, delta = copy.deepcopy(base), scale * (layer.lora_B @ layer.lora_A).detach()
    merged.weight.data += delta.T if conv else delta
    torch.testing.assert_close(layer(x), merged(x), rtol=1e-4, atol=1e-5)


def test_zero_b_leaves_the_output_unchanged():
    base = nn.Linear(8, 5)
    x = torch.randn(4, 8)
    assert torch.equal(LoRALinear(base, 4, 8)(x), base(x))


def test_shapes_and_type_of_the_factors_over_a_half_base():
    layer = LoRALinear(nn.Linear(8, 5).to(torch.bfloat16), 3, 6)
    assert layer.lora_A.shape == (3, 8) and layer.lora_B.shape == (5, 3)
    assert layer.lora_A.dtype == layer.lora_B.dtype == torch.float32
    assert layer(torch.randn(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_dropout_touches_the_adapter_path_alone_and_only_in_training():
    layer = LoRALinear(nn.Linear(64, 5).eval(), 4, 8, lora_dropout=0.5, init_lora_weights=False)
    x = torch.randn(2, 64)
    assert torch.equal(layer(x), layer(x))  # eval was taken over from the base
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    nn.init.zeros_(layer.lora_B)
    assert torch.equal(layer(x), layer.base(x))


def test_a_packed_base_is_asked_for_its_fields_and_not_for_its_weight():
    class Packed(nn.Module):  # stands for any 4-bit layer: no weight at all, only buffers
        in_features, out_features = 6, 4

        def __init__(self):
            super().__init__()
            self.register_buffer("codes", torch.zeros(12, dtype=torch.uint8))

        def forward(self, x):
            return x[..., :4]

    layer = LoRALinear(Packed(), 2, 4)
    assert layer.lora_A.shape == (2, 6) and layer(torch.randn(3, 6)).shape == (3, 4)


def test_bitsandbytes_4bit_base():
    with quiet_peft():
        import bitsandbytes as bnb
    torch.manual_seed(0)
    base = bnb.nn.Linear4bit(64, 128, bias=False, quant_type="nf4")
    base.load_state_dict({"weight": torch.randn(128, 64)})
    base = base.to("cpu")
    base.support_avx512bf16_for_cpu = False
    layer = LoRALinear(base, 4, 8, init_lora_weights=False)
    assert layer.lora_A.shape == (4, 64) and layer.lora_B.shape == (128, 4)
    x = torch.randn(3, 64)
    expected = 2 * x @ (layer.lora_B @ layer.lora_A).T
    torch.testing.assert_close(layer(x) - base(x), expected, rtol=1e-3, atol=1e-4)


# ---- the whole model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_fresh_adapter_changes_no_logit(kind, tiny, ids):
    model = tiny(kind)
    before = model(ids).logits
    attach_lora(model)
    assert torch.equal(model(ids).logits, before)


def test_every_b_moves_and_the_base_does_not(tiny, ids):
    model = tiny().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attach_lora(model, LoRAConfig(r=4, lora_dropout=0.0))
    optimizer = torch.optim.AdamW(adapter_parameters(model), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model, ids).backward()
        optimizer.step()
    moved = {name: tensor.abs().max() for name, tensor in adapter_state_dict(model).items() if "lora_B" in name}
    assert len(moved) == 14 and all(value > 0 for value in moved.values())
    remove(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_only_adapters_learn(tiny):
    model = inject(tiny(), LoRAConfig(r=2, target_modules=["q_proj", "v_proj"]))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(learning) == 8 and all("lora_A" in name or "lora_B" in name for name in learning)


@pytest.mark.parametrize("bias, count", [("none", 0), ("lora_only", 2), ("all", 8)])
def test_bias_choice(bias, count, tiny):
    model = attach_lora(tiny(bias=True), LoRAConfig(target_modules=["q_proj"], bias=bias))
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sum(name.endswith("bias") for name in learning) == count


def test_remove_gives_back_modules_flags_and_names(tiny):
    model = tiny()
    model.model.norm.requires_grad_(False)
    modules = dict(model.named_modules())
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    remove(attach_lora(model, LoRAConfig(bias="all")))
    assert dict(model.named_modules()) == modules and not is_adapted(model)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags


def test_disabled_is_the_base_exactly_also_with_trained_biases(tiny, ids):
    for backend in ("own", "peft"):
        model = tiny(bias=True)
        before = model(ids).logits
        model = attach_lora(model, LoRAConfig(r=4, bias="all", lora_dropout=0.0), backend=backend)
        randomize(model)
        for parameter in adapter_parameters(model):
            parameter.data += 0.01
        adapted = model(ids).logits
        assert (adapted - before).abs().max() > 1e-3
        with adapter_disabled(model):
            assert torch.equal(model(ids).logits, before)
        assert torch.equal(model(ids).logits, adapted)


def test_disabled_comes_back_after_an_error(tiny, ids):
    model = attach_lora(tiny(), LoRAConfig(r=4))
    randomize(model)
    adapted = model(ids).logits
    with pytest.raises(RuntimeError, match="inside"):
        with disabled(model):
            raise RuntimeError("inside")
    assert torch.equal(model(ids).logits, adapted)


def test_two_adapters_take_turns_on_one_base(tiny, ids):
    model = tiny(bias=True)
    before = model(ids).logits
    first_logits, adapters = [], []
    for seed, config in enumerate([LoRAConfig(r=2), LoRAConfig(r=4, target_modules=["q_proj"], bias="lora_only")]):
        attach_lora(model, config)
        randomize(model, seed)
        for parameter in adapter_parameters(model):
            parameter.data += 0.01
        first_logits.append(model(ids).logits)
        adapters.append(take_off(model))
        assert torch.equal(model(ids).logits, before)
    for index in (1, 0, 1):
        put_on(model, adapters[index])
        assert torch.equal(model(ids).logits, first_logits[index])
        take_off(model)
    assert torch.equal(model(ids).logits, before)


def test_an_adapter_in_eval_does_not_drop(tiny, ids):
    model = attach_lora(tiny(), LoRAConfig(r=4, lora_dropout=0.5))
    randomize(model)
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_rank_and_alpha_patterns_reach_their_layers(tiny):
    config = LoRAConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2},
                        alpha_pattern={r"layers\.1\..*q_proj": 16})
    model = attach_lora(tiny(), config)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}
    assert {name: (len(layer.lora_A), layer.scaling) for name, layer in layers.items()} == {
        "model.layers.0.self_attn.q_proj": (4, 2.0), "model.layers.0.self_attn.v_proj": (2, 4.0),
        "model.layers.1.self_attn.q_proj": (4, 4.0), "model.layers.1.self_attn.v_proj": (2, 4.0)}


def test_freeze_alone_stops_a_plain_model(tiny):
    model = freeze(tiny())
    assert not any(parameter.requires_grad for parameter in model.parameters())


# ---- twins: peft as oracle -------------------------------------------------------------------------------------

CASES = {
    "all linear": ("llama", {}, {}),
    "attention": ("llama", {}, {"target_modules": "attention"}),
    "rslora": ("llama", {}, {"use_rslora": True}),
    "patterns": ("llama", {}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 32}}),
    "biases of wrapped": ("llama", {"bias": True}, {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "all biases": ("llama", {"bias": True}, {"bias": "all"}),
    "tied head in full": ("llama", {"tied": True}, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "head in full": ("llama", {}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "gpt2": ("gpt2", {}, {}),
    "gpt2 attention": ("gpt2", {}, {"target_modules": "attention"}),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind, made, fields", CASES.values(), ids=CASES.keys())
def test_equal_to_peft_logits_gradients_and_twenty_steps(kind, made, fields, tiny, ids, tmp_path):
    own, theirs = twins(lambda: tiny(kind, **made), tmp_path, **fields)
    torch.testing.assert_close(own(ids).logits, theirs(ids).logits, rtol=0, atol=1e-6)
    runs = []
    for model in (own, theirs):
        model.train()
        optimizer = torch.optim.AdamW(adapter_parameters(model), lr=1e-3)
        for step in range(20):
            optimizer.zero_grad()
            loss_of(model, ids).backward()
            if step == 0:
                gradients = sorted((p.grad.shape, p.grad.norm().item()) for p in adapter_parameters(model))
            optimizer.step()
        runs.append((gradients, weights(model)))
    (own_gradients, own_weights), (their_gradients, their_weights) = runs
    assert [shape for shape, _ in own_gradients] == [shape for shape, _ in their_gradients]
    assert torch.allclose(torch.tensor([norm for _, norm in own_gradients]),
                          torch.tensor([norm for _, norm in their_gradients]), rtol=0, atol=1e-6)
    assert own_weights.keys() == their_weights.keys()
    assert max((own_weights[name] - their_weights[name]).abs().max().item() for name in own_weights) <= 1e-6


@pytest.mark.parametrize("kind, made, fields", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_layers_give_the_logits_and_gradients_of_the_plain_ones(dtype, kind, made, fields, tiny, ids, tmp_path):
    plain, _ = twins(lambda: tiny(kind, **made).to(dtype), tmp_path, **fields)
    quick = load_adapter(tiny(kind, **made).to(dtype), tmp_path, backend="quick")
    assert {type(layer) for layer in quick.lora_adapter.layers.values()} <= {QuickLoRALinear, TrainedCopy}
    said = []
    for model in (plain, quick):
        loss_of(model.train(), ids).backward()
        said.append((model(ids).logits, *(weight.grad for weight in adapter_parameters(model))))
    near = {"rtol": 1e-4, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 0.05, "atol": 2e-3}
    for other, expected in zip(said[1], said[0], strict=True):
        assert other.dtype == expected.dtype
        torch.testing.assert_close(other, expected, **near)


def test_a_quick_adapter_is_switched_saved_and_taken_off_like_any_other(tiny, ids, tmp_path):
    base = tiny()(ids).logits
    model = attach_lora(tiny(), LoRAConfig(r=4, lora_dropout=0.5, init_lora_weights=False), "quick").eval()
    adapted = model(ids).logits
    with adapter_disabled(model):
        assert torch.equal(model(ids).logits, base)
    save_adapter(model, tmp_path)
    torch.testing.assert_close(load_adapter(tiny(), tmp_path)(ids).logits, adapted)
    assert not torch.allclose(model.train()(ids).logits, adapted)  # dropout is at work
    assert torch.equal(remove(model).eval()(ids).logits, base)


@pytest.mark.parametrize("shape", [(6,), (1, 6), (0, 6), (2, 3, 6)])
def test_a_quick_layer_takes_inputs_of_any_shape(shape):
    layer = LoRALinear(torch.nn.Linear(6, 4), r=2, lora_alpha=4, init_lora_weights=False)
    x = torch.randn(shape)
    expected = layer(x)
    layer.__class__ = QuickLoRALinear
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind, made, fields", CASES.values(), ids=CASES.keys())
def test_our_files_load_in_peft_and_peft_files_load_in_ours(kind, made, fields, tiny, ids, tmp_path):
    from peft import PeftModel

    own, theirs = twins(lambda: tiny(kind, **made), tmp_path / "ours", **fields)
    with quiet_peft():
        loaded = PeftModel.from_pretrained(tiny(kind, **made), tmp_path / "ours")
        torch.testing.assert_close(loaded(ids).logits, own(ids).logits, rtol=0, atol=1e-6)
        theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    back = load_adapter(tiny(kind, **made), tmp_path / "theirs")
    torch.testing.assert_close(back(ids).logits, own(ids).logits, rtol=0, atol=1e-6)
    save_adapter(theirs, tmp_path / "again")
    again = load_adapter(tiny(kind, **made), tmp_path / "again")
    torch.testing.assert_close(again(ids).logits, own(ids).logits, rtol=0, atol=1e-6)


def test_tied_weights_stay_tied_while_they_train(tiny, ids):
    model = attach_lora(tiny(tied=True), LoRAConfig(r=2, modules_to_save=["embed_tokens"]))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    optimizer = torch.optim.AdamW(adapter_parameters(model), lr=1e-2)
    loss_of(model, ids).backward()
    optimizer.step()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    remove(model)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


# ---- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field, message", [
    ({"r": 0}, "rank must be at least 1, got 0"), ({"lora_alpha": 0}, "lora_alpha must be above 0, got 0"),
    ({"lora_dropout": 1.0}, "below 1, got 1.0"), ({"target_modules": []}, "at least one"),
    ({"target_modules": ["q_proj", "q_proj"]}, "once"), ({"rank_pattern": {"q_proj": 0}}, "at least 1"),
    ({"alpha": 3}, "alpha"),
])
def test_config_refuses(field, message):
    with pytest.raises(ValueError, match=message):
        LoRAConfig(**field)


@pytest.mark.parametrize("backend", ["own", "peft"])
@pytest.mark.parametrize("fields, message", [
    ({"target_modules": ["q_porj"]}, "no layer is called 'q_porj'; did you mean 'q_proj'"),
    ({"target_modules": ["q_proj", "embed_tokens"]}, "Embedding"), ({"target_modules": ["lm_head"]}, "modules_to_save"),
    ({"target_modules": "nothing.*"}, "finds no linear layer"), ({"modules_to_save": ["lm_haed"]}, "did you mean"),
])
def test_a_failed_attach_names_the_fault_and_leaves_the_model_as_it_was(backend, fields, message, tiny, ids):
    model = tiny()
    before, modules = model(ids).logits, dict(model.named_modules())
    with pytest.raises(ConfigError, match=message):
        attach_lora(model, LoRAConfig(**fields), backend=backend)
    assert dict(model.named_modules()) == modules and not is_adapted(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("backend", ["own", "peft"])
def test_double_attach_is_refused(backend, tiny):
    model = attach_lora(tiny(), backend=backend)
    with pytest.raises(ConfigError, match="bare model"):
        attach_lora(model, backend="own")
    with pytest.raises(ConfigError, match="backend must be own, quick or peft"):
        attach_lora(tiny(), backend="PEFT")


def test_a_rank_above_the_width_warns_and_works(tiny, ids):
    with pytest.warns(UserWarning, match="above the smaller side"):
        model = attach_lora(tiny(), LoRAConfig(r=40, target_modules=["q_proj"]))
    assert model(ids).logits.shape == (3, 12, 96)


def test_calls_on_a_bare_model_say_so(tiny):
    for call in (remove, adapter_parameters, adapter_state_dict, take_off):
        with pytest.raises(ConfigError, match="no adapter"):
            call(tiny())
