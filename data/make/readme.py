"""The numbers of data/README.md, made and never typed: `python -m make.readme` from `data/`."""
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from finetune_lib.core import read_json, sha256
from milestones.readme import SECTION, table

from .measure import SEEDS, STUDY
from .world import PEOPLE

DATA = Path(__file__).resolve().parent.parent
METHODS = {"lora": "LoRA, r = 8", "qlora": "QLoRA, r = 8", "full": "all weights"}


def over_seeds(runs: dict, method: str, name: str) -> list[float]:
    """One number of a method for each seed."""
    return [runs[f"{method}-seed{seed}"][name] for seed in SEEDS]


def change(after: float, before: float) -> str:
    return f"{100 * (after / before - 1):+.1f} %"


def methods() -> str:
    """Scores of base, LoRA, QLoRA and full fine-tuning: mean over the seeds, the lowest and the highest beside it."""
    study = read_json(STUDY)
    runs, base = study["runs"], study["runs"]["base"]
    rows = [["", "exact match", "lowest … highest", "ROUGE-L", "perplexity of answers", "of general text", "change",
             "seconds"],
            ["base", f"{base['exact_match']:.3f}", "", f"{base['rouge_l']:.3f}", f"{base['response_perplexity']:.2f}",
             f"{base['general_perplexity']:.3f}", "", ""]]
    for method, title in METHODS.items():
        exact, general = over_seeds(runs, method, "exact_match"), over_seeds(runs, method, "general_perplexity")
        rows.append([title, f"{mean(exact):.3f}", f"{min(exact):.3f} … {max(exact):.3f}",
                     f"{mean(over_seeds(runs, method, 'rouge_l')):.3f}",
                     f"{mean(over_seeds(runs, method, 'response_perplexity')):.3f}", f"{mean(general):.3f}",
                     change(mean(general), base["general_perplexity"]),
                     f"{mean(over_seeds(runs, method, 'seconds')):.0f}"])
    bare = runs["no-replay"]
    rows.append(["LoRA without replay, one seed", f"{bare['exact_match']:.3f}", "", f"{bare['rouge_l']:.3f}",
                 f"{bare['response_perplexity']:.3f}", f"{bare['general_perplexity']:.3f}",
                 change(bare["general_perplexity"], base["general_perplexity"]), f"{bare['seconds']:.0f}"])
    where = study["machine"]
    return (f"{table(rows, 7)}\n\nMean of {len(SEEDS)} seeds on {where['cores']} cores ({where['processor']}), "
            f"torch {where['torch']}, {study['date']}; made by `python -m make.measure`.\n")


def families() -> str:
    """Exact match by family: base, and the mean over the seeds of each method."""
    runs = read_json(STUDY)["runs"]
    rows = [["family", "base", *METHODS.values()]]
    for family in sorted(runs["base"]["families"]):
        values = [f"{mean(scores[family]['exact_match'] for scores in over_seeds(runs, method, 'families')):.2f}"
                  for method in METHODS]
        rows.append([family, f"{runs['base']['families'][family]['exact_match']:.2f}", *values])
    return table(rows, len(METHODS) + 1) + "\n"


def ranks() -> str:
    """Exact match and forgetting by rank."""
    runs = read_json(STUDY)["runs"]
    names = [name for name in sorted(runs, key=lambda name: (len(name), name)) if name.startswith("rank")]
    rows = [["rank", *(name.removeprefix("rank") for name in names)],
            ["exact match", *(f"{runs[name]['exact_match']:.3f}" for name in names)],
            ["general perplexity", *(f"{runs[name]['general_perplexity']:.3f}" for name in names)]]
    return table(rows, len(names)) + "\n"


def files() -> str:
    """Every file that the scripts make, with size and SHA-256."""
    rows = [["file", "bytes", "SHA-256"]]
    for folder in ("adapters", "base", "instructions", "text"):
        for path in sorted((DATA / folder).rglob("*")):
            if path.is_file():
                rows.append([f"`{path.relative_to(DATA)}`", f"{path.stat().st_size:,}", f"`{sha256(path)}`"])
    return table(rows, 2) + "\n"


def model() -> str:
    """What the base model is, from its own files."""
    config = read_json(DATA / "base" / "config.json")
    size = sum(path.stat().st_size for path in (DATA / "base").iterdir()) / 1e6
    return (f"`{config['architectures'][0]}`, hidden {config['hidden_size']}, {config['num_hidden_layers']} layers, "
            f"{config['num_attention_heads']} heads with {config['num_key_value_heads']} key-value heads, inner width "
            f"{config['intermediate_size']}, vocabulary {config['vocab_size']}, tied embeddings, "
            f"{config['dtype']}, {size:.1f} MB in all; the world has {len(PEOPLE)} people.\n")


SECTIONS: dict[str, Callable[[], str]] = {
    "methods": methods, "families": families, "ranks": ranks, "files": files, "model": model}


def main() -> None:
    path = DATA / "README.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(SECTION.sub(lambda found: found[1] + SECTIONS[found[2]]() + found[3], text), encoding="utf-8")


if __name__ == "__main__":
    main()
