"""Checks of milestone 2: the adapter does what the formula says, learns alone, and is saved without its base."""
import math

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from milestones.expecting import expect, refuses, same


class Packed(nn.Module):
    """A linear layer whose weight is stored two codes a byte, as in 4 bits: its tensor's shape says nothing."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.in_features, self.out_features = d_in, d_out
        self.weight = nn.Parameter(torch.zeros(d_in * d_out // 2, 1, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("absmax", torch.ones(4))

    def forward(self, x):
        return torch.zeros(*x.shape[:-1], self.out_features, dtype=x.dtype)


def tiny_llama(bias: bool = False):
    """A Llama of two layers with random weights, in eval mode."""
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        attention_bias=bias, tie_word_embeddings=True)).eval()


def adapter(lib, seed, dropout=0.0, **options):
    """A LoRALinear over a random layer with every part at work, and what belongs to it."""
    d_in, d_out, r = 5 + seed % 4, 3 + seed % 2, 2 + seed % 3  # r is 2, 3 or 4: never 1, and alpha / r is never alpha
    base = nn.Linear(d_in, d_out)
    layer = lib.LoRALinear(base, r, 7.0, lora_dropout=dropout, init_lora_weights=False, **options)
    return layer, base, torch.randn(4, d_in), r


def wrapped(lib, bias=False):
    """A small model with one wrapped layer, one bare one and an embedding, all learning."""
    model = nn.Sequential(nn.Embedding(9, 6), lib.LoRALinear(nn.Linear(6, 4), 2, 4.0), nn.LayerNorm(4), nn.Linear(4, 3))
    return model.requires_grad_(True)


def learning(model) -> list[str]:
    return sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)


@pytest.mark.task("2.1", points=5, hint="B starts as zeros, and A does not: the product is zero, but not for long")
def test_a_fresh_adapter_changes_nothing_yet_can_learn(lib, seed):
    base = nn.Linear(6, 4)
    layer, x = lib.LoRALinear(base, 3, 6.0), torch.randn(5, 6)
    expect(bool(layer.lora_A.any()), "A is random: its values are not all zero", "random numbers", "zeros",
           {"both matrices are zero: neither would ever get a gradient": not layer.lora_B.any()})
    same(layer(x), base(x), "the output of a fresh adapter", {
        "both matrices are random": bool(layer.lora_B.any()),
        "the base is left out": torch.zeros(5, 4)})


@pytest.mark.task("2.1", points=7, hint="write the shapes beside each line: x (…, d_in), A (r, d_in), B (d_out, r)")
def test_forward_adds_the_update_times_alpha_over_r(lib, seed):
    layer, base, x, r = adapter(lib, seed)
    low = x @ layer.lora_A.T @ layer.lora_B.T
    same(layer(x), base(x) + 7 / r * low, "the output of LoRALinear", {
        "alpha is not divided by r": base(x) + 7 * low,
        "the update is not scaled": base(x) + low,
        "alpha is divided by the root of r, as only rsLoRA does": base(x) + 7 / math.sqrt(r) * low,
        "the base's answer is left out": 7 / r * low,
        "the update is left out": base(x),
        "the base's answer is scaled too": 7 / r * (base(x) + low)})


@pytest.mark.task("2.1", points=3)
def test_rslora_divides_alpha_by_the_root_of_r(lib, seed):
    layer, base, x, r = adapter(lib, seed, use_rslora=True)
    low = x @ layer.lora_A.T @ layer.lora_B.T
    same(layer(x), base(x) + 7 / math.sqrt(r) * low, "the output with use_rslora", {
        "use_rslora is not looked at": base(x) + 7 / r * low})


@pytest.mark.task("2.1", points=4, values=False, hint="`layer_shape(base)` knows the widths of every kind of layer")
def test_matrices_are_float32_of_the_bases_widths(lib, seed):
    for base, name in ((nn.Linear(6, 4).bfloat16(), "a bfloat16 layer"), (Conv1D(4, 6), "GPT-2's Conv1D"),
                       (Packed(6, 4), "a 4-bit layer")):
        layer = lib.LoRALinear(base, 3, 6.0)
        shapes = [tuple(layer.lora_A.shape), tuple(layer.lora_B.shape)]
        same(
            shapes,
            [(3, 6), (4, 3)],
            f"the shapes of A and B over {name}",
            {
                "A and B are exchanged": shapes[0] == (4, 3) or shapes[1] == (3, 6),
                "A and B are stored the other way round": [(6, 3), (3, 4)],
                "the widths are read from a weight that is stored transposed": [(3, 4), (6, 3)],
                "the widths are read from a packed weight": shapes[0] == (3, 1) or shapes[1] == (12, 3),
            },
        )
        expect(layer.lora_A.dtype == layer.lora_B.dtype == torch.float32, f"A and B are float32 over {name}",
               "torch.float32", str(layer.lora_A.dtype), {"the adapter takes the base's type": name.startswith("a bf")})


@pytest.mark.task("2.1", points=4, values=False)
def test_the_output_has_the_type_of_the_bases_output(lib, seed):
    base = nn.Linear(6, 4).bfloat16()
    got = lib.LoRALinear(base, 3, 6.0, init_lora_weights=False)(torch.randn(2, 6).bfloat16())
    expect(got.dtype == torch.bfloat16, "the output is bfloat16, as the base's", "torch.bfloat16", str(got.dtype),
           {"the sum is left in the adapter's float32": got.dtype == torch.float32})


@pytest.mark.task("2.1", points=5, values=False, hint="x goes two ways; only one of them passes the dropout")
def test_dropout_acts_on_the_adapters_input_alone_and_only_in_training(lib, seed):
    base = nn.Linear(64, 3)
    layer, x = lib.LoRALinear(base.train(), 2, 4.0, lora_dropout=0.5, init_lora_weights=False), torch.randn(2, 64)
    layer.lora_A.data.zero_()
    same(layer(x), base(x), "the output with A = 0 and dropout", {
        "dropout acts on the base's path too": layer(x).ne(base(x)).any().item()})
    layer.lora_A.data.normal_()
    expect(bool((layer(x) != layer(x)).any()), "in training the adapter drops inputs", "two different outputs",
           "the same output twice", {"dropout is left out": True})
    quiet = lib.LoRALinear(base.eval(), 2, 4.0, lora_dropout=0.5, init_lora_weights=False)
    expect(bool((quiet(x) == quiet(x)).all()), "over a base in eval mode nothing is dropped", "the same output twice",
           "two different outputs", {"dropout is on in eval: the adapter does not take over the base's mode": True})


@pytest.mark.task("2.1", points=3, values=False, hint="`disabled` sets `active` to False for a while")
def test_a_layer_that_is_not_active_is_its_base(lib, seed):
    layer, base, x, _ = adapter(lib, seed)
    layer.active = False
    same(layer(x), base(x), "the output with active = False", {"the switch is not looked at": True}, rtol=0, atol=0)


@pytest.mark.task("2.2", points=6)
def test_only_a_and_b_learn(lib, seed):
    names = learning(lib.freeze(wrapped(lib)))
    same(names, ["1.lora_A", "1.lora_B"], "the list of what learns", {
        "the base still learns": "1.base.weight" in names and len(names) > 3,
        "the adapters are frozen too": names == [],
        "only one of the two matrices learns": len(names) == 1})


@pytest.mark.task("2.2", points=4, hint="three words: none, all, lora_only")
def test_biases_learn_when_they_are_asked_for(lib, seed):
    both = ["1.lora_A", "1.lora_B"]
    want = {"none": [], "lora_only": ["1.base.bias"], "all": ["1.base.bias", "2.bias", "3.bias"]}
    for word, more in want.items():
        names = learning(lib.freeze(wrapped(lib), word))
        same(names, sorted(both + more), f"the list of what learns with bias={word!r}", {
            "biases are not looked at": names == both,
            "every bias learns, not only those of wrapped layers": names == sorted(both + want["all"])})


@pytest.mark.task("2.3", points=8)
def test_every_target_is_wrapped_and_nothing_else(lib, seed):
    model = tiny_llama()
    lib.inject(model, lib.LoRAConfig(r=4, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2}))
    ranks = {name: len(layer.lora_A) for name, layer in model.named_modules() if isinstance(layer, lib.LoRALinear)}
    want = {f"model.layers.{i}.self_attn.{name}": rank for i in (0, 1) for name, rank in (("q_proj", 4), ("v_proj", 2))}
    same(ranks, want, "the wrapped layers and their ranks", {
        "only the first layer that matches is wrapped": 0 < len(ranks) < 4,
        "nothing is put into the model": ranks == {},
        "each layer gets the same rank, whatever rank_pattern says": ranks == dict.fromkeys(want, 4)})


@pytest.mark.task("2.3", points=4, values=False)
def test_a_fresh_injection_keeps_the_logits_and_freezes_the_base(lib, seed):
    model, ids = tiny_llama(), torch.randint(0, 40, (2, 7))
    before = model(ids).logits
    model = lib.inject(model, lib.LoRAConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=True))
    expect(model is not None, "the model is returned", "the model", "None", {"the return is missing": True})
    same(model(ids).logits, before, "the logits after injection", rtol=0, atol=0)
    learns = [name for name in learning(model) if "lora_" not in name]
    expect(not learns, "nothing of the base learns", "[]", str(learns[:4]), {"the base is left trainable": True})


@pytest.mark.task("2.3", points=4, values=False, hint="build all of it first, and touch the model last")
def test_an_injection_that_fails_leaves_the_model_as_it_was(lib, seed):
    model = tiny_llama()
    before = {name: type(layer).__name__ for name, layer in model.named_modules()} | dict.fromkeys(learning(model))
    refuses(lambda: lib.inject(model, lib.LoRAConfig(target_modules=["q_proj"], modules_to_save=["nonsense"])),
            "a layer in modules_to_save that is not there", mentions="nonsense")
    after = {name: type(layer).__name__ for name, layer in model.named_modules()} | dict.fromkeys(learning(model))
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    expect(not changed, "the model is as it was", "the same layers", f"changed: {', '.join(changed[:3])}",
           {"layers are put in place before all of them are built": True})


@pytest.mark.task("2.3", points=3, values=False)
def test_a_second_injection_is_refused(lib, seed):
    model, config = tiny_llama(), lib.LoRAConfig(r=2, target_modules=["q_proj"])
    lib.inject(model, config)
    refuses(lambda: lib.inject(model, config), "a model that carries an adapter")


@pytest.mark.task("2.4", points=4)
def test_the_saved_names_are_pefts_and_the_base_is_not_among_them(lib, seed):
    model = lib.inject(tiny_llama(), lib.LoRAConfig(r=2, target_modules=["q_proj", "v_proj"]))
    names = sorted(lib.adapter_state_dict(model))
    ours = [f"model.layers.{i}.self_attn.{name}.lora_{part}.weight"
            for i in (0, 1) for name in ("q_proj", "v_proj") for part in "AB"]
    same(
        names,
        [f"base_model.model.{name}" for name in ours],
        "the names in the file",
        {
            "the base is saved with the adapter": len(names) > len(ours),
            "the names do not begin with base_model.model, where peft looks": names == ours,
            "`.weight` is missing at their ends": names
            == [f"base_model.model.{name.removesuffix('.weight')}" for name in ours],
            "only one of the two matrices is saved": len(names) == len(ours) // 2,
        },
    )


@pytest.mark.task("2.4", points=3)
def test_the_saved_tensors_are_the_learned_ones_and_carry_no_graph(lib, seed):
    model = lib.inject(tiny_llama(), lib.LoRAConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    layer, start = model.model.layers[1].self_attn.q_proj, "base_model.model.model.layers.1.self_attn.q_proj"
    saved = lib.adapter_state_dict(model)
    for part in "AB":
        got = saved.get(f"{start}.lora_{part}.weight")
        same(
            got,
            getattr(layer, f"lora_{part}").detach(),
            f"the saved lora_{part}",
            {
                "A and B are exchanged": got is not None
                and got.shape == getattr(layer, f"lora_{'BA'[part == 'B']}").shape
            },
        )
        expect(not got.requires_grad, "saved tensors are detached", "requires_grad=False", "requires_grad=True",
               {"the tensor is taken with its graph": True})


@pytest.mark.task("2.4", points=3, hint="peft's layer holds the base in `base_layer`")
def test_trained_biases_are_saved_where_peft_looks_for_them(lib, seed):
    model = lib.inject(tiny_llama(bias=True), lib.LoRAConfig(r=2, target_modules=["q_proj"], bias="lora_only"))
    names = sorted(name for name in lib.adapter_state_dict(model) if name.endswith("bias"))
    want = [f"base_model.model.model.layers.{i}.self_attn.q_proj.base_layer.bias" for i in (0, 1)]
    same(
        names,
        want,
        "the names of saved biases",
        {
            "trained biases are not saved": names == [],
            "the bias stands beside the adapter, not one level down": names
            == [n.replace("base_layer.", "") for n in want],
        },
    )


ROLES = [
    ("self_attn.q_proj", (64, 64), "q"),
    ("self_attn.k_proj", (64, 16), "k"),
    ("self_attn.v_proj", (64, 16), "v"),
    ("self_attn.o_proj", (64, 64), "o"),
    ("self_attn.qkv_proj", (64, 192), "qkv"),
    ("attn.c_attn", (64, 192), "qkv"),
    ("attention.self.query", (64, 64), "q"),
    ("attention.self.value", (64, 64), "v"),
    ("attention.dense", (64, 64), "o"),
    ("attn.c_proj", (64, 64), "o"),
    ("self_attention.query_key_value", (64, 192), "qkv"),
    ("attn.q_proj", (64, 64), "q"),
    ("mlp.gate_proj", (64, 176), "gate"),
    ("mlp.up_proj", (64, 176), "up"),
    ("mlp.down_proj", (176, 64), "down"),
    ("mlp.gate_up_proj", (64, 352), "gate_up"),
    ("mlp.c_fc", (64, 256), "up"),
    ("mlp.c_proj", (256, 64), "down"),
    ("mlp.fc1", (64, 256), "up"),
    ("mlp.fc2", (256, 64), "down"),
    ("mlp.dense_h_to_4h", (64, 256), "up"),
    ("block_sparse_moe.gate", (64, 8), "router"),
    ("mlp.gate", (64, 8), "router"),
    ("mlp.experts.3.w1", (64, 176), "up"),
    ("layer.1.DenseReluDense.wi_0", (64, 256), "gate"),
]


def check_roles(lib, seed, wanted: set[str]) -> None:
    """Layers of known models with those roles, at a block drawn from the seed."""
    for path, shape, role in ROLES:
        if role in wanted:
            got = lib.role_of(f"model.layers.{seed % 40}.{path}", shape)
            same(
                got,
                role,
                f"the role of {path} {shape}",
                {
                    "c_proj is taken for one thing: inside attention it is the output, in the MLP it is down": path
                    == "attn.c_proj",
                    "a router is taken for a gate: its name is `gate` and nothing more": role == "router"
                    and got == "gate",
                    "up and down are exchanged: up makes the vector longer": {got, role} == {"up", "down"},
                    "fused queries, keys and values are taken for one of them": role == "qkv",
                    "gate_up is taken for a gate": role == "gate_up",
                },
            )


@pytest.mark.task("2.5", points=5, values=False)
def test_layers_of_attention_are_recognized(lib, seed):
    check_roles(lib, seed, {"q", "k", "v", "qkv", "o"})


@pytest.mark.task("2.5", points=3, values=False)
def test_layers_of_the_mlp_and_routers_are_recognized(lib, seed):
    check_roles(lib, seed, {"gate", "up", "gate_up", "down", "router"})


@pytest.mark.task("2.5", points=2, values=False)
def test_what_stands_outside_the_blocks_is_other(lib, seed):
    for path in ("lm_head", "score", "model.embed_out", "pooler.dense"):
        same(lib.role_of(path, (64, 200)), "other", f"the role of {path}", {
            "layers outside the numbered blocks are not left out": True})


@pytest.mark.task("2.6", points=5, hint="a tensor that two layers share is one tensor: look at its id")
def test_trainable_and_frozen_are_counted_and_tied_weights_once(lib, seed):
    d = 3 + seed % 5
    model = nn.Sequential(nn.Embedding(11, d), nn.Linear(d, 4), nn.Linear(d, 11, bias=False))
    model[2].weight = model[0].weight
    model.requires_grad_(False)[1].requires_grad_(True)
    count, learns = lib.count_parameters(model), 4 * d + 4
    same([count.trainable, count.frozen], [learns, 11 * d], "[trainable, frozen]", {
        "tied weights are counted twice": [learns, 22 * d],
        "trainable and frozen are exchanged": [11 * d, learns],
        "biases are left out": [4 * d, 11 * d]})
    bytes_ = [count.weight_bytes, count.gradient_bytes, count.optimizer_bytes]
    same(
        bytes_,
        [4 * (learns + 11 * d), 4 * learns, 8 * learns],
        "[weight, gradient, optimizer] bytes",
        {
            "gradients are counted for frozen weights": [
                4 * (learns + 11 * d),
                4 * (learns + 11 * d),
                8 * (learns + 11 * d),
            ]
        },
    )


@pytest.mark.task("2.6", points=5, hint="ask the layer for its widths; its tensor holds two codes a byte")
def test_a_4_bit_layer_counts_its_true_number_of_weights(lib, seed):
    d_in, d_out = 4 + 2 * (seed % 5), 6
    count = lib.count_parameters(nn.Sequential(Packed(d_in, d_out)))
    same([count.trainable, count.frozen], [0, d_in * d_out], "[trainable, frozen] of a 4-bit layer", {
        "bytes are counted for weights: there are two in each": [0, d_in * d_out // 2],
        "the packed tensor is counted beside its weights": [0, d_in * d_out * 3 // 2]})
    same(count.weight_bytes, d_in * d_out // 2 + 16, "the bytes of a 4-bit layer with four float32 scales", {
        "the scales are forgotten": d_in * d_out // 2, "its weights are counted as float32": 4 * d_in * d_out})


def learned(lib, values: list[float]):
    """A model whose one update has exactly these singular values."""
    r, d = len(values), 12
    layer = lib.LoRALinear(nn.Linear(d, d), r, float(r))
    left, right = (torch.linalg.qr(torch.randn(d, r)).Q for _ in range(2))
    layer.lora_B.data, layer.lora_A.data = left * torch.tensor(values), right.T.contiguous()
    return nn.ModuleDict({"proj": layer})


@pytest.mark.task("2.7", points=5, hint="the exponential of the entropy of shares: r equal values give r")
def test_entropy_counts_the_directions_in_use(lib, seed):
    values = (torch.rand(4) + 0.2).sort(descending=True).values
    shares, squares = values / values.sum(), values.square() / values.square().sum()
    use = lib.effective_rank(learned(lib, values.tolist()))["proj"]
    entropy = -(shares * shares.log()).sum()
    same(use.entropy, entropy.exp().item(), "the effective rank by entropy", {
        "the exponential is not taken": entropy.item(),
        "the shares are those of the squares": (-(squares * squares.log()).sum()).exp().item(),
        "the logarithm to the base 2 is used": (-(shares * shares.log2()).sum()).exp().item()}, rtol=1e-4)
    same(use.norm, values.square().sum().sqrt().item(), "the norm of the update", {
        "the root is not taken": values.square().sum().item(),
        "the values are added, not their squares": values.sum().item()}, rtol=1e-4)


@pytest.mark.task("2.7", points=5)
def test_energy_counts_the_values_that_hold_the_asked_share(lib, seed):
    got = [lib.effective_rank(learned(lib, values), energy)["proj"].energy for values, energy in (
        ([3.0, 1.0, 0.1, 0.1], 0.9), ([3.0, 1.0, 0.1, 0.1], 0.89), ([1.0, 1.0, 1.0, 1.0], 0.6))]
    same(
        got,
        [2, 1, 3],
        "the number of values that hold 90 %, 89 % (of 3, 1, 0.1, 0.1) and 60 % (of four equal ones)",
        {
            "the shares are those of the values, not of their squares": [3, 3, 3] == got or [2, 2, 3] == got,
            "the last value that is needed is not counted": [1, 0, 2],
        },
    )
    zero = lib.effective_rank(nn.ModuleDict({"proj": lib.LoRALinear(nn.Linear(4, 4), 2, 2.0)}))["proj"]
    same([zero.entropy, zero.energy, zero.norm], [0.0, 0, 0.0], "[entropy, energy, norm] of an update of zero", {
        "a sum of zero is divided by": math.isnan(zero.entropy)})
