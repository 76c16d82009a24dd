"""One step: loss, window, clipping, evaluation, and equality with transformers' Trainer."""
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_lib.data.batches import collate
from finetune_lib.training.schedule import TrainingConfig, count_targets, make_optimizer, parameter_groups
from finetune_lib.training.step import (
    ENDS_WITH_MLP,
    Decision,
    accumulate,
    checkpoint_activations,
    collate_on,
    evaluating,
    evaluation_loss,
    last_mlp,
    needed_mask,
    neftune,
    only_rows,
    prepared,
    random_state,
    set_random_state,
    target_loss,
    train_step,
)


def targets_of(samples):
    return sum(count_targets(sample.labels) for sample in samples)


def gradients(model, parts, divide):
    """Gradients of a window, each micro-batch's loss divided as asked."""
    model.zero_grad()
    for part in parts:
        (target_loss(model, collate(part, 0)) / divide(part)).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@settings(deadline=None, max_examples=20)
@given(count=st.integers(2, 20), size=st.integers(1, 7), seed=st.integers(0, 99))
def test_a_window_equals_the_large_batch_whatever_its_parts(model, samples, count, size, seed):
    tiny, data = model(seed), samples(count, seed)
    parts = [data[start:start + size] for start in range(0, count, size)]
    whole = gradients(tiny, [data], targets_of)
    tiny.zero_grad()
    loss = accumulate(tiny, [collate(part, 0) for part in parts], targets_of(data))
    window = torch.cat([parameter.grad.flatten() for parameter in tiny.parameters()])
    assert (window - whole).abs().max() <= 1e-6
    assert loss.item() == pytest.approx(target_loss(tiny, collate(data, 0)).item() / targets_of(data), abs=1e-5)


SMALL = {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
WITH_MLP = {"intermediate_size": 48, "num_key_value_heads": 2}
FAMILIES = {
    "llama": WITH_MLP,
    "mistral": {**WITH_MLP, "sliding_window": 8},
    "qwen2": WITH_MLP,
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_the_same_without_the_mask_of_right_ends(family, attention, samples, monkeypatch):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SMALL, **FAMILIES[family])
    tiny, data = AutoModelForCausalLM.from_config(config, attn_implementation=attention), samples(6)
    assert needed_mask(collate(data, 0)["attention_mask"]) is None
    without = gradients(tiny, [data], targets_of)
    monkeypatch.setattr("finetune_lib.training.step.needed_mask", lambda mask: mask)
    assert (gradients(tiny, [data], targets_of) - without).abs().max() <= 1e-6


ENDING_WITH_MLP = {  # by the name of the layer's class
    "Gemma": ("gemma", {"head_dim": 8}), "Gemma2": ("gemma2", {"head_dim": 8}),
    "Gemma3": ("gemma3_text", {"head_dim": 8}), "Granite": ("granite", {"residual_multiplier": 0.5}),
    "Llama": ("llama", {}), "Mistral": ("mistral", {}), "Olmo2": ("olmo2", {}),
    "Phi3": ("phi3", {"resid_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}),
    "Qwen2": ("qwen2", {}), "Qwen3": ("qwen3", {"head_dim": 8}), "SmolLM3": ("smollm3", {}),
}


def seen_by(module, action):
    """What `action` gives, and the shapes of what the module was called with in it."""
    shapes = []
    hook = module.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    try:
        return action(), shapes
    finally:
        hook.remove()


@pytest.mark.parametrize("name", ENDS_WITH_MLP)
def test_the_last_mlp_at_targets_alone_gives_the_same_loss_and_gradients(name, samples):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    family, more = ENDING_WITH_MLP[name.removesuffix("DecoderLayer")]
    tiny = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL, **WITH_MLP, **more))
    data = samples(6)
    mlp = tiny.get_decoder().layers[-1].mlp
    alone, seen = seen_by(mlp.down_proj, lambda: gradients(tiny, [data], targets_of))
    assert last_mlp(tiny) is mlp
    assert seen == [(targets_of(data), 48)]
    tiny.zero_grad()
    batch = collate(data, 0)
    theirs = tiny(**batch, num_items_in_batch=torch.tensor(targets_of(data))).loss
    assert target_loss(tiny, batch).item() / targets_of(data) == pytest.approx(theirs.item(), rel=1e-6)
    theirs.backward()
    whole = torch.cat([parameter.grad.flatten() for parameter in tiny.parameters()])
    assert (alone - whole).abs().max() <= 1e-6
    assert not (mlp._forward_hooks or mlp._forward_pre_hooks)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_model_that_may_end_otherwise_computes_its_last_layer_whole(family, samples):
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL, **FAMILIES[family]))
    assert last_mlp(tiny) is None
    ids = collate(samples(2), 0)["input_ids"]
    whole = tiny(ids).logits
    with only_rows(tiny, torch.tensor([3, 5])):
        assert torch.allclose(tiny(ids).logits, whole.flatten(0, 1)[[3, 5]], atol=1e-6)


