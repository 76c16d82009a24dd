"""Checks of milestone 2: the adapter does what the formula says, learns alone, and is saved without its base."""
import math

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from milestones.expecting import equal, expect, gives, refuses, same

COUNTED = ("trainable", "frozen", "weight_bytes", "gradient_bytes", "optimizer_bytes")


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
    layer = lib.LoRALinear(base, r, 7.0, lora_dropout=dropout, **options)
    layer.lora_A.data, layer.lora_B.data = torch.randn(r, d_in), torch.randn(d_out, r)
    return layer, base, torch.randn(4, d_in), r


def wrapped(lib, bias=False):
    """A small model with one wrapped layer, bare ones with and without bias, and an embedding, all learning."""
    model = nn.Sequential(nn.Embedding(9, 6), lib.LoRALinear(nn.Linear(6, 4), 2, 4.0), nn.LayerNorm(4), nn.Linear(4, 3),
                          nn.Linear(3, 2, bias=False))
    return model.requires_grad_(True)


def learning(model) -> list[str]:
    return sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)


@pytest.mark.task("2.1", points=5, hint="B starts as zeros, and A does not: the product is zero, but not for long")
def test_a_fresh_adapter_changes_nothing_yet_can_learn(lib, seed):
    base = nn.Linear(16, 4)
    layer, x = lib.LoRALinear(base, 4, 8.0), torch.randn(5, 16)
    A, B = layer.lora_A, layer.lora_B
    expect(bool(A.any()), "A is random: its values are not all zero", "random numbers", "zeros", {
        "both matrices are zero: neither would ever get a gradient": not B.any(),
        "A and B are exchanged: A is zero and B is random": bool(B.any())})
    same(layer(x), base(x), "the output of a fresh adapter", {
        "both matrices are random": bool(B.any()),
        "the base is left out": torch.zeros(5, 4)})
    largest = A.abs().max().item()  # of 64 uniform numbers: below half of the bound once in 2 ** 64
    expect(0.5 / 4 < largest <= 1 / 4, "A is Kaiming-uniform, as in nn.Linear: within 1 / √d_in",
           "a largest magnitude of at most 1 / √16 = 0.25", f"{largest:.3g}", {
               "A is drawn from another distribution": largest > 1 / 4, "A starts almost at zero": largest <= 0.5 / 4})
    learns = sorted(name for name, _ in layer.named_parameters() if "lora" in name)
    same(learns, ["lora_A", "lora_B"], "the adapter's parameters", {
        "A or B is one of the plain tensors, not an nn.Parameter: no optimizer would find it": len(learns) < 2})
    ready = lib.LoRALinear(base, 4, 8.0, init_lora_weights=False)
    expect(bool(ready.lora_B.any()), "with init_lora_weights=False B is random too", "random numbers", "zeros",
           {"init_lora_weights is not looked at": True})


@pytest.mark.task("2.1", points=6, hint="write the shapes beside each line: x (…, d_in), A (r, d_in), B (d_out, r)")
def test_forward_adds_the_update_times_alpha_over_r(lib, seed):
    layer, base, x, r = adapter(lib, seed)
    low = x @ layer.lora_A.T @ layer.lora_B.T
    got = gives(layer(x), "LoRALinear.forward", torch.Tensor)
    same(got, base(x) + 7 / r * low, "the output of LoRALinear", {
        "alpha is not divided by r": base(x) + 7 * low,
        "the update is not scaled": base(x) + low,
        "alpha is divided by the root of r, as only rsLoRA does": base(x) + 7 / math.sqrt(r) * low,
        "alpha is divided by r with //, which rounds down": base(x) + 7 // r * low,
        "r is divided by alpha, not alpha by r": base(x) + r / 7 * low,
        "the scale is applied twice": base(x) + (7 / r) ** 2 * low,
        "the base's answer is left out": 7 / r * low,
        "the update is left out, or all of it is dropped": base(x),
        "the base's answer is scaled too": 7 / r * (base(x) + low)})


