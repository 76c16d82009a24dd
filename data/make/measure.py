"""Measure what can be tuned on the base model: `python -m make.measure` from `data/`, about an hour on two cores.

Base, LoRA, QLoRA and full fine-tuning over three seeds, a rank sweep, and LoRA without replay, all with the ready
configuration `tiny`. The result is `data/studies/base.json`, which data/README.md and the notebooks read.
"""
import argparse
from datetime import date
from pathlib import Path

from finetune_lib.core import load_tokenizer, machine, seed_everything, write_json
from finetune_lib.pipeline import stages
from finetune_lib.pipeline.config import FinetuneConfig, load_config
from finetune_lib.pipeline.manifest import read_manifest
from finetune_lib.pipeline.reading import read_tokens
from finetune_lib.pipeline.run import FineTuningPipeline
from finetune_lib.qlora.loading import load_base
from finetune_lib.training.loop import train

DATA = Path(__file__).resolve().parent.parent
STUDY = DATA / "studies" / "base.json"
SEEDS = (0, 1, 2)
RANKS = (1, 2, 4, 8, 16)
RANK_STEPS = 100  # the sweep stops early: at the end of the full training every rank is nearly right
FULL_RATE = 1e-3  # all weights move: a fifth of the adapters' learning rate


def configured(folder: Path, *overrides: str) -> FinetuneConfig:
    """The ready configuration with a few settings changed."""
    return load_config("tiny", [f"output.folder={folder}", *overrides], environment={})


def scores(path: Path) -> dict:
    """The numbers of one evaluation that a table needs."""
    evaluation = stages.load_evaluation(path)
    numbers = evaluation.to_dict()
    names = ("exact_match", "rouge_l", "response_perplexity", "general_perplexity", "families")
    return {name: numbers[name] for name in names}


def adapted(folder: Path, *overrides: str) -> dict:
    """Train and evaluate an adapter as `finetune run` does; what is there already is kept."""
    FineTuningPipeline(configured(folder, *overrides)).run(until="evaluate")
    seconds = read_manifest(folder, "train")["summary"]["training_seconds"]
    return scores(folder / "evaluate" / "evaluation.json") | {"seconds": seconds}


def full(folder: Path, prepared: Path, seed: int) -> dict:
    """Train all weights on the same tokens with the same number of steps."""
    config = configured(prepared, f"training.seed={seed}", f"training.learning_rate={FULL_RATE}")
    seed_everything(seed)
    model = load_base(config.model.name_or_path)
    tokens = prepared / "prepare"
    result = train(model, read_tokens(tokens / "train.parquet"), config.training,
                   load_tokenizer(config.model.name_or_path).pad_token_id,
                   replay=read_tokens(tokens / "replay.parquet"))
    folder.mkdir(parents=True, exist_ok=True)
    stages.measure(model.eval(), config, prepared, folder)
    return scores(folder / "evaluation.json") | {"seconds": round(result.seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=DATA.parent / "runs" / "measure", help="where the runs lie")
    runs = parser.parse_args().folder
    first = runs / "lora-seed0"
    study = {"machine": machine(), "date": date.today().isoformat(), "runs": {}}
    for seed in SEEDS:
        for method in ("lora", "qlora"):
            name = f"{method}-seed{seed}"
            study["runs"][name] = adapted(runs / name, f"training.seed={seed}", f"method={method}")
        study["runs"][f"full-seed{seed}"] = full(runs / f"full-seed{seed}", first, seed)
    for rank in RANKS:
        study["runs"][f"rank{rank}"] = adapted(runs / f"rank{rank}", f"lora.r={rank}", f"lora.lora_alpha={2 * rank}",
                                               f"training.max_steps={RANK_STEPS}")
    study["runs"]["no-replay"] = adapted(runs / "no-replay", "training.replay_weight=0")
    study["runs"]["base"] = scores(first / "baseline" / "evaluation.json")
    write_json(STUDY, study)


if __name__ == "__main__":
    main()
