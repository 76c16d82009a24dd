"""Speed, as ratios of two ways in one run: `make bench`. Seconds differ from machine to machine, ratios less so.

Each pair is run in turns, so that a busy machine slows both; the median of the turns counts. Nothing here passes or
fails: tests never assert time.
"""
import json
import statistics
import sys
import time
from collections.abc import Callable

import bitsandbytes.functional
import torch
from rich.console import Console
from rich.table import Table

from finetune_lib.core import base_model, data_folder, load_tokenizer, machine, seed_everything
from finetune_lib.data.batches import BatchOrder, collate
from finetune_lib.data.chat import tokenize_text
from finetune_lib.evaluation.tasks import generate
from finetune_lib.lora.adapter import LoRAConfig, attach_lora
from finetune_lib.qlora.loading import load_base
from finetune_lib.qlora.nf4 import quantize

TURNS = 7


def in_turns(ours: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of each, run alternately; the first turn only warms up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(TURNS + 1):
        for run, kept in zip((ours, other), seconds, strict=True):
            begin = time.perf_counter()
            run()
            kept.append(time.perf_counter() - begin)
    return statistics.median(seconds[0][1:]), statistics.median(seconds[1][1:])


def samples():
    """Tokenized prose of the course, of many lengths."""
    with open(data_folder() / "text" / "general.jsonl", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    return tokenize_text(texts, load_tokenizer(base_model()), max_length=256)


def training_step(backend: str) -> Callable[[], None]:
    """Forward and backward of one batch through the base with adapters of one back end."""
    seed_everything(0)
    model = attach_lora(load_base(base_model()), LoRAConfig(r=8, lora_dropout=0.0), backend=backend).train()
    batch = collate(samples()[:16], model.config.pad_token_id)

    def run() -> None:
        model(**batch).loss.backward()
        model.zero_grad()
    return run


def epoch(group_by_length: bool) -> Callable[[], None]:
    """The base reads all samples once, in batches of similar or of any lengths."""
    rows, model = samples(), load_base(base_model()).eval()
    order = BatchOrder([row.total_length for row in rows], 16, group_by_length=group_by_length)

    @torch.inference_mode()
    def run() -> None:
        for indexes in order.epoch(0):
            model(**collate([rows[index] for index in indexes], model.config.pad_token_id))
    return run


def answers(batch_size: int) -> Callable[[], None]:
    """The base goes on from 32 prompts, so many at a time."""
    tokenizer, model = load_tokenizer(base_model()), load_base(base_model()).eval()
    prompts = [row.input_ids[:12] for row in samples()[:32]]
    return lambda: generate(model, tokenizer, prompts, max_new_tokens=16, batch_size=batch_size)


def pairs() -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """What is compared: a name, our way, the other way."""
    weight = torch.randn(1024, 1024)
    return {
        "LoRA step: own adapters / peft": (training_step("own"), training_step("peft")),
        "LoRA step: quick adapters / peft": (training_step("quick"), training_step("peft")),
        "NF4 of a megaweight: own / bitsandbytes": (
            lambda: quantize(weight), lambda: bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4")),
        "reading all samples: grouped by length / shuffled": (epoch(True), epoch(False)),
        "32 answers: one batch / one by one": (answers(32), answers(1)),
    }


def main() -> int:
    table = Table(title="median of turns, ms; below 1 the first is quicker")
    for column in ("first / second", "first", "second", "ratio"):
        table.add_column(column, justify="left" if column == "first / second" else "right")
    for name, (ours, other) in pairs().items():
        first, second = in_turns(ours, other)
        table.add_row(name, f"{1000 * first:.1f}", f"{1000 * second:.1f}", f"{first / second:.2f}")
    console = Console()
    console.print(table)
    console.print("  ".join(f"{key}: {value}" for key, value in machine().items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
