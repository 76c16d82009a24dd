"""Every field of TrainingConfig, given what cannot be meant: an error that names the field and what must hold."""
import math

import pytest
from pydantic import ValidationError

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
    "eval_on_start": ("perhaps",),
    "save_steps": (0, -1),
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
def test_a_value_that_cannot_be_meant_is_refused_by_name(name, value):
    with pytest.raises((ValidationError, ValueError)) as caught:
        TrainingConfig(**{name: value})
    said = str(caught.value)
    assert name in said and any(word in said for word in ("should be", "must be", "did you mean", "greater", "less"))


def test_a_learning_rate_of_five_is_asked_back():
    with pytest.raises(ValidationError, match="did you mean 5e-5"):
        TrainingConfig(learning_rate=5)
