"""Speed of training against three opponents, in one run: `make bench-train`. Writes runs/bench/train.json.

The opponents: a bare PyTorch loop, transformers' Trainer, TRL's SFTTrainer. All train the same LoRA adapter on the same
samples, each once, with the same optimizer, on the same threads, without activation checkpointing and in float32. The
adapter starts with the same numbers everywhere. `ours` computes it with our layers in their quick order, the others
with peft's; `ours_in_order` with our layers as the formula stands, equal to peft's to the bit, and `ours_on_peft` with
peft's, so that one sees what loop and layers are worth.
`identical_batches` hands everyone the same ready batches; in `best_batching` everyone makes batches in the way that is
quickest for it: ours grouped by length (the default), the bare loop the same, Trainer grouped by length, SFTTrainer
packed. Trainer's and SFTTrainer's own defaults stand beside. A turn runs all of them with one seed,
one after another, so that a busy machine slows all; ratios are taken in each turn and their median counts. Beside them
stands the ratio of processor time, which others on the machine change less. Only real tokens count, never padding, and
for everyone the clock starts when the first step is done: what comes before (ours tries the longest batch there) stands
beside it as `start_seconds`. `final_loss` is that of 64 samples held out, measured in one way for all; where batches
differ, it does too: in these samples the length tells the kind of instruction, and batches of one kind each, as
grouping makes them, teach less in so few steps (nbs/04_training/06_loop shows it). All of it on one thread, then on
two. `--keep` stores the result in tests/benchmark/results as well; nothing passes or fails.
"""
import argparse
import ctypes
import gc
import json
import logging
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from reports import store
from transformers import AutoConfig, AutoModelForCausalLM, PrinterCallback, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from finetune_lib.core import base_model, data_folder, load_tokenizer, machine, seed_everything
from finetune_lib.data.batches import padding_waste
from finetune_lib.data.chat import tokenize_all
from finetune_lib.data.packing import pack
from finetune_lib.data.records import load_conversations
from finetune_lib.lora.adapter import LoRAConfig, attach_lora, load_adapter, remove, save_adapter
from finetune_lib.training.loop import train
from finetune_lib.training.schedule import TrainingConfig, Windows
from finetune_lib.training.step import collate_on, evaluation_loss

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
SIZES = {"tiny": {}, "eight_times": {"hidden_size": 384, "intermediate_size": 1296, "num_attention_heads": 12,
                                     "num_key_value_heads": 4}}
BATCH, RATE, RANK = 16, 1e-3, 8
WAYS = ("ours", "bare", "trainer", "sft_trainer")
PARTS = ("ours_in_order", "ours_on_peft")  # beside them, on identical batches
LAYERS = {"ours": "quick", "ours_in_order": "own"}  # of the others: peft's


def bare_model(size: str):
    """The base, or a Llama of about eight times its parameters with random weights."""
    if size == "tiny":
        return AutoModelForCausalLM.from_pretrained(base_model(), dtype=torch.float32)
    config = AutoConfig.from_pretrained(base_model())
    config.update(SIZES[size])
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def make_model(size: str, seed: int, backend: str):
    """The model with the seed's adapter, which is the same for every back end."""
    seed_everything(seed)
    model = bare_model(size)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(attach_lora(model, LoRAConfig(r=RANK, lora_dropout=0.0)), folder)
        model = load_adapter(remove(model), folder, backend)
    model.config.use_cache = False
    return model.train()


def settings(steps: int, seed: int) -> TrainingConfig:
    return TrainingConfig(learning_rate=RATE, lr_scheduler_type="constant", max_steps=steps, seed=seed, use_cpu=True,
                          per_device_train_batch_size=BATCH)


def arguments(kind: type, steps: int, seed: int, **more):
    """Their settings, as near to ours as they go."""
    targets = {"completion_only_loss": True} if kind is SFTConfig else {}  # else it learns the prompts, too
    more = {"per_device_train_batch_size": BATCH, "num_train_epochs": 1, **targets, **more}
    return kind(output_dir=tempfile.gettempdir(), use_cpu=True, learning_rate=RATE,
                lr_scheduler_type="constant", seed=seed, save_strategy="no", report_to=[],
                logging_steps=min(10, steps), disable_tqdm=True, bf16=False, gradient_checkpointing=False,
                optim="adamw_torch_fused", weight_decay=0.0, dataloader_pin_memory=False, **more)


def ours(model, samples, batches, steps, seed, first_done):
    train(model, samples, settings(steps, seed), model.config.pad_token_id,
          callbacks=[lambda kind, record: first_done() if kind == "step" and record.step == 1 else None])


def bare(model, samples, batches, steps, seed, first_done):
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, losses = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0, fused=True), []
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) == 1:
            first_done()