def test_a_last_layer_that_is_computed_twice_is_computed_whole(model, samples):
    tiny, data = model(), samples(4)
    without = gradients(tiny, [data], targets_of)
    checkpoint_activations(tiny.train(), True)
    assert last_mlp(tiny) is None
    assert (gradients(tiny, [data], targets_of) - without).abs().max() <= 1e-6


@pytest.mark.parametrize("backend", ["own", "quick", "peft"])
def test_without_a_target_the_loss_is_nothing_and_so_are_the_gradients(model, samples, backend):
    from finetune_lib.lora.adapter import LoRAConfig, attach_lora
    from finetune_lib.lora.quick import quicken

    tiny = attach_lora(model(), LoRAConfig(r=2, lora_dropout=0.0), backend="peft" if backend == "peft" else "own")
    tiny = quicken(tiny) if backend == "quick" else tiny
    batch = collate(samples(3), 0)
    loss = target_loss(tiny, {**batch, "labels": torch.full_like(batch["labels"], -100)})
    loss.backward()
    found = [parameter.grad for parameter in tiny.parameters() if parameter.requires_grad]
    assert loss.item() == 0
    assert found and all(gradient is not None and not gradient.any() for gradient in found)


@pytest.mark.parametrize("mask", [
    torch.tensor([[0, 1, 1], [1, 1, 1]]),  # padding on the left
    torch.tensor([[1, 0, 1]]),             # a hole
    torch.zeros(2, 1, 3, 3),               # blocks of packed samples
    torch.tensor([[False, True]]),
])
def test_any_other_mask_is_needed(mask):
    assert needed_mask(mask) is mask


def test_the_mean_of_means_is_another_gradient(model, samples):
    tiny, data = model(), samples(12)
    data.sort(key=lambda sample: count_targets(sample.labels))
    parts = [data[:4], data[4:8], data[8:]]
    whole = gradients(tiny, [data], targets_of)
    wrong = gradients(tiny, parts, lambda part: targets_of(part) * len(parts))
    assert (wrong - whole).abs().max() > 1e-3  # a tolerance of 1e-6 tells them apart


def test_the_loss_is_that_of_transformers(model, samples):
    tiny, data = model(), samples(6)
    batch = collate(data, 0)
    theirs = tiny(**batch, num_items_in_batch=torch.tensor(targets_of(data))).loss
    assert target_loss(tiny, batch).item() / targets_of(data) == pytest.approx(theirs.item(), abs=1e-6)


