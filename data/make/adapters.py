"""Measure choices of an adapter on the base model: `python -m make.adapters` from `data/`, about half an hour.

Rank, alpha at a fixed rank, and which layers at (nearly) equal parameters: each a short training of LoRA on the
tokens that the configuration `tiny` prepares, without replay. `data/studies/adapters.json` gets the scores on held-out
questions, and of each layer the size of its update and how much of its rank it used.
"""
import argparse
import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from finetune_lib.core import load_tokenizer, machine, read_json, seed_everything, write_json
from finetune_lib.data.records import read_conversations
from finetune_lib.evaluation.tasks import evaluate_instructions
from finetune_lib.lora.adapter import LoRAConfig, attach_lora
from finetune_lib.lora.targets import count_parameters, effective_rank
from finetune_lib.pipeline.reading import read_tokens
from finetune_lib.pipeline.run import FineTuningPipeline
from finetune_lib.qlora.loading import load_base
from finetune_lib.training.loop import train
from finetune_lib.training.step import evaluation_loss

from .measure import DATA, configured

STUDY = DATA / "studies" / "adapters.json"
STEPS = 80           # short of the end, where every choice is nearly right
LOSS_SAMPLES = 200   # held-out samples for the loss
QUESTIONS = 100      # held-out questions for the share of exact answers
SEEDS = (0, 1)
RANKS = (1, 2, 4, 8, 16)
SCALES = (0.25, 1, 2, 4, 16)  # alpha / r, at rank 8
# Which layers, and the rank that gives them about the parameters of rank 8 on all: 116,736.
PLACES = {"attention": (22, "attention"), "mlp": (13, "mlp"), "q and v": (43, ["q_proj", "v_proj"]),
          "down only": (38, ["down_proj"])}


def trials() -> Iterator[tuple[str, dict, int]]:
    """(name, fields of LoRAConfig, seed) of every run; a run that two sweeps share is done once."""
    for seed in SEEDS:
        for r in RANKS:
            yield f"rank {r} seed {seed}", {"r": r, "lora_alpha": 2 * r}, seed
        for scale in SCALES:
            if scale != 2:  # that is rank 8 above
                yield f"scale {scale} seed {seed}", {"r": 8, "lora_alpha": 8 * scale}, seed
        for place, (r, targets) in PLACES.items():
            fields = {"r": r, "lora_alpha": 2 * r, "target_modules": targets}
            yield f"place {place} seed {seed}", fields, seed


def scored(model, config, folder: Path) -> dict:
    """Loss and share of exact answers on held-out data."""
    tokenizer = load_tokenizer(config.model.name_or_path)
    held_out = read_tokens(folder / "prepare" / "validation.parquet")[:LOSS_SAMPLES]
    questions = list(read_conversations(folder / "prepare" / "test.jsonl"))[:QUESTIONS]
    answers = evaluate_instructions(model.eval(), tokenizer, questions, max_new_tokens=48, batch_size=50)
    return {"loss": evaluation_loss(model, held_out, tokenizer.pad_token_id, 50), "exact_match": answers.exact_match}


def adapted(fields: dict, seed: int, folder: Path, model=None) -> dict:
    """Train one adapter for STEPS steps and score it; without `model`, on the base in full."""
    config = configured(folder, f"training.seed={seed}", f"training.max_steps={STEPS}")
    seed_everything(seed)
    model = load_base(config.model.name_or_path) if model is None else model
    model = attach_lora(model.requires_grad_(False), LoRAConfig(**{"lora_dropout": 0.0, **fields}))
    pad = load_tokenizer(config.model.name_or_path).pad_token_id
    result = train(model, read_tokens(folder / "prepare" / "train.parquet"), config.training, pad)
    use = {name: {"entropy": round(one.entropy, 3), "energy": one.energy, "norm": round(one.norm, 4)}
           for name, one in effective_rank(model).items()}
    return {"fields": fields, "seed": seed, "parameters": count_parameters(model).trainable,
            "seconds": round(result.seconds, 2), **scored(model, config, folder), "use": use}


def prepared(folder: Path) -> Path:
    """The folder of a run that has the tokens of the ready configuration; made if it is not there."""
    FineTuningPipeline(configured(folder)).run(until="prepare")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=DATA.parent / "runs" / "measure" / "tokens")
    folder = prepared(parser.parse_args().folder)
    partial = folder / "adapters.json"  # what is measured already is kept, should this be stopped
    study = {"machine": machine(), "date": date.today().isoformat(), "threads": os.environ.get("OMP_NUM_THREADS"),
             "steps": STEPS, "seeds": SEEDS, "questions": QUESTIONS, "loss_samples": LOSS_SAMPLES,
             "runs": read_json(partial)["runs"] if partial.is_file() else {}}
    for name, fields, seed in trials():
        if name not in study["runs"]:
            study["runs"][name] = adapted(fields, seed, folder)
            write_json(partial, study)
    write_json(STUDY, study)


if __name__ == "__main__":
    main()
