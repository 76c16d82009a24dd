"""Targets, counting and advice, with peft's mapping and published numbers as oracle."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from finetune_lib.core import ConfigError
from finetune_lib.lora.adapter import LoRAConfig, adapter_parameters, attach_lora, inject
from finetune_lib.lora.files import linear_layers, quiet_peft
from finetune_lib.lora.targets import (
    advise,
    count_parameters,
    effective_rank,
    find_targets,
    gradient_norms,
    match_targets,
    plot_updates,
    recommend,
    singular_values,
    update_table,
)

SMALL = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
             eos_token_id=2)
LLAMA = {"attention": ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp": ["gate_proj", "up_proj", "down_proj"]}
# model_type: (fields of its config, attention names, MLP names)
ARCHITECTURES = {
    **{kind: (SMALL, *LLAMA.values()) for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")},
    "phi": (SMALL, ["q_proj", "k_proj", "v_proj", "dense"], ["fc1", "fc2"]),
    "phi3": (SMALL, ["o_proj", "qkv_proj"], ["gate_up_proj", "down_proj"]),
    "mixtral": (SMALL | {"num_local_experts": 2}, LLAMA["attention"], None),
    "gpt2": (dict(vocab_size=64, n_embd=32, n_layer=2, n_head=4), ["c_attn", "attn.c_proj"], ["c_fc", "mlp.c_proj"]),
    "gptj": (dict(vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4),
             ["k_proj", "v_proj", "q_proj", "out_proj"], ["fc_in", "fc_out"]),
    "gpt_neox": (SMALL, ["query_key_value", "dense"], ["dense_h_to_4h", "dense_4h_to_h"]),
    "opt": (SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32},
            ["k_proj", "v_proj", "q_proj", "out_proj"], ["fc1", "fc2"]),
    "bloom": (dict(vocab_size=64, hidden_size=32, n_layer=2, n_head=4), ["query_key_value", "dense"],
              ["dense_h_to_4h", "dense_4h_to_h"]),
    "falcon": (dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
               ["query_key_value", "dense"], ["dense_h_to_4h", "dense_4h_to_h"]),
    "t5": (dict(vocab_size=64, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8),
           ["q", "k", "v", "o"], ["wi", "wo"]),
    "bert": (SMALL, ["query", "key", "value", "attention.output.dense"], None),
}


def build(kind):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    maker = {"t5": AutoModelForSeq2SeqLM, "bert": AutoModelForMaskedLM}.get(kind, AutoModelForCausalLM)
    with torch.device("meta"):
        return maker.from_config(AutoConfig.for_model(kind, **ARCHITECTURES[kind][0]))


def paths_of(model, names):
    return [path for path, _ in model.named_modules() if any(path == n or path.endswith("." + n) for n in names)]


# ---- finding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_groups_of_an_architecture(kind):
    model = build(kind)
    _, attention, mlp = ARCHITECTURES[kind]
    assert sorted(find_targets(model, "attention")) == sorted(attention)
    if mlp is not None:
        assert sorted(find_targets(model, "mlp")) == sorted(mlp)
    for choice in ("attention", "all-linear", None):  # the names mean exactly the layers that were chosen
        assert paths_of(model, find_targets(model, choice)) == match_targets(model, choice)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_all_linear_is_what_peft_calls_all_linear(kind):
    with quiet_peft():
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer

        model = build(kind)
        ours = set(match_targets(model, "all-linear"))
        theirs = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    found = {name.removeprefix("base_model.model.") for name, module in theirs.named_modules()
             if isinstance(module, LoraLayer)}
    if kind == "mixtral":  # peft 0.21 also adapts its experts and router, which are bare parameters and no layers
        found = {name for name in found if "mlp." not in name}
    assert ours == found


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_default_is_peft_mapping_where_there_is_one(kind):
    with quiet_peft():
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as MAPPING

    if kind not in MAPPING:
        pytest.skip(f"peft has no mapping for {kind}")
    model = build(kind)
    theirs = [path for path in paths_of(model, MAPPING[kind]) if path in linear_layers(model)]
    if kind == "phi":  # peft adds the MLP for this one family; we keep the paper's choice for all
        theirs = [path for path in theirs if "fc" not in path]
    assert match_targets(model, None) == theirs


def test_names_regex_and_groups_reach_the_same_layers():
    model = build("llama")
    assert match_targets(model, ["q_proj", "k_proj", "v_proj", "o_proj"]) == match_targets(model, "attention")
    assert match_targets(model, r".*self_attn\..*") == match_targets(model, "attention")
    assert match_targets(model, "q_proj") == match_targets(model, ["q_proj"])
    assert find_targets(model, r"model\.layers\.1\.mlp\..*") == ["1.mlp.gate_proj", "1.mlp.up_proj", "1.mlp.down_proj"]


def test_a_greedy_pattern_spares_head_embedding_and_norms():
    model = build("llama")
    assert match_targets(model, ".*") == match_targets(model, "all-linear")


@pytest.mark.parametrize("names, message", [
    (["q_porj"], "did you mean 'q_proj'"), (["embed_tokens"], "Embedding"), (["norm"], "LlamaRMSNorm"),
    (["lm_head"], "modules_to_save"), ("attentoin", "did you mean 'attention'"), ("q_[", "regular expression"),
])
def test_a_wrong_name_is_refused_with_near_names(names, message):
    with pytest.raises(ConfigError, match=message):
        match_targets(build("llama"), names)


# ---- counting --------------------------------------------------------------------------------------------------


def llama_7b():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008,
                                            num_hidden_layers=32, num_attention_heads=32, tie_word_embeddings=False))


@pytest.mark.parametrize("targets, trainable, percent", [
    (["q_proj", "v_proj"], 8_388_608, 0.12), ("all-linear", 39_976_960, 0.59)])
def test_published_counts_on_seven_billion(targets, trainable, percent):
    count = count_parameters(inject(llama_7b(), LoRAConfig(r=16, target_modules=targets)))
    assert count.trainable == trainable and round(count.percent, 2) == percent
    assert count.frozen == 6_738_415_616
    assert count.gradient_bytes == 4 * trainable and count.optimizer_bytes == 8 * trainable


def test_tied_weights_count_once(tiny):
    tied, untied = count_parameters(tiny(tied=True)), count_parameters(tiny(tied=False))
    assert untied.total - tied.total == 96 * 32
    assert tied.total == sum(weight.numel() for weight in tiny(tied=True).parameters())


def test_the_count_agrees_with_peft(tiny):
    model = attach_lora(tiny(), LoRAConfig(r=4), backend="peft")
    trainable, total = model.get_nb_trainable_parameters()
    count = count_parameters(model)
    assert (count.trainable, count.total) == (trainable, total)


def test_a_4bit_layer_counts_the_weights_that_it_stands_for():
    with quiet_peft():
        import bitsandbytes as bnb
    plain = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64, bias=False))
    packed = nn.Sequential(*(bnb.nn.Linear4bit(*shape, bias, compress_statistics=False, quant_type="nf4")
                             for *shape, bias in [(64, 128, True), (128, 64, False)]))
    packed.load_state_dict(plain.state_dict())
    packed = packed.to("cpu")
    count = count_parameters(packed)
    assert count.total == count_parameters(plain).total == 64 * 128 * 2 + 128
    # 4 bits a weight, a float32 scale for each block of 64, the codebook's 16 numbers, and the float bias
    weights = 64 * 128 * 2
    assert count.weight_bytes == weights // 2 + 4 * weights // 64 + 2 * 16 * 4 + 128 * 4


def test_a_packed_layer_of_buffers_counts_too():
    class Packed(nn.Module):
        in_features, out_features = 8, 4

        def __init__(self):
            super().__init__()
            self.register_buffer("codes", torch.zeros(16, dtype=torch.uint8))

    count = count_parameters(nn.Sequential(Packed()))
    assert (count.total, count.weight_bytes, count.trainable) == (32, 16, 0)


# ---- what was learned ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(d_in=st.integers(1, 12), d_out=st.integers(1, 12), r=st.integers(1, 6), scale=st.floats(0.1, 4),
       seed=st.integers(0, 2**31))
def test_singular_values_without_forming_the_matrix(d_in, d_out, r, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    A, B = torch.randn(r, d_in, generator=generator), torch.randn(d_out, r, generator=generator)
    rank = min(r, d_in, d_out)
    expected = torch.linalg.svdvals(scale * B.double() @ A.double())[:rank]
    torch.testing.assert_close(singular_values(A, B, scale)[:rank], expected, rtol=1e-6, atol=1e-9)


def with_update(model, directions):
    """An adapter of rank 4 whose every update has `directions` equally strong directions."""
    attach_lora(model, LoRAConfig(r=4, lora_alpha=4, target_modules=["q_proj"]))
    for layer in model.lora_adapter.layers.values():
        layer.lora_A.data = torch.eye(4, layer.lora_A.shape[1])
        layer.lora_B.data = torch.zeros_like(layer.lora_B)
        layer.lora_B.data[:4] = torch.diag(torch.tensor([1.0] * directions + [0.0] * (4 - directions)))
    return model


@pytest.mark.parametrize("directions", [1, 2, 3, 4])
def test_effective_rank_counts_equal_directions(tiny, directions):
    use = effective_rank(with_update(tiny(), directions))
    for item in use.values():
        assert item.entropy == pytest.approx(directions) and item.energy == directions
        assert item.norm == pytest.approx(math.sqrt(directions))


def test_an_untrained_adapter_uses_no_rank(tiny):
    for use in effective_rank(attach_lora(tiny())).values():
        assert (use.entropy, use.energy, use.norm) == (0.0, 0, 0.0)


def test_both_back_ends_report_the_same_use(tiny, tmp_path):
    from finetune_lib.lora.adapter import load_adapter, save_adapter

    own = with_update(tiny(), 2)
    save_adapter(own, tmp_path)
    assert effective_rank(load_adapter(tiny(), tmp_path, backend="peft")) == effective_rank(own)


def test_advice_names_idle_modules_and_unused_rank(tiny):
    model = with_update(tiny(layers=4), 1)
    assert "halve r" in " ".join(advise(effective_rank(model)))
    list(model.lora_adapter.layers.values())[2].lora_B.data *= 1e-3
    assert "idle" in advise(effective_rank(model))[0] and "layers.2" in advise(effective_rank(model))[0]
    assert "twice" in " ".join(advise(effective_rank(with_update(tiny(), 4))))


def test_gradient_norms_and_the_table_of_places(tiny, ids):
    model = attach_lora(tiny().train(), LoRAConfig(r=4))
    with pytest.raises(ConfigError, match="after loss.backward"):
        gradient_norms(model)
    model(input_ids=ids, labels=ids).loss.backward()
    norms = gradient_norms(model)
    rows, columns, table = update_table(norms)
    assert len(rows) == 7 and columns == [0, 1] and table.shape == (7, 2) and not table.isnan().any()
    assert table[rows.index("v_proj"), 1] == pytest.approx(norms["model.layers.1.self_attn.v_proj"], rel=1e-6)
    total = torch.stack([weight.grad.norm() for weight in adapter_parameters(model)]).norm()
    assert math.sqrt(sum(norm**2 for norm in norms.values())) == pytest.approx(total.item(), rel=1e-5)
    assert plot_updates(norms).get_title()


# ---- opening bid -----------------------------------------------------------------------------------------------


def answers(count, length=20, vocabulary=1000):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (count, length), generator=generator).tolist()


def test_more_varied_answers_and_harder_tasks_get_more_rank():
    model = llama_7b()
    few, many = recommend(model, answers(50)), recommend(model, answers(4000, vocabulary=30_000))
    same = recommend(model, [[1, 2, 3]] * 20_000)
    assert few.config.r < many.config.r and same.config.r == few.config.r
    by_task = [recommend(model, answers(50), task=task).config.r for task in ("style", "instructions", "knowledge")]
    assert by_task == sorted(by_task) and len(set(by_task)) == 3


@settings(deadline=None, max_examples=20)
@given(budget=st.integers(20_000, 3_000_000))
def test_a_bid_fits_its_budget_and_counts_right(budget):
    model = build("llama")
    try:
        bid = recommend(model, answers(300), memory_budget=budget)
    except ConfigError as error:
        assert "not even rank 1" in str(error)
        return
    assert 16 * bid.trainable <= budget
    assert count_parameters(inject(model, bid.config)).trainable == bid.trainable


def test_bad_bids_are_refused(tiny):
    with pytest.raises(ConfigError, match="did you mean 'style'"):
        recommend(tiny(), answers(3), task="styles")
    with pytest.raises(ConfigError, match="got none"):
        recommend(tiny(), [])
