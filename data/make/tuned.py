"""Train the two adapters that the lessons of evaluation begin with: `python -m make.tuned` from `data/`, a minute.

One is still weak after 60 steps, so that there are mistakes to look at; the other has had 120, with long and short
answers mixed in every batch. They belong to the base model, and are made again after it.
"""
import os
from pathlib import Path

from finetune_lib.core import load_tokenizer, seed_everything, write_json
from finetune_lib.data.chat import tokenize_all
from finetune_lib.data.records import load_conversations
from finetune_lib.lora.adapter import LoRAConfig, attach_lora, save_adapter
from finetune_lib.qlora.loading import load_base
from finetune_lib.training.loop import train
from finetune_lib.training.schedule import TrainingConfig

DATA = Path(__file__).resolve().parent.parent
RECIPES = {"60-steps": {"max_steps": 60, "warmup_steps": 10},
           "120-steps": {"max_steps": 120, "warmup_steps": 20, "group_by_length": False}}


def main() -> None:
    os.chdir(DATA.parent)  # the base's name in the adapters is its path from here
    tokenizer = load_tokenizer("data/base")
    examples, _ = load_conversations(DATA / "instructions" / "train.jsonl")
    samples, _ = tokenize_all(examples, tokenizer)
    for name, recipe in RECIPES.items():
        seed_everything(0)
        model = attach_lora(load_base("data/base"), LoRAConfig(r=8, lora_alpha=16, lora_dropout=0.0))
        config = TrainingConfig(learning_rate=3e-3, per_device_train_batch_size=16, use_cpu=True, **recipe)
        train(model, samples, config, tokenizer.pad_token_id)
        write_json(save_adapter(model, DATA / "adapters" / name) / "training.json", config.model_dump(mode="json"))


if __name__ == "__main__":
    main()