def theirs(base: type, kind: type, ready: bool, **more) -> Callable:
    """A way to train with one of their trainers, on ready batches or on its own."""
    class Timed(base):
        def get_train_dataloader(self):
            return self.given if self.given else super().get_train_dataloader()

        def training_step(self, model, inputs, *rest, **named):
            mask = inputs.get("attention_mask")
            self.real.append(int(mask.sum()) if mask is not None else inputs["input_ids"].numel())
            if len(self.real) == 2:
                self.first_done()
            return super().training_step(model, inputs, *rest, **named)

    def prepare(model, samples, batches, steps, seed, first_done):
        rows = Dataset.from_dict({
            "input_ids": [sample.input_ids for sample in samples],
            **({"completion_mask": [[int(label != -100) for label in sample.labels] for sample in samples]}
               if base is SFTTrainer else {"labels": [sample.labels for sample in samples]})})
        options = arguments(kind, steps, seed, **more)
        pad = model.config.pad_token_id
        named = {"processing_class": load_tokenizer(base_model())} if base is SFTTrainer else {
            "data_collator": lambda found: collate_rows(found, pad)}
        trainer = Timed(model=model, args=options, train_dataset=rows, **named)
        trainer.remove_callback(PrinterCallback)
        trainer.given, trainer.real, trainer.first_done = (batches if ready else None), [], first_done
        return trainer
    return prepare


def collate_rows(rows: list[dict], pad: int) -> dict[str, torch.Tensor]:
    """Rows of ids and labels, padded on the right."""
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": pad, "labels": -100}
    batch = {name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])
             for name, value in fill.items()}
    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {**batch, "attention_mask": torch.tensor(mask)}


def clocks() -> tuple[float, float]:
    """Seconds by the wall's clock, and seconds of processor time."""
    return time.perf_counter(), time.process_time()


def peak_of(action: Callable[[], object]) -> tuple[object, tuple, tuple, float]:
    """(result, clocks at begin and end, MiB of resident memory above the start at the highest point)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # give back what the one before left free
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    start, begin = memory("VmRSS"), clocks()
    result = action()
    return result, begin, clocks(), memory("VmHWM") - start


def memory(name: str) -> float:
    """A line of the kernel's account of this process, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def measure(way: str, mode: str, size: str, samples: list, steps: int, seed: int) -> dict:
    """One epoch by one opponent; making model and trainer is not timed, nor the loss on samples held out.

    The epoch is of so many samples as fill the steps, drawn by the seed: whatever the order, everyone trains on the
    same ones, the longest among them, which makes the peak.
    """
    samples, held_out = random.Random(seed).sample(samples[:-64], steps * BATCH), samples[-64:]
    model = make_model(size, seed, LAYERS.get(way, "peft"))
    windows = Windows(samples, BATCH, 1, seed)
    parts = [windows.at(step)[0] for step in range(steps)]
    batches = [collate_on(model.device, part, model.config.pad_token_id) for part in parts]
    real, marks = [sum(len(sample.input_ids) for sample in part) for part in parts], []
    first_done = lambda: marks.append(clocks())  # noqa: E731
    if way in LOOPS:
        run = LOOPS[way]
        _, begin, end, peak = peak_of(lambda: run(model, samples, batches, steps, seed, first_done))
    else:
        trainer = TRAINERS[way, mode](model, samples, batches, steps, seed, first_done)
        _, begin, end, peak = peak_of(trainer.train)
        real = trainer.real
    wall, processor = (sum(real[1:]) / (late - early) for early, late in zip(marks[0], end, strict=True))
    return {"tokens_per_second": wall, "tokens_per_processor_second": processor,
            "start_seconds": marks[0][0] - begin[0], "peak_mib": peak,
            "final_loss": evaluation_loss(model, held_out, model.config.pad_token_id)}