@pytest.mark.task("2.1", points=3)
def test_rslora_divides_alpha_by_the_root_of_r(lib, seed):
    layer, base, x, r = adapter(lib, seed, use_rslora=True)
    low = x @ layer.lora_A.T @ layer.lora_B.T
    got = gives(layer(x), "LoRALinear.forward", torch.Tensor)
    same(got, base(x) + 7 / math.sqrt(r) * low, "the output with use_rslora", {
        "use_rslora is not looked at": base(x) + 7 / r * low,
        "alpha is not divided": base(x) + 7 * low,
        "alpha is divided with //, which rounds down": base(x) + 7 // math.sqrt(r) * low,
        "alpha is divided by the square of r": base(x) + 7 / r**2 * low})


@pytest.mark.task("2.1", points=3, values=False, hint="`layer_shape(base)` knows the widths of every kind of layer")
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
    far = lib.LoRALinear(nn.Linear(6, 4, device="meta"), 3, 6.0)
    same([far.lora_A.device.type, far.lora_B.device.type], ["meta", "meta"],
         "the devices of A and B over a layer on the meta device", {"the base's device is not asked for": True})


@pytest.mark.task("2.1", points=3, values=False)
def test_the_output_has_the_type_of_the_bases_output(lib, seed):
    base = nn.Linear(6, 4).bfloat16()
    layer = lib.LoRALinear(base, 3, 6.0, init_lora_weights=False)
    got = gives(layer(torch.randn(2, 6).bfloat16()), "LoRALinear.forward", torch.Tensor)
    expect(got.dtype == torch.bfloat16, "the output is bfloat16, as the base's", "torch.bfloat16", str(got.dtype),
           {"the sum is left in the adapter's float32": got.dtype == torch.float32})


@pytest.mark.task("2.1", points=4, values=False, hint="x goes two ways; only one of them passes the dropout")
def test_dropout_acts_on_the_adapters_input_alone_and_only_in_training(lib, seed):
    base = nn.Linear(64, 3)
    layer, x = lib.LoRALinear(base.train(), 2, 4.0, lora_dropout=0.5), torch.randn(2, 64)
    layer.lora_A.data.zero_()
    layer.lora_B.data.fill_(1.0)
    got = gives(layer(x), "LoRALinear.forward", torch.Tensor)
    same(got, base(x), "the output with A = 0 and dropout", {
        "dropout acts on the base's path too": got.ne(base(x)).any().item()})
    layer.lora_A.data.fill_(1 / 64)
    ones = torch.ones(1, 64)
    update = (layer(ones) - base(ones)).detach()
    update = update / (layer.eval()(ones) - base(ones)).detach()  # beside what comes without dropout
    layer.train()
    expect(bool((layer(x) != layer(x)).any()), "in training the adapter drops inputs", "two different outputs",
           "the same output twice", {"dropout is left out": True})
    expect(bool((update > 0.02).all() and (update < 1.98).all() and (update - update[0, 0]).abs().max() < 1e-4),
           "half of the 64 inputs are dropped, on their way into A", "about 1 for 64 ones, the same for each output",
           update, {"dropout acts behind A or B, on the update and not on its input": True})
    quiet = lib.LoRALinear(base.eval(), 2, 4.0, lora_dropout=0.5, init_lora_weights=False)
    expect(bool((quiet(x) == quiet(x)).all()), "over a base in eval mode nothing is dropped", "the same output twice",
           "two different outputs", {"dropout is on in eval: the adapter does not take over the base's mode": True})


@pytest.mark.task("2.1", points=3, values=False, hint="`disabled` sets `active` to False for a while")
def test_a_layer_that_is_not_active_is_its_base(lib, seed):
    layer, base, x, _ = adapter(lib, seed)
    layer.active = False
    same(layer(x), base(x), "the output with active = False", {"the switch is not looked at": True}, rtol=0, atol=0)


