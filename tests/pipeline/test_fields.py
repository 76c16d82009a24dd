"""Every field of the configuration: a change of it runs exactly the stages that depend on it."""
import shutil

import pytest

from finetune_lib.pipeline.config import FinetuneConfig, flat, load_config
from finetune_lib.pipeline.manifest import STAGES, plan

ALL = list(STAGES)
TRAIN = ["train", "evaluate", "merge", "export"]
ASKING = ["baseline", "evaluate", "export"]
NOTHING: list[str] = []
MEASURED = ["baseline", *TRAIN]
FIELDS = {  # field → (another value, the stages that run)
    "method": ("qlora", TRAIN),
    "model.dtype": ("bfloat16", MEASURED),
    "data.ratios": ((0.7, 0.2, 0.1), ALL), "data.mapping": ({"asked": "prompt"}, ALL),
    "data.one_per_exchange": (True, ALL), "data.max_length": (300, ALL), "data.overlong": ("truncate_prompt", ALL),
    "data.train_on": ("last", ALL), "data.template": ("chatml", ALL), "data.near_duplicates": (0.5, ALL),
    "data.limit": (40, ALL), "data.seed": (1, ALL),
    "lora.r": (2, TRAIN), "lora.lora_alpha": (8, TRAIN), "lora.lora_dropout": (0.1, TRAIN),
    "lora.target_modules": (["q_proj"], TRAIN), "lora.backend": ("own", TRAIN),
    "merge.dtype": ("bfloat16", ["merge", "export"]),
    "evaluation.limit": (3, ASKING), "evaluation.max_new_tokens": (5, ASKING), "evaluation.batch_size": (8, ASKING),
    "output.folder": ("elsewhere", NOTHING),  # the same folder is looked at: its name decides nothing
    "training.learning_rate": (1e-4, TRAIN), "training.lr_scheduler_type": ("linear", TRAIN),
    "training.min_lr_rate": (0.1, TRAIN), "training.optim": ("adamw_torch", TRAIN),
    "training.weight_decay": (0.1, TRAIN), "training.adam_beta1": (0.8, TRAIN), "training.adam_beta2": (0.9, TRAIN),
    "training.adam_epsilon": (1e-6, TRAIN), "training.loraplus_lr_ratio": (16, TRAIN),
    "training.max_grad_norm": (0.5, TRAIN), "training.neftune_noise_alpha": (5, TRAIN),
    "training.per_device_train_batch_size": (2, TRAIN), "training.per_device_eval_batch_size": (2, TRAIN),
    "training.gradient_accumulation_steps": (2, TRAIN), "training.num_train_epochs": (2, TRAIN),
    "training.max_steps": (4, TRAIN), "training.warmup_steps": (1, TRAIN), "training.replay_weight": (0.1, TRAIN),
    "training.seed": (7, TRAIN), "training.group_by_length": (True, TRAIN), "training.mixed_precision": ("bf16", TRAIN),
    "training.gradient_checkpointing": (True, TRAIN), "training.torch_compile": (True, TRAIN),
    "training.use_cpu": (False, TRAIN), "training.logging_steps": (1, TRAIN), "training.eval_steps": (1, TRAIN),
    "training.eval_epochs": (0.5, TRAIN), "training.save_epochs": (1, TRAIN), "training.save_best": (True, TRAIN),
    "training.eval_on_start": (True, TRAIN), "training.save_steps": (1, TRAIN),
    "training.save_total_limit": (1, TRAIN), "training.metric_for_best_model": ("perplexity", TRAIN),
    "training.greater_is_better": (True, TRAIN), "training.load_best_model_at_end": (True, TRAIN),
    "training.early_stopping_patience": (3, TRAIN), "training.early_stopping_threshold": (0.1, TRAIN),
    "training.guard": (False, TRAIN), "training.max_skipped_steps": (5, TRAIN), "training.max_rollbacks": (5, TRAIN),
}
ALONG = {"training.min_lr_rate": {"training": {"lr_scheduler_type": "cosine_with_min_lr"}},
         "training.early_stopping_patience": {"training": {"eval_steps": 1}},
         "training.save_best": {"training": {"eval_steps": 1}},
         "training.load_best_model_at_end": {"training": {"eval_steps": 1}}}
FILES = {"data.train": ALL, "data.validation": ALL, "data.test": ALL, "data.replay": ALL, "data.general": ALL,
         "model.name_or_path": ALL}


def running(config, folder):
    reasons = plan(config, folder)
    return [name for name in STAGES if reasons[name]]


def with_field(finished, name, value):
    """The finished run's configuration with one field changed (and what such a value demands)."""
    section, _, key = name.rpartition(".")
    change = {section: {key: value}} if section else {key: value}
    return load_config(finished.folder / "config.yaml", [ALONG.get(name, {}), change], {})


def relevant(config):
    """All fields that a LoRA run knows; quantization has a test of its own."""
    return {name for name in flat(config.model_dump()) if not name.startswith("quantization.")}


def test_the_table_holds_every_field(finished):
    told = {*FIELDS, *FILES}
    missing = {name for name in relevant(finished.config) - told if not name.startswith("lora.")}
    assert not missing, f"say which stages depend on {missing}"


@pytest.mark.parametrize("name", FIELDS)
def test_a_changed_field_runs_exactly_what_reads_it(finished, name):
    value, stages = FIELDS[name]
    assert flat(finished.config.model_dump())[name] != value
    assert running(with_field(finished, name, value), finished.folder) == stages


def test_fields_of_lora_that_are_not_in_the_table_run_training_too(finished):
    others = {name for name in relevant(finished.config) if name.startswith("lora.")} - FIELDS.keys()
    for name in others:
        old = flat(finished.config.model_dump())[name]
        value = (not old) if isinstance(old, bool) else {"q_proj": 4} if name.endswith("_pattern") else None
        if value is not None:
            assert running(with_field(finished, name, value), finished.folder) == TRAIN, name


def test_quantization_is_read_by_qlora_alone(finished):
    assert running(with_field(finished, "quantization.double_quant", False), finished.folder) == NOTHING


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_runs_what_reads_it_and_a_moved_one_nothing(finished, tmp_path, name):
    values = finished.config.model_dump()
    section, _, key = name.partition(".")
    given = values[section][key]
    if given is None:
        given = finished.folder / "prepare" / "test.jsonl"
        changed = FinetuneConfig.model_validate(values | {section: values[section] | {key: str(given)}})
        assert running(changed, finished.folder) == FILES[name]
        return
    source, copy = given[0] if isinstance(given, tuple) else given, tmp_path / "copy"
    (shutil.copytree if name.startswith("model") else shutil.copy)(source, copy)
    copy = copy if name.startswith("model") else copy.rename(tmp_path / "copy.jsonl")
    moved = FinetuneConfig.model_validate(values | {section: values[section] | {key: str(copy)}})
    assert running(moved, finished.folder) == NOTHING
    with open(copy / "tokenizer_config.json" if name.startswith("model") else copy, "a") as file:
        file.write("\n")
    assert running(moved, finished.folder) == FILES[name]
