"""Data: speed against TRL's own preparation, and memory over a million rows: `make bench-data`.

Both prepare the same file with the same tokenizer and template on the same cores: render, tokenize, label the
assistant's tokens, drop nothing, refuse what is longer than 512 tokens. They run in turns, so that a busy machine slows
both; the median of the turns' ratios counts. Memory is that of a process of its own, which streams generated rows from
a file through reading, template, tokenizing and batches. Writes runs/bench/data.json; `--keep` writes it to
tests/benchmark/results as well.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import psutil

from finetune_lib.core import base_model, data_folder, load_tokenizer, machine, write_json
from finetune_lib.data.batches import collate, epoch_batches
from finetune_lib.data.chat import TokenizedSample, tokenize_all, tokenize_stream
from finetune_lib.data.records import load_conversations, read_conversations

ROOT = Path(__file__).resolve().parents[2]
MAX_LENGTH, WINDOW, BATCH = 512, 800, 16
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "trl", "jinja2")


def trl_preparation(path: Path, tokenizer):
    """TRL's preparation of a file, as a call without arguments that returns its data set."""
    import datasets
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    rows = datasets.load_dataset("json", data_files=str(path), split="train").select_columns(["messages"])
    config = SFTConfig(output_dir=tempfile.mkdtemp(), assistant_only_loss=True, packing=False, max_length=MAX_LENGTH,
                       report_to=[], use_cpu=True, bf16=False)
    trainer = SFTTrainer(model=AutoModelForCausalLM.from_pretrained(base_model()), args=config,
                         train_dataset=rows.select(range(2)), processing_class=tokenizer)
    return lambda: trainer._prepare_dataset(rows, tokenizer, config, False, None, "train")


def seconds_of(action) -> tuple[float, object]:
    begin = time.perf_counter()
    result = action()
    return time.perf_counter() - begin, result


def speed(path: Path, turns: int) -> dict:
    """Samples a second of both, and whether every id and label is the same."""
    tokenizer = load_tokenizer(base_model())
    chats, problems = load_conversations(path)
    theirs = trl_preparation(path, tokenizer)
    pairs, ours, prepared = [], [], None
    for turn in range(turns + 1):  # the first turn warms up
        first, (ours, refused) = seconds_of(lambda: tokenize_all(chats, tokenizer, max_length=MAX_LENGTH))
        second, prepared = seconds_of(theirs)
        if turn:
            pairs.append((first, second))
    ratios = [second / first for first, second in pairs]
    first, second = (statistics.median(values) for values in zip(*pairs, strict=True))
    same = [sample.input_ids for sample in ours] == list(prepared["input_ids"]) and (
        [sample.labels for sample in ours] == list(prepared["labels"]))
    return {"samples": len(chats), "quarantined": len(problems) + len(refused), "turns": turns,
            "tokens": sum(sample.total_length for sample in ours), "labels_identical": same,
            "ours_samples_per_second": round(len(chats) / first), "trl_samples_per_second": round(len(chats) / second),
            "ratio_median": round(statistics.median(ratios), 2),
            "ratio_least": round(min(ratios), 2), "ratio_most": round(max(ratios), 2)}


def generate(path: Path, rows: int) -> None:
    """Rows of one or two exchanges, no two the same."""
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            asked = f"Where does Liko go on day {number}, and what does she buy there?"
            said = f"On day {number} Liko goes to Velden and buys {number % 97} eggs."
            talk = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            more = [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "Then she goes home."}]
            file.write(json.dumps({"messages": talk + more * (number % 2)}) + "\n")


def stream(path: Path) -> None:
    """All rows through reading, template, tokenizing and batches; prints how many and the memory, now and then."""
    tokenizer, process = load_tokenizer(base_model()), psutil.Process()
    samples = (part for part in tokenize_stream(read_conversations(path), tokenizer, max_length=MAX_LENGTH)
               if isinstance(part, TokenizedSample))
    count = positions = 0
    highest, mark = 0, 1000
    while window := list(islice(samples, WINDOW)):
        for batch in epoch_batches([sample.total_length for sample in window], BATCH, seed=0, epoch=count):
            positions += collate([window[i] for i in batch], tokenizer.pad_token_id)["input_ids"].numel()
        count, highest = count + len(window), max(highest, process.memory_info().rss)
        if count >= mark:
            print(json.dumps({"rows": count, "rss_mib": round(process.memory_info().rss / 2**20, 1)}), flush=True)
            mark = min(2 * mark, mark + 100_000)
    print(json.dumps({"rows": count, "rss_mib": round(highest / 2**20, 1), "positions": positions}), flush=True)


def memory(rows: int, folder: Path) -> list[dict]:
    """The curve of a process of its own; its last point holds the highest value."""
    path = folder / f"{rows}.jsonl"
    generate(path, rows)
    told = subprocess.run([sys.executable, __file__, "--stream", str(path)], check=True, capture_output=True, text=True)
    path.unlink()
    return [json.loads(line) for line in told.stdout.splitlines()]


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the long stream")
    parser.add_argument("--turns", type=int, default=9, help="of each way to prepare")
    parser.add_argument("--keep", action="store_true", help="store the result in tests/benchmark/results too")
    parser.add_argument("--stream", type=Path, help="only stream this file and print the memory")
    options = parser.parse_args(words)
    if options.stream:
        stream(options.stream)
        return 0
    result = speed(data_folder() / "instructions" / "train.jsonl", options.turns)
    with tempfile.TemporaryDirectory() as name:
        few, many = memory(1000, Path(name)), memory(options.rows, Path(name))
    result |= {"rss_mib_1000": few[-1]["rss_mib"], f"rss_mib_{options.rows}": many[-1]["rss_mib"],
               "rows": options.rows, "memory_curve": many, "machine": machine(), "cores": os.cpu_count(),
               "date": date.today().isoformat(), "versions": {name: version(name) for name in PACKAGES}}
    for point in many:
        print(f"{point['rows']:>9,} rows  {point['rss_mib']:7.1f} MiB")
    print(json.dumps({key: value for key, value in result.items() if key != "memory_curve"}, indent=2))
    for folder in [ROOT / "runs/bench", *([ROOT / "tests/benchmark/results"] if options.keep else [])]:
        write_json(folder / "data.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