@pytest.mark.task("2.2", points=5)
def test_only_a_and_b_learn(lib, seed):
    model = wrapped(lib)
    names = learning(gives(lib.freeze(model), "freeze", nn.Module))
    same(names, ["1.lora_A", "1.lora_B"], "the list of what learns", {
        "the base still learns": any(".base." in name for name in names),
        "the adapters are frozen too": names == [],
        "only one of the two matrices learns": len(names) == 1})
    copied = nn.Sequential(lib.TrainedCopy(nn.Embedding(9, 6)), lib.LoRALinear(nn.Linear(6, 4), 2, 4.0))
    names = learning(gives(lib.freeze(copied), "freeze", nn.Module))
    same(names, ["0.tuned.weight", "1.lora_A", "1.lora_B"], "the list of what learns beside a TrainedCopy", {
        "a layer that is trained in full (TrainedCopy) is frozen too": names == ["1.lora_A", "1.lora_B"],
        "the base inside a TrainedCopy learns too": "0.base.weight" in names})


@pytest.mark.task("2.2", points=4, hint="three words: none, all, lora_only")
def test_biases_learn_when_they_are_asked_for(lib, seed):
    both = ["1.lora_A", "1.lora_B"]
    want = {"none": [], "lora_only": ["1.base.bias"], "all": ["1.base.bias", "2.bias", "3.bias"]}
    for word, more in want.items():
        names = learning(gives(lib.freeze(wrapped(lib), word), "freeze", nn.Module))
        same(names, sorted(both + more), f"the list of what learns with bias={word!r}", {
            "more is wrong than the biases: the check before this one says what": not set(both) <= set(names)
            or any(name.endswith("weight") for name in names),
            "biases are not looked at": names == both and word != "none",
            "every bias learns, not only those of wrapped layers": names == sorted(both + want["all"]),
            "with 'all' only the biases of wrapped layers learn": names == sorted(both + want["lora_only"]),
            "biases of other layers than linear ones are left out": "2.bias" not in names and word == "all"})
        bare = nn.Sequential(lib.LoRALinear(nn.Linear(6, 4, bias=False), 2, 4.0))
        same(learning(gives(lib.freeze(bare, word), "freeze", nn.Module)), ["0.lora_A", "0.lora_B"],
             f"the list of what learns in a model without any bias, with bias={word!r}")


@pytest.mark.task("2.3", points=6)
def test_every_target_is_wrapped_and_nothing_else(lib, seed):
    model = tiny_llama()
    lib.inject(model, lib.LoRAConfig(r=4, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2}))
    ranks = {name: len(layer.lora_A) for name, layer in model.named_modules() if isinstance(layer, lib.LoRALinear)}
    want = {f"model.layers.{i}.self_attn.{name}": rank for i in (0, 1) for name, rank in (("q_proj", 4), ("v_proj", 2))}
    same(ranks, want, "the wrapped layers and their ranks", {
        "only the first layer that matches is wrapped": 0 < len(ranks) < 4,
        "nothing is put into the model that was given, in place": ranks == {},
        "each layer gets the same rank, whatever rank_pattern says": ranks == dict.fromkeys(want, 4)})
    model = tiny_llama()
    lib.inject(model, lib.LoRAConfig(r=4, target_modules=r".*\.1\.mlp\.(up|down)_proj"))
    names = [name for name, layer in model.named_modules() if isinstance(layer, lib.LoRALinear)]
    want = ["model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"]
    same(sorted(names), sorted(want), "the wrapped layers where target_modules is a regular expression", {
        "target_modules is compared by hand: match_targets reads names, words and patterns": True})
    kept = lib.own_adapter(model).config.target_modules
    expect(isinstance(kept, list) and sorted(lib.match_targets(tiny_llama(), kept)) == sorted(want),
           "the config that is kept names exactly these layers", "names that mean the two layers", kept,
           {"the names that were found are not written into the config": isinstance(kept, str)})


@pytest.mark.task("2.3", points=2, values=False)
def test_a_fresh_injection_keeps_the_logits_and_freezes_the_base(lib, seed):
    model, ids = tiny_llama(), torch.randint(0, 40, (2, 7))
    before = model(ids).logits
    config = lib.LoRAConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=True)
    model = gives(lib.inject(model, config), "inject", nn.Module)
    same(model(ids).logits, before, "the logits after injection", rtol=0, atol=0)
    learns = [name for name in learning(model) if "lora_" not in name]
    expect(not learns, "nothing of the base learns", "[]", str(learns[:4]), {"the base is left trainable": True})