def test_padding_and_prompt_have_no_part_in_the_loss(model, samples):
    tiny, data = model(), samples(3)
    alone = sum(target_loss(tiny, collate([sample], 0)).item() for sample in data)
    assert target_loss(tiny, collate(data, 0)).item() == pytest.approx(alone, rel=1e-5)
    batch = collate(data, 0)
    batch["labels"][0] = -100
    rest = sum(target_loss(tiny, collate([sample], 0)).item() for sample in data[1:])
    assert target_loss(tiny, batch).item() == pytest.approx(rest, rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_batch_is_as_wide_as_its_device_likes(samples, count, seed):
    data = samples(count, seed)
    longest = max(len(sample.input_ids) for sample in data)
    narrow = collate_on(torch.device("cpu"), data, 0)
    assert {tensor.shape for tensor in narrow.values()} == {(count, longest)}
    tiles = collate_on(torch.device("meta"), data, 0)  # any device but a CPU; this one needs no hardware
    assert {tensor.shape for tensor in tiles.values()} == {(count, -(-longest // 8) * 8)}
    assert {tensor.device.type for tensor in tiles.values()} == {"meta"}
    wide = collate(data, 0)
    assert all(torch.equal(narrow[name], wide[name][:, :longest]) for name in wide)


def test_the_norm_is_recorded_before_clipping_and_the_gradient_is_clipped(model, samples):
    tiny, data = model(), samples(4)
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.0)
    free = train_step(tiny, optimizer, [collate(data, 0)], targets_of(data), max_grad_norm=0)
    clipped = train_step(tiny, optimizer, [collate(data, 0)], targets_of(data), max_grad_norm=0.01)
    assert clipped.grad_norm == pytest.approx(free.grad_norm, rel=1e-5) and free.grad_norm > 0.1
    left = torch.cat([parameter.grad.flatten() for parameter in tiny.parameters()]).norm().item()
    assert left == pytest.approx(0.01, rel=1e-3)


def test_the_whole_window_is_clipped_not_each_part(model, samples):
    tiny, data = model(), samples(8)
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.0)
    parts = [collate(data[:2], 0), collate(data[2:], 0)]
    train_step(tiny, optimizer, parts, targets_of(data), max_grad_norm=0.01)
    ours = torch.cat([parameter.grad.flatten() for parameter in tiny.parameters()])
    whole = gradients(tiny, [data], targets_of)
    assert torch.nn.functional.cosine_similarity(ours, whole, dim=0) > 0.9999


def test_replay_adds_its_weighted_mean_loss(model, samples):
    tiny, data, text = model(), samples(4), samples(3, 1, all_targets=True)
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.0)
    replay = (collate(text, 0), targets_of(text))
    outcome = train_step(tiny, optimizer, [collate(data, 0)], targets_of(data), 0, replay, 0.3)
    ours = torch.cat([parameter.grad.flatten() for parameter in tiny.parameters()])
    expected = gradients(tiny, [data], targets_of) + 0.3 * gradients(tiny, [text], targets_of)
    assert (ours - expected).abs().max() <= 1e-6
    assert outcome.replay_loss == pytest.approx(target_loss(tiny, collate(text, 0)).item() / targets_of(text), abs=1e-5)
    assert outcome.loss == pytest.approx(target_loss(tiny, collate(data, 0)).item() / targets_of(data), abs=1e-5)


def test_a_step_that_is_judged_bad_changes_nothing(model, samples, weights_of, equal):
    tiny, data = model(), samples(4)
    optimizer, before = make_optimizer(parameter_groups(tiny, 1e-2)), weights_of(tiny)
    train_step(tiny, optimizer, [collate(data, 0)], targets_of(data), judge=lambda loss, norm: Decision("skip"))
    assert equal(weights_of(tiny), before) and not optimizer.state
    train_step(tiny, optimizer, [collate(data, 0)], targets_of(data), judge=lambda loss, norm: Decision("step"))
    assert not equal(weights_of(tiny), before)


def test_thirty_steps_equal_those_of_the_trainer(model, samples, tmp_path):
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainingArguments

    from finetune_lib.training.schedule import learning_rate_at

    class InOrder(Trainer):
        def _get_train_sampler(self, *_):
            return SequentialSampler(self.train_dataset)

    # 58 samples in micro-batches of 2, two to a window: the last window of each epoch is short
    data, steps, theirs, ours = samples(58), 30, model(), model()
    rows = [{"input_ids": s.input_ids, "attention_mask": s.attention_mask, "labels": s.labels, "id": s} for s in data]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        learning_rate=3e-3, lr_scheduler_type="cosine", warmup_steps=4, weight_decay=0.05, max_grad_norm=1.0,
        logging_steps=1, save_strategy="no", use_cpu=True, report_to="none", disable_tqdm=True,
        remove_unused_columns=False)
    trainer = InOrder(theirs, arguments, train_dataset=rows,
                      data_collator=lambda part: collate([row["id"] for row in part], 0))
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]

    optimizer = make_optimizer(parameter_groups(ours, 3e-3, 0.05))
    batches = [data[start:start + 2] for start in range(0, 58, 2)]
    windows = [batches[start:start + 2] for start in range(0, 29, 2)]
    ours.train()
    for step in range(steps):
        window = windows[step % len(windows)]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, 4, "cosine", peak=3e-3)
        used = [sample for part in window for sample in part]
        outcome = train_step(ours, optimizer, [collate(part, 0) for part in window], targets_of(used))
        assert outcome.loss == pytest.approx(log[step]["loss"], abs=1e-5), step  # their log rounds
        assert outcome.grad_norm == pytest.approx(log[step]["grad_norm"], rel=1e-4)
    difference = max((a - b).abs().max().item() for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert difference <= 1e-6


def test_evaluation_leaves_modes_and_generators_as_they_were(model, samples):
    tiny = model(dropout=0.5)
    tiny.train()
    tiny.model.layers[0].eval()
    modes, before = [module.training for module in tiny.modules()], torch.get_rng_state()
    with evaluating(tiny):
        assert not any(module.training for module in tiny.modules()) and not torch.is_grad_enabled()
        torch.rand(3), random.random()
    assert [module.training for module in tiny.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before) and torch.is_grad_enabled()


def test_modes_come_back_when_evaluation_fails(model):
    tiny = model()
    tiny.train()
    with pytest.raises(ZeroDivisionError), evaluating(tiny):
        1 / 0  # noqa: B018
    assert tiny.training


def test_the_evaluation_loss_does_not_depend_on_the_batch_size(model, samples):
    tiny, data = model(dropout=0.3), samples(23)
    tiny.train()
    losses = [evaluation_loss(tiny, data, 0, size) for size in (1, 4, 23)]
    assert max(losses) - min(losses) < 1e-5
    assert losses[0] == evaluation_loss(tiny, data, 0, 1)  # no dropout


def test_generators_go_through_json_and_back():
    import json

    import numpy as np

    state = json.loads(json.dumps(random_state()))
    first = (random.random(), np.random.rand(), torch.rand(2).tolist())
    set_random_state(state)
    assert (random.random(), np.random.rand(), torch.rand(2).tolist()) == first


def test_neftune_noise_is_bounded_and_off_in_evaluation():
    embedding = torch.nn.Embedding(10, 16)
    hook, ids = neftune(5.0), torch.zeros(1, 8, dtype=torch.long)
    plain = embedding(ids)
    noise = hook(embedding, (ids,), plain) - plain
    assert 0 < noise.abs().max() <= 5 / math.sqrt(8 * 16) + 1e-6
    embedding.eval()
    assert torch.equal(hook(embedding, (ids,), plain), plain)


@pytest.mark.parametrize("settings", [{}, {"mixed_precision": "bf16"}, {"neftune_noise_alpha": 5.0},
                                      {"gradient_checkpointing": True}], ids=str)
def test_a_model_comes_out_of_training_as_it_went_in(model, samples, settings):
    tiny, batch = model(), collate(samples(2), 0)
    optimizer = make_optimizer(parameter_groups(tiny, 1e-3))
    before, hooks = tiny(**batch).logits, len(tiny.get_input_embeddings()._forward_hooks)
    for _ in range(2):  # a second training must be wrapped anew
        with prepared(tiny, optimizer, TrainingConfig(**settings)) as (wrapped, _, accelerator):
            assert wrapped.training and accelerator.mixed_precision == settings.get("mixed_precision", "no")
            inside = wrapped(**batch).logits
            assert torch.equal(inside, before) == (not settings or "gradient_checkpointing" in settings)
    assert not tiny.training and torch.equal(tiny(**batch).logits, before)
    assert "forward" not in vars(tiny)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in tiny.modules())
    assert len(tiny.get_input_embeddings()._forward_hooks) == hooks


@pytest.mark.parametrize("backend", ["own", "peft"])
def test_checkpointing_gives_frozen_models_the_same_gradients(model, samples, backend):
    from finetune_lib.lora.adapter import LoRAConfig, attach_lora

    batch, found = collate(samples(4), 0), []
    for checkpointing in (False, True):
        tiny = attach_lora(model(), LoRAConfig(r=2, lora_dropout=0.0, init_lora_weights=False), backend=backend)
        torch.manual_seed(3)
        for parameter in tiny.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        optimizer = make_optimizer(parameter_groups(tiny, 1e-3))
        config = TrainingConfig(gradient_checkpointing=checkpointing)
        with prepared(tiny, optimizer, config) as (wrapped, _, accelerator):
            target_loss(wrapped, batch).backward()
            found.append([parameter.grad.clone() for parameter in tiny.parameters() if parameter.requires_grad])
    assert all(gradient.abs().max() > 0 for gradient in found[1])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))
