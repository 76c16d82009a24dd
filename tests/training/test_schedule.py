"""The plan of a run: rates, groups, windows, settings."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_lib.core import ConfigError, DataError
from finetune_lib.training.schedule import (
    SCHEDULES,
    TrainingConfig,
    Windows,
    check_samples,
    due,
    learning_rate_at,
    make_optimizer,
    make_scheduler,
    parameter_groups,
    warmup_count,
)


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(SCHEDULES), total=st.integers(1, 60), share=st.floats(0, 0.9), floor=st.floats(0, 0.9))
def test_the_rate_equals_that_of_transformers_at_every_step(kind, total, share, floor):
    from transformers import get_scheduler

    warmup = 0 if kind == "constant" else int(total * share)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    more = {"scheduler_specific_kwargs": {"min_lr_rate": floor}} if kind == "cosine_with_min_lr" else {}
    theirs = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=total, **more)
    for step in range(total + 1):
        ours = learning_rate_at(step, total, warmup, kind, floor, peak=0.3)
        assert math.isclose(ours, theirs.get_last_lr()[0], abs_tol=1e-12), (kind, step)
        optimizer.step()
        theirs.step()


def test_the_scheduler_follows_the_rate():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = make_scheduler(optimizer, total=20, warmup=4, kind="cosine")
    for step in range(20):
        assert scheduler.get_last_lr() == [2.0 * learning_rate_at(step, 20, 4, "cosine")]
        optimizer.step()
        scheduler.step()


def test_the_rate_stays_at_its_end_after_the_last_step():
    assert learning_rate_at(25, 20, 4, "cosine") == pytest.approx(0, abs=1e-15)
    assert learning_rate_at(25, 20, 4, "cosine_with_min_lr", 0.1) == pytest.approx(0.1)


@pytest.mark.parametrize("steps, total, expected",
                         [(0, 100, 0), (0.05, 100, 5), (0.051, 100, 6), (1, 100, 1), (30, 100, 30)])
def test_a_share_of_warm_up_is_counted_as_in_training_arguments(steps, total, expected):
    from transformers import TrainingArguments

    assert warmup_count(steps, total) == expected
    assert TrainingArguments(output_dir="unused", warmup_steps=steps, use_cpu=True).get_warmup_steps(total) == expected


def test_norms_and_biases_do_not_decay_and_frozen_weights_are_left_out(model):
    tiny = model(attention_bias=True)
    tiny.model.embed_tokens.weight.requires_grad_(False)
    groups = parameter_groups(tiny, 1e-3, weight_decay=0.1)
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert "model.embed_tokens.weight" not in decay
    assert decay["model.layers.0.self_attn.q_proj.weight"] == 0.1
    assert {value for name, value in decay.items() if "norm" in name or name.endswith("bias")} == {0.0}
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in tiny.parameters())


def test_the_same_weights_decay_as_in_the_trainer(model):
    from transformers import Trainer, TrainingArguments

    tiny = model(attention_bias=True)
    trainer = Trainer(tiny, TrainingArguments(output_dir="unused", use_cpu=True, weight_decay=0.1))
    ours = {name for group in parameter_groups(tiny, 1e-3, 0.1) if group["weight_decay"] for name in group["names"]}
    assert ours == set(trainer.get_decay_parameter_names(tiny)) & dict(tiny.named_parameters()).keys()


def test_lora_plus_gives_b_the_higher_rate(model):
    from finetune_lib.lora.adapter import LoRAConfig, attach_lora

    for backend in ("own", "peft"):
        tiny = attach_lora(model(), LoRAConfig(r=2), backend=backend)
        groups = parameter_groups(tiny, 1e-3, loraplus_lr_ratio=16)
        rates = {name: group["lr"] for group in groups for name in group["names"]}
        assert {rate for name, rate in rates.items() if "lora_A" in name} == {1e-3}
        assert {rate for name, rate in rates.items() if "lora_B" in name} == {16e-3}


def test_a_model_without_anything_to_train_is_refused(model):
    with pytest.raises(ConfigError, match="attach an adapter first"):
        parameter_groups(model().requires_grad_(False), 1e-3)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit"])
def test_every_optimizer_keeps_the_peak_rate_of_its_groups(model, optim):
    optimizer = make_optimizer(parameter_groups(model(), 1e-3, 0.1), optim)
    assert {group["initial_lr"] for group in optimizer.param_groups} == {1e-3}


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 40), size=st.integers(1, 8), accumulation=st.integers(1, 4), seed=st.integers(0, 9))
def test_an_epoch_shows_every_sample_once_and_is_a_function_of_the_step(samples, count, size, accumulation, seed):
    data = samples(count, seed)
    windows = Windows(data, size, accumulation, seed)
    for epoch in (1, 0, 2):
        steps = range(epoch * windows.per_epoch, (epoch + 1) * windows.per_epoch)
        seen = [sample.id for step in steps for batch in windows.at(step) for sample in batch]
        assert sorted(seen) == sorted(sample.id for sample in data)
    assert windows.at(0) == Windows(data, size, accumulation, seed).at(0)
    assert windows.per_epoch == math.ceil(math.ceil(count / size) / accumulation)


@settings(deadline=None)
@given(per_epoch=st.integers(1, 40), parts=st.integers(1, 8), epochs=st.integers(1, 3))
def test_parts_of_an_epoch_come_as_often_as_they_say_and_the_last_is_its_end(per_epoch, parts, epochs):
    found = [step for step in range(1, epochs * per_epoch + 1) if due(step, per_epoch, None, 1 / parts)]
    assert len(found) == epochs * min(parts, per_epoch)
    assert set(range(per_epoch, epochs * per_epoch + 1, per_epoch)) <= set(found)


def test_steps_and_epochs_together_are_due_at_either():
    assert [step for step in range(1, 13) if due(step, 5, 4, 1)] == [4, 5, 8, 10, 12]
    assert not any(due(step, 5, None, None) for step in range(1, 13))


@pytest.mark.parametrize("settings, message", [
    ({"learning_rate": 5}, "did you mean 5e-5?"),
    ({"learning_rate": 0}, "2e-4 is a good start"),
    ({"learning_rate": float("nan")}, "2e-4 is a good start"),
    ({"lr": 1e-4}, "did you mean learning_rate?"),
    ({"learning_rat": 1e-4}, "did you mean 'learning_rate'?"),
    ({"warmup_ratio": 0.1}, "warmup_steps=0.05"),
    ({"lr_scheduler_type": "cosin"}, "did you mean 'cosine'?"),
    ({"warmup_steps": 20, "max_steps": 10}, "must be below max_steps=10"),
    ({"warmup_steps": 2.5}, "take 2"),
    ({"warmup_steps": 3, "lr_scheduler_type": "constant"}, "constant_with_warmup"),
    ({"min_lr_rate": 0.1}, "cosine_with_min_lr"),
    ({"early_stopping_patience": 2}, "set eval_steps"),
    ({"eval_steps": 20, "max_steps": 10}, "at most max_steps=10"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
    ({"mixed_precision": "fp8"}, "mixed_precision"),
    ({"weight_decay": -1}, "weight_decay"),
    ({"max_steps": -2}, "max_steps"),
])
def test_a_setting_that_cannot_be_meant_is_refused_with_the_way_out(settings, message):
    with pytest.raises(ValueError) as error:
        TrainingConfig(**settings)
    assert message in str(error.value)


def test_settings_are_frozen_and_survive_json():
    config = TrainingConfig(learning_rate=3e-3, warmup_steps=0.1, eval_steps=5, early_stopping_patience=2)
    assert TrainingConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValueError):
        config.learning_rate = 1.0


def test_the_names_are_those_of_training_arguments_but_for_the_known_few():
    from dataclasses import fields

    from transformers import TrainingArguments

    own = set(TrainingConfig.model_fields) - {field.name for field in fields(TrainingArguments)}
    assert own == {"early_stopping_patience", "early_stopping_threshold", "eval_epochs", "group_by_length", "guard",
                   "loraplus_lr_ratio", "max_rollbacks", "max_skipped_steps", "min_lr_rate", "mixed_precision",
                   "replay_weight", "save_best", "save_epochs"}


def test_samples_that_would_fail_on_the_way_are_refused_at_the_door(model, samples):
    from dataclasses import replace

    tiny, good = model(), samples(2)
    check_samples(tiny, good)
    silent = replace(good[0], labels=[-100] * len(good[0].labels))
    wide = replace(good[0], input_ids=[300] + good[0].input_ids[1:])
    long = samples(1, shortest=200, longest=201)[0]
    cases = [([], "at least one sample"), ([silent], "target token"), ([wide], "below 256"), ([long], "128")]
    for bad, message in cases:
        with pytest.raises(DataError, match=message):
            check_samples(tiny, bad)