@pytest.mark.task("2.3", points=2, values=False, hint="step 4: what must be noted before anything is put in place?")
def test_the_base_can_be_had_back_whole(lib, seed):
    model, ids = tiny_llama(bias=True), torch.randint(0, 40, (2, 7))
    before, learned, layer = model(ids).logits, learning(model), model.model.layers[1].self_attn.q_proj
    lib.inject(model, lib.LoRAConfig(r=4, target_modules=["q_proj"], bias="lora_only"))
    layer.bias.data += 1
    with lib.disabled(model):
        same(model(ids).logits, before, "the logits with the adapter disabled, after a bias has learned", {
            "trained biases are not noted, or not copied: a bias changes in place": True}, rtol=0, atol=0)
    model = gives(lib.remove(model), "remove", nn.Module)
    expect(model.model.layers[1].self_attn.q_proj is layer, "the base's own layer comes back when the adapter goes",
           "the same layer", "another one", {"a copy of the layer is wrapped, not the layer": True})
    same(learning(model), learned, "what learns once the adapter is removed", {
        "what learned before is not noted": learning(model) == []})


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


@pytest.mark.task("2.4", points=4, values=False)
def test_the_saved_names_are_pefts_and_the_base_is_not_among_them(lib, seed):
    model = lib.inject(tiny_llama(), lib.LoRAConfig(r=2, target_modules=["q_proj", "v_proj"]))
    names = sorted(gives(lib.adapter_state_dict(model), "adapter_state_dict", dict))
    ours = [f"model.layers.{i}.self_attn.{name}.lora_{part}.weight"
            for i in (0, 1) for name in ("q_proj", "v_proj") for part in "AB"]
    want = [f"base_model.model.{name}" for name in ours]
    same(
        names,
        want,
        "the names in the file",
        {
            "the base is saved with the adapter": len(names) > len(ours),
            "the names do not begin with base_model.model, where peft looks": names == ours,
            "they begin with one `model.` too many: a Llama's own names begin with one": names
            == [f"base_model.model.model.{name}" for name in ours],
            "`.weight` is missing at their ends": names == [name.removesuffix(".weight") for name in want],
            "`.default` is in them: peft's modules are called so, in its files it is left out": any(
                ".default" in name for name in names),
            "small letters stand for A and B": [name.lower() for name in want] == [name.lower() for name in names],
            "only one of the two matrices is saved": len({name[-8] for name in names}) == 1,
            "only one layer is saved: each begins the dictionary anew": len(names) == 2,
        },
    )
    model = lib.inject(tiny_llama(), lib.LoRAConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"]))
    full = [name for name in lib.adapter_state_dict(model) if "lora_" not in name]
    same(sorted(full), ["base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"],
         "the names of layers trained in full (tied to each other)", {
             "layers trained in full (TrainedCopy) are not saved": full == [],
             "the base or the copy is named in them": any(".base" in name or ".tuned" in name for name in full)})


@pytest.mark.task("2.4", points=3)
def test_the_saved_tensors_are_the_learned_ones_and_carry_no_graph(lib, seed):
    model = lib.inject(tiny_llama(), lib.LoRAConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    layer, start = model.model.layers[1].self_attn.q_proj, "base_model.model.model.layers.1.self_attn.q_proj"
    layer.lora_A.data.normal_()
    layer.lora_B.data.normal_()
    saved = gives(lib.adapter_state_dict(model), "adapter_state_dict", dict)
    for part, other in ("AB", "BA"):
        name = f"{start}.lora_{part}.weight"
        expect(name in saved, f"lora_{part} of a layer is saved", name, sorted(saved),
               {"its name is another one: the check before this one says how it is wrong": bool(saved)})
        got = gives(saved[name], f"adapter_state_dict, under {name},", torch.Tensor)
        same(got, getattr(layer, f"lora_{part}").detach(), f"the saved lora_{part}", {
            "A and B are exchanged": getattr(layer, f"lora_{other}").detach(),
            "the scale is multiplied in: peft does that itself, from the config": got.shape[0] == layer.lora_B.shape[0]
            and equal(got, layer.lora_B.detach() * layer.scaling)}, dtype=torch.float32)
        expect(not got.requires_grad, "saved tensors are detached", "requires_grad=False", "requires_grad=True",
               {"the tensor is taken with its graph": True})


@pytest.mark.task("2.4", points=3, values=False, hint="peft's layer holds the base in `base_layer`")
def test_trained_biases_are_saved_where_peft_looks_for_them(lib, seed):
    model = lib.inject(tiny_llama(bias=True), lib.LoRAConfig(r=2, target_modules=["q_proj"], bias="lora_only"))
    saved = gives(lib.adapter_state_dict(model), "adapter_state_dict", dict)
    names = sorted(name for name in saved if str(name).endswith("bias"))
    want = [f"base_model.model.model.layers.{i}.self_attn.q_proj.base_layer.bias" for i in (0, 1)]
    same(
        names,
        want,
        "the names of saved biases",
        {
            "trained biases are not saved": names == [],
            "the bias stands beside the adapter, not one level down": names
            == [n.replace("base_layer.", "") for n in want],
            "it stands in `base`, our name for what peft calls `base_layer`": names
            == [n.replace("base_layer.", "base.") for n in want],
        },
    )
    expect(not any(saved[name].requires_grad for name in want), "saved biases are detached", "requires_grad=False",
           "requires_grad=True", {"the bias is taken with its graph": True})


ROLES = [
    ("self_attn.q_proj", (64, 64), "q"),
    ("self_attn.k_proj", (64, 16), "k"),
    ("self_attn.v_proj", (64, 16), "v"),
    ("self_attn.o_proj", (64, 64), "o"),
    ("self_attn.out_proj", (64, 64), "o"),
    ("self_attn.qkv_proj", (64, 192), "qkv"),
    ("attn.c_attn", (64, 192), "qkv"),
    ("attn.Wqkv", (64, 192), "qkv"),
    ("attention.self.query", (64, 64), "q"),
    ("attention.self.key", (64, 64), "k"),
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
    ("mlp.router", (64, 8), "router"),
    ("mlp.experts.3.w1", (64, 176), "gate"),
    ("mlp.experts.3.w3", (64, 176), "up"),
    ("layer.1.DenseReluDense.wi_0", (64, 256), "gate"),
]


def check_roles(lib, seed, wanted: set[str]) -> None:
    """Layers of known models with those roles, at a block drawn from the seed."""
    mlp = {"up", "down", "gate", "gate_up"}
    for path, shape, role in ROLES:
        if role in wanted:
            got = lib.role_of(f"model.layers.{seed % 40}.{path}", shape)
            same(
                got,
                role,
                f"the role of {path} {shape}",
                {
                    "other words are used: roles are small letters, as in the docstring": str(got).lower() == role,
                    "c_proj is taken for one thing: inside attention it is the output, in the MLP it is down": path
                    == "attn.c_proj",
                    "a router is taken for a gate: its name is `gate` or `router` and nothing more": role == "router"
                    and got == "gate",
                    "up and down are exchanged: up makes the vector longer": {got, role} == {"up", "down"},
                    "fused queries, keys and values are taken for one of them": role == "qkv" and got not in mlp,
                    "gate_up is taken for a gate": role == "gate_up",
                    "a layer of attention is taken for one of the MLP: attention is called `attn` or `attention`": (
                        role not in mlp and got in mlp),
                    "names in full are missed: BERT says query, key, value": role in "qkv" and got == "o",
                    "T5 is missed: its gate is called wi_0": path.endswith("wi_0"),
                    "Mixtral is missed: an expert's gate is called w1": path.endswith("w1"),
                    "a layer of the MLP is taken for one of attention": role in mlp and got in ("q", "k", "v", "o"),
                    "a block is taken for something outside the blocks": got == "other",
                },
            )


@pytest.mark.task("2.5", points=4, values=False)
def test_layers_of_attention_are_recognized(lib, seed):
    check_roles(lib, seed, {"q", "k", "v", "qkv", "o"})


@pytest.mark.task("2.5", points=3, values=False)
def test_layers_of_the_mlp_and_routers_are_recognized(lib, seed):
    check_roles(lib, seed, {"gate", "up", "gate_up", "down", "router"})


@pytest.mark.task("2.5", points=2, values=False)
def test_what_stands_outside_the_blocks_is_other(lib, seed):
    for path in ("lm_head", "score", "model.embed_out", "pooler.dense", "multi_modal_projector.linear_1"):
        same(lib.role_of(path, (64, 200)), "other", f"the role of {path}", {
            "any digit is taken for a block's number: it stands alone between two dots": path.endswith("_1"),
            "layers outside the numbered blocks are not left out": True})


@pytest.mark.task("2.6", points=5, hint="a tensor that two layers share is one tensor: look at its id")
def test_trainable_and_frozen_are_counted_and_tied_weights_once(lib, seed):
    d = 3 + seed % 5
    model = nn.Sequential(nn.Embedding(11, d), nn.Linear(d, 4), nn.Linear(d, 11, bias=False), nn.Linear(d, 4).half())
    model[2].weight = model[0].weight
    model.requires_grad_(False)[1].requires_grad_(True)
    count = gives(lib.count_parameters(model), "count_parameters", fields=COUNTED)
    learns = one = 4 * d + 4
    same([count.trainable, count.frozen], [learns, 11 * d + one], "[trainable, frozen]", {
        "tied weights are counted twice": [learns, 22 * d + one],
        "trainable and frozen are exchanged": [11 * d + one, learns],
        "biases are left out": [4 * d, 15 * d],
        "weights of one shape are taken for one weight": [learns, 11 * d],
        "what learns is counted as frozen too": [learns, 11 * d + one + learns]})
    bytes_ = [count.weight_bytes, count.gradient_bytes, count.optimizer_bytes]
    every = 4 * (learns + 11 * d) + 2 * one
    same(
        bytes_,
        [every, 4 * learns, 8 * learns],
        "[weight, gradient, optimizer] bytes",
        {
            "gradients are counted for frozen weights": [every, every, 2 * every],
            "each weight is counted as four bytes, whatever its type": [every + 2 * one, 4 * learns, 8 * learns],
            "each weight is counted as two bytes": bytes_[1] == 2 * learns,
            "only one moment is counted, and AdamW keeps two": [every, 4 * learns, 4 * learns],
            "more than two moments are counted": bytes_[2] > 8 * learns,
        },
    )
    plan = nn.Sequential(nn.Linear(d, 4, device="meta"), nn.Linear(4, d, device="meta"))
    count = lib.count_parameters(plan)
    same([count.trainable, count.frozen], [9 * d + 4, 0], "[trainable, frozen] on the meta device", {
        "weights are told apart by their address, which all of them share on the meta device": True})


@pytest.mark.task("2.6", points=4, hint="ask the layer for its widths; its tensor holds two codes a byte")
def test_a_4_bit_layer_counts_its_true_number_of_weights(lib, seed):
    d_in, d_out = 4 + 2 * (seed % 5), 6
    count = gives(lib.count_parameters(nn.Sequential(Packed(d_in, d_out))), "count_parameters", fields=COUNTED)
    same([count.trainable, count.frozen], [0, d_in * d_out], "[trainable, frozen] of a 4-bit layer", {
        "bytes are counted for weights: there are two in each": [0, d_in * d_out // 2],
        "the packed tensor is counted beside its weights": [0, d_in * d_out * 3 // 2],
        "weights in 4 bits are counted as trainable": [d_in * d_out, 0]})
    same(count.weight_bytes, d_in * d_out // 2 + 16, "the bytes of a 4-bit layer with four float32 scales", {
        "the scales are forgotten": d_in * d_out // 2, "its weights are counted as float32": 4 * d_in * d_out,
        "a weight is counted as a byte": d_in * d_out + 16})


def learned(lib, values: list[float]):
    """A model whose one update has exactly these singular values, beside an adapter that has learned nothing."""
    r, d = len(values), 12
    layer = lib.LoRALinear(nn.Linear(d, d), r, 2.0 * r)
    layer.scaling = 2.0  # whatever task 2.1 made of alpha: this one is judged alone
    left, right = (torch.linalg.qr(torch.randn(d, r)).Q for _ in range(2))
    layer.lora_B.data, layer.lora_A.data = left * torch.tensor(values) / 6, 3 * right.T.contiguous()
    return nn.ModuleDict({"proj": layer, "still": lib.LoRALinear(nn.Linear(4, 4), 2, 2.0)})


def rank_use(lib, model, path: str, energy: float = 0.9):
    """One entry of what effective_rank gives; every adapted layer must have one."""
    use = gives(lib.effective_rank(model, energy), "effective_rank", dict)
    same(sorted(use), sorted(model), "the paths of what effective_rank gives", {
        "it returns after the first layer: `return` stands inside the loop": len(use) == 1})
    return gives(use[path], f"effective_rank, under {path},", fields=("r", "entropy", "energy", "norm"))


@pytest.mark.task("2.7", points=5, hint="the exponential of the entropy of shares: r equal values give r")
def test_entropy_counts_the_directions_in_use(lib, seed):
    values = (torch.rand(4) + 0.2).sort(descending=True).values
    shares, squares = values / values.sum(), values.square() / values.square().sum()
    use = rank_use(lib, learned(lib, values.tolist()), "proj")
    entropy, norm = -(shares * shares.log()).sum(), values.square().sum().sqrt().item()
    same(use.entropy, entropy.exp().item(), "the effective rank by entropy", {
        "the exponential is not taken": entropy.item(),
        "the shares are those of the squares": (-(squares * squares.log()).sum()).exp().item(),
        "the logarithm to the base 2 is used": (-(shares * shares.log2()).sum()).exp().item(),
        "the sign of the entropy is the wrong way round": (-entropy).exp().item(),
        "the mean of the terms is taken, not their sum": (entropy / 4).exp().item(),
        "norm and entropy are exchanged": norm}, rtol=1e-4)
    same(use.norm, norm, "the norm of the update", {
        "the scaling is left out": norm / 2,
        "the root is not taken": values.square().sum().item(),
        "the values are added, not their squares": values.sum().item(),
        "it is the norm of B alone, not of the whole update": norm / 6}, rtol=1e-4)
    half = rank_use(lib, learned(lib, [1.0, 1.0, 0.0, 0.0]), "proj").entropy
    same(half, 2.0, "the effective rank by entropy where two of four values are zero", {
        "a share of zero gives 0 · log 0, which is no number: torch.special.entr knows that limit": math.isnan(half)},
        rtol=1e-4)
    same(use.r, 4, "the rank of the adapter", {"r is read from B's rows, or A's columns": 12})


@pytest.mark.task("2.7", points=4, values=False)
def test_energy_counts_the_values_that_hold_the_asked_share(lib, seed):
    got = [rank_use(lib, learned(lib, values), "proj", energy).energy for values, energy in (
        ([3.0, 1.0, 0.1, 0.1], 0.9), ([3.0, 1.0, 0.1, 0.1], 0.89), ([1.0, 1.0, 1.0, 1.0], 0.6))]
    same(
        got,
        [2, 1, 3],
        "the number of values that hold 90 %, 89 % (of 3, 1, 0.1, 0.1) and 60 % (of four equal ones)",
        {
            "the shares are those of the values, not of their squares": [3, 3, 3] == got or [2, 2, 3] == got,
            "the last value that is needed is not counted": [1, 0, 2],
            "one too many is counted": [3, 2, 4],
            "the smallest values come first": [4, 4, 3],
            "the argument `energy` is not looked at: it is 0.9 always": [2, 2, 4],
            "a share is given, not a number of values": any(isinstance(number, float) for number in got),
        },
    )
    zero = rank_use(lib, learned(lib, [1.0, 1.0]), "still")
    same([zero.entropy, zero.energy, zero.norm], [0.0, 0, 0.0], "[entropy, energy, norm] of an update of zero", {
        "a sum of zero is divided by": math.isnan(zero.entropy),
        "something is counted as in use where nothing is: ask for zero before anything is divided": zero.norm == 0})
