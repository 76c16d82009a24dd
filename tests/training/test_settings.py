"""Every field of TrainingConfig, given what cannot be meant: an error with its name, what must hold, what would do."""
import math
import re
from ast import literal_eval

import pytest
from pydantic import ValidationError

from finetune_lib.core import ConfigError
from finetune_lib.lora.adapter import LoRAConfig, attach_lora
from finetune_lib.training.loop import train
from finetune_lib.training.schedule import TrainingConfig

CANNOT_BE_MEANT = {
    "learning_rate": (5, 0, -1e-4, math.nan, math.inf, "fast"),
    "lr_scheduler_type": ("cosin", 3),
    "min_lr_rate": (-0.1, 1.0, math.nan),
    "optim": ("adamw", "sgd"),
    "weight_decay": (-0.1, 1.5, math.inf),
    "adam_beta1": (-0.1, 1.0),
    "adam_beta2": (1.0, math.nan),
    "adam_epsilon": (0, -1e-8, math.inf),
    "loraplus_lr_ratio": (0.5, math.inf),
    "max_grad_norm": (-1, math.nan, math.inf),
    "neftune_noise_alpha": (0, -5, math.inf),
    "per_device_train_batch_size": (0, -8, 2.5, "many"),
    "per_device_eval_batch_size": (0, 1.5),
    "gradient_accumulation_steps": (0, -1, 0.5),
    "num_train_epochs": (0, -1, math.inf, math.nan),
    "max_steps": (-2, 1.5),
    "warmup_steps": (-1, math.inf, 2.5),
    "replay_weight": (-0.3, math.inf),
    "seed": (-1, 0.5),
    "group_by_length": ("perhaps",),
    "mixed_precision": ("fp8", "half"),
    "gradient_checkpointing": ("perhaps",),
    "torch_compile": ("perhaps",),
    "use_cpu": ("perhaps",),
    "logging_steps": (0, -10),
    "eval_steps": (0, 2.5),
    "eval_epochs": (0, -0.5, math.inf),
    "eval_on_start": ("perhaps",),
    "save_steps": (0, -1),
    "save_epochs": (0, -1, math.nan),
    "save_best": ("perhaps",),
    "save_total_limit": (0, -1),
    "metric_for_best_model": (3, None),
    "greater_is_better": ("perhaps",),
    "load_best_model_at_end": ("perhaps",),
    "early_stopping_patience": (0, -1),
    "early_stopping_threshold": (-0.1, math.nan),
    "guard": ("perhaps",),
    "max_skipped_steps": (0, -1),
    "max_rollbacks": (-1, 0.5),
}


def test_every_field_has_its_line_in_the_table():
    assert set(CANNOT_BE_MEANT) == set(TrainingConfig.model_fields)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in CANNOT_BE_MEANT.items()
                                             for value in values])
def test_a_value_that_cannot_be_meant_is_refused_with_one_that_would_do(name, value):
    said = refusal(**{name: value})
    assert re.match(rf"{name} must be .+, got .+; ", said)
    proposed = ("did you mean", "good start", "give true or false", "take 2")
    assert any(words in said.partition("; ")[2] for words in proposed)


@pytest.mark.parametrize("name", CANNOT_BE_MEANT)
def test_what_is_proposed_is_accepted(name):
    said = refusal(**{name: CANNOT_BE_MEANT[name][-1]})
    found = re.search(r"(?:; |did you mean )(\S+)(?: is a good start|\?$)", said)
    if found:
        more = {"min_lr_rate": {"lr_scheduler_type": "cosine_with_min_lr"},
                "early_stopping_patience": {"eval_epochs": 0.5}}.get(name, {})
        TrainingConfig(**{name: literal_eval(found[1]), **more})


def refusal(**settings) -> str:
    with pytest.raises(ValidationError) as caught:
        TrainingConfig(**settings)
    return caught.value.errors()[0]["msg"].removeprefix("Value error, ")


@pytest.mark.parametrize(("settings", "words"), [
    (dict(save_best=True), "save_best needs evaluations on the way.*set eval_steps"),
    (dict(load_best_model_at_end=True), "load_best_model_at_end needs evaluations on the way"),
    (dict(per_device_train_batch_size=64, gradient_accumulation_steps=128), "at most 4,096 samples, got 8,192.*=1$"),
    (dict(save_strategy="epoch"), "save_epochs"),
    (dict(eval_strategy="epoch"), "eval_"),
])
def test_what_contradicts_itself_or_has_another_name_is_refused_with_the_way_out(settings, words):
    assert re.search(words, refusal(**settings))


def test_a_learning_rate_of_five_is_asked_back():
    with pytest.raises(ValidationError, match="did you mean 5e-5"):
        TrainingConfig(learning_rate=5)


@pytest.mark.parametrize("backend", ["own", "peft"])
def test_a_rate_is_judged_with_the_adapters_scale(backend, model, samples):
    loud = attach_lora(model(), LoRAConfig(r=2, lora_alpha=128), backend=backend)
    with pytest.raises(ConfigError, match=r"got 0\.01 · 64; take learning_rate=6e-05"):
        train(loud, samples(8), TrainingConfig(learning_rate=1e-2), 0)
    train(loud, samples(8), TrainingConfig(learning_rate=6e-5, max_steps=1), 0)