LOOPS = {"ours": ours, "ours_in_order": ours, "ours_on_peft": ours, "bare": bare}
TRAINERS = {
    ("trainer", "identical_batches"): theirs(Trainer, TrainingArguments, True),
    ("sft_trainer", "identical_batches"): theirs(SFTTrainer, SFTConfig, True),
    ("trainer", "best_batching"): theirs(Trainer, TrainingArguments, False, train_sampling_strategy="group_by_length"),
    ("sft_trainer", "best_batching"): theirs(SFTTrainer, SFTConfig, False, packing=True, max_length=256,
                                              per_device_train_batch_size=BATCH // 4),  # a row holds several samples
    ("trainer", "defaults"): theirs(Trainer, TrainingArguments, False),
    ("sft_trainer", "defaults"): theirs(SFTTrainer, SFTConfig, False),
}


def summary(turns: list[dict[str, dict]]) -> dict:
    """Medians over the turns for each way, and the ratio of ours to each other in real tokens a second."""
    found = {}
    for way in turns[0]:
        rows = [turn[way] for turn in turns]
        ratios, processor = ([turn["ours"][name] / turn[way][name] for turn in turns]
                             for name in ("tokens_per_second", "tokens_per_processor_second"))
        found[way] = {
            "tokens_per_second": round(statistics.median(row["tokens_per_second"] for row in rows)),
            "ours_over_it": round(statistics.median(ratios), 3), "ours_over_it_least": round(min(ratios), 3),
            "ours_over_it_most": round(max(ratios), 3),
            "ours_over_it_processor": round(statistics.median(processor), 3),
            "final_loss": [round(row["final_loss"], 4) for row in rows],
            "start_seconds": round(statistics.median(row["start_seconds"] for row in rows), 3),
            "peak_mib": round(statistics.median(row["peak_mib"] for row in rows), 1)}
    return found


def sizes(samples: list, steps: int, seeds: range, threads: int) -> dict[str, dict]:
    """Both sizes on so many threads; the larger one with a quarter of the steps."""
    torch.set_num_threads(threads)
    modes = ("identical_batches", "best_batching")
    return {"tiny": compare("tiny", (*modes, "defaults"), samples, steps, seeds),
            "eight_times": compare("eight_times", modes, samples, max(4, steps // 4), seeds)}


def compare(size: str, modes: tuple[str, ...], samples: list, steps: int, seeds: range) -> dict:
    """Ways of batching at one size; one turn for each seed, after two steps of everyone that warm up."""
    found = {"parameters": sum(weight.numel() for weight in make_model(size, 0, "own").parameters()), "steps": steps}
    for way in WAYS + PARTS:
        measure(way, modes[0], size, samples, 2, 0)
    for mode in modes:
        turns, ways = [], WAYS + PARTS if mode == "identical_batches" else WAYS
        for seed in seeds:
            order = ways if seed % 2 else ways[::-1]  # nobody is always first
            turns.append({way: measure(way, mode, size, samples, steps, seed) for way in order})
        found[mode] = summary(turns)
        sys.stderr.write(f"{size} {mode}: " + "  ".join(
            f"{way} {row['tokens_per_second']:,}" for way, row in found[mode].items()) + "\n")
    return found


def profile(samples: list, steps: int = 10) -> list[dict]:
    """Where the time of our steps goes: the ten dearest operations, by their own time; two steps before warm up."""
    model = make_model("tiny", 0, "quick")
    train(model, samples, settings(2, 0), model.config.pad_token_id)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        train(model, samples, settings(steps, 0), model.config.pad_token_id)
    rows = found.key_averages()
    total = sum(row.self_cpu_time_total for row in rows)
    dearest = sorted(rows, key=lambda row: -row.self_cpu_time_total)[:10]
    return [{"operation": row.key, "calls": row.count, "share": round(row.self_cpu_time_total / total, 4)}
            for row in dearest]


def overhead(samples: list, steps: int, seeds: range) -> dict:
    """Share of the time that records, guard, watching and checkpoints take: with all of them, and with none."""
    shares = []
    for seed in seeds:
        spent = {}
        for name in ("with", "without") if seed % 2 else ("without", "with"):
            model, config = make_model("tiny", seed, "quick"), settings(steps, seed)
            with tempfile.TemporaryDirectory() as folder:
                if name == "with":
                    config = config.model_copy(update={"save_steps": 50})
                else:
                    config = config.model_copy(update={"guard": False})
                _, begin, end, _ = peak_of(lambda model=model, config=config, folder=folder, name=name: train(
                    model, samples, config, model.config.pad_token_id, folder=folder if name == "with" else None))
                spent[name] = [late - early for early, late in zip(begin, end, strict=True)]
        shares.append([more / less - 1 for more, less in zip(spent["with"], spent["without"], strict=True)])
    wall, processor = ([round(share, 4) for share in kind] for kind in zip(*shares, strict=True))
    return {"share_median": statistics.median(wall), "shares": wall, "shares_processor": processor,
            "save_steps": 50, "steps": steps}


def waste(samples: list) -> dict:
    """Share of positions that are padding, in one epoch."""
    lengths = [sample.total_length for sample in samples]

    def of(grouped: bool) -> float:
        windows = Windows(samples, BATCH, 1, 0, group_by_length=grouped)
        return padding_waste([[lengths[row] for row in batch] for batch in windows.batches], 1)

    packed = pack(samples, 256)
    return {"shuffled": round(of(False), 4), "grouped": round(of(True), 4),
            "packed": round(1 - sum(lengths) / (256 * len(packed)), 4)}


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="of a training at the tiny size; a quarter at the other")
    parser.add_argument("--seeds", type=int, default=3, help="turns, each with a seed of its own")
    parser.add_argument("--keep", action="store_true", help="store the result in tests/benchmark/results too")
    options = parser.parse_args(words)
    disable_progress_bars()
    logging.getLogger("finetune_lib").setLevel(logging.ERROR)
    chats, _ = load_conversations(data_folder() / "instructions" / "train.jsonl")
    samples, _ = tokenize_all(chats[:1000], load_tokenizer(base_model()), max_length=256)
    seeds = range(options.seeds)
    result = {**sizes(samples, options.steps, seeds, 1), "overhead": overhead(samples, 2 * options.steps, seeds),
              "profile": profile(samples), "padding_waste": waste(samples), "batch_size": BATCH, "rank": RANK,
              "seeds": list(seeds), "machine": machine(),
              "two_threads": sizes(samples, options.steps, seeds, 2),
              "cores": os.cpu_count(), "load_at_end": os.getloadavg()[0], "date": date.today().isoformat(),
              "versions": {name: version(name) for name in PACKAGES}}
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    store("train", result, options.keep)
    return 0


if __name__ == "__main__":
    warnings.simplefilter("default")
    sys.exit(main(sys.argv[1:]))
