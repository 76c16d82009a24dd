"""Data: speed against TRL's own preparation, and memory over a million rows: `make bench-data`.

Both prepare the same file with the same tokenizer and template on the same core: render, tokenize, label the
assistant's tokens, drop nothing, refuse what is longer than 512 tokens. Their processor time is compared, so that
neighbors on a busy machine and waits for the disk do not count; they run in turns, and the median of the turns' ratios
counts; the ratio of the clock on the wall stands beside it. Memory is that of a process of its own, which streams
generated rows from a file through reading, template, tokenizing and batches; then through reading alone, in each format
that streams, and from a line of 200 MB. Writes runs/bench/data.json; `--keep`
writes it to tests/benchmark/results as well.
"""
import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import psutil
from reports import store

from finetune_lib.core import base_model, data_folder, load_tokenizer, machine
from finetune_lib.data.batches import collate, epoch_batches
from finetune_lib.data.chat import TokenizedSample, tokenize_all, tokenize_stream
from finetune_lib.data.files import Problem
from finetune_lib.data.records import load_conversations, read_conversations

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


def seconds_of(action) -> tuple[float, float, object]:
    """Processor time and wall-clock time of a call, and what it gave."""
    begin, wall = time.process_time(), time.perf_counter()
    result = action()
    return time.process_time() - begin, time.perf_counter() - wall, result


@contextmanager
def one_core():
    """No second core for anybody: neither for the tokenizer's threads nor, on Linux, for anything else."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if before:
        os.sched_setaffinity(0, {min(before)})
    yield
    if before:
        os.sched_setaffinity(0, before)


def speed(path: Path, turns: int) -> dict:
    """Samples a second of both, and whether every id and label is the same."""
    tokenizer = load_tokenizer(base_model())
    chats, problems = load_conversations(path)
    theirs = trl_preparation(path, tokenizer)
    times, walls = [], []
    for turn in range(turns + 1):  # the first turn warms up
        first, first_wall, (ours, refused) = seconds_of(lambda: tokenize_all(chats, tokenizer, max_length=MAX_LENGTH))
        second, second_wall, prepared = seconds_of(theirs)
        if turn:
            times.append((first, second))
            walls.append(second_wall / first_wall)
    ratios = [second / first for first, second in times]
    first, second = (statistics.median(values) for values in zip(*times, strict=True))
    same = [sample.input_ids for sample in ours] == list(prepared["input_ids"]) and (
        [sample.labels for sample in ours] == list(prepared["labels"]))
    return {"samples": len(chats), "quarantined": len(problems) + len(refused), "turns": turns,
            "tokens": sum(sample.total_length for sample in ours), "labels_identical": same,
            "ours_samples_per_second": round(len(chats) / first), "trl_samples_per_second": round(len(chats) / second),
            "ratio_median": round(statistics.median(ratios), 2), "ratio_least": round(min(ratios), 2),
            "ratio_most": round(max(ratios), 2), "ratio_wall_median": round(statistics.median(walls), 2),
            "cores_of_each": 1, "seconds": "processor time"}


def pairs(rows: int) -> Iterator[tuple[str, str]]:
    """Questions and answers, no two the same."""
    for number in range(rows):
        yield (f"Where does Liko go on day {number}, and what does she buy there?",
               f"On day {number} Liko goes to Velden and buys {number % 97} eggs.")


def generate(path: Path, rows: int) -> None:
    """A file of so many rows: conversations of one or two exchanges in JSONL, pairs in CSV and Parquet."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        schema = pa.schema([("instruction", pa.string()), ("response", pa.string())])
        with parquet.ParquetWriter(path, schema) as writer:
            found = pairs(rows)
            while part := list(islice(found, 10_000)):
                writer.write_table(pa.table(list(zip(*part, strict=True)), schema))
        return
    with open(path, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file).writerow(("instruction", "response"))
            csv.writer(file).writerows(pairs(rows))
            return
        more = [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "Then she goes home."}]
        for number, (asked, said) in enumerate(pairs(rows)):
            talk = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            file.write(json.dumps({"messages": talk + more * (number % 2)}) + "\n")


def generate_line(path: Path) -> None:
    """200 MB without a line break, between two good rows."""
    good = json.dumps({"instruction": "Where does Liko live?", "response": "Liko lives in Velden."}) + "\n"
    with open(path, "w", encoding="utf-8") as file:
        file.write(good + '{"instruction": "')
        for _ in range(200):
            file.write("x" * 1_000_000)
        file.write('"}\n' + good)


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


def read(path: Path) -> None:
    """All rows through reading alone; prints how many, what was put aside, and the highest memory."""
    parts = Counter(part.reason if isinstance(part, Problem) else "" for part in read_conversations(path))
    count = parts.total()
    del parts[""]
    print(json.dumps({"rows": count, "rss_mib": peak_mib(), "put_aside": parts}))


def peak_mib() -> float:
    """The highest memory of this process so far. (`ru_maxrss` will not do: it starts with the parent's.)"""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return round(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024, 1)


def told(what: str, path: Path) -> list[dict]:
    """What a process of its own prints about a file, which is deleted after that."""
    done = subprocess.run([sys.executable, __file__, what, str(path)], check=True, capture_output=True, text=True)
    path.unlink()
    return [json.loads(line) for line in done.stdout.splitlines()]


def memory(rows: int, folder: Path) -> list[dict]:
    """The curve of the whole preparation; its last point holds the highest value."""
    path = folder / f"{rows}.jsonl"
    generate(path, rows)
    return told("--stream", path)


def reading(rows: int, folder: Path) -> dict:
    """Highest memory of reading a thousand rows, and so many, in each format that streams; and one endless line."""
    result = {}
    for kind in ("jsonl", "csv", "parquet"):
        for count in (1000, rows):
            path = folder / f"{count}.{kind}"
            generate(path, count)
            result[f"{kind}_{count}"] = told("--read", path)[-1]["rss_mib"]
    path = folder / "line.jsonl"
    generate_line(path)
    begin = time.perf_counter()
    (found,) = told("--read", path)
    return result | {"line_of_200_mb": found | {"seconds": round(time.perf_counter() - begin, 1)}}


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the long stream")
    parser.add_argument("--turns", type=int, default=9, help="of each way to prepare")
    parser.add_argument("--keep", action="store_true", help="store the result in tests/benchmark/results too")
    parser.add_argument("--stream", type=Path, help="only prepare this file and print the memory")
    parser.add_argument("--read", type=Path, help="only read this file and print the memory")
    options = parser.parse_args(words)
    if options.stream or options.read:
        stream(options.stream) if options.stream else read(options.read)
        return 0
    with one_core():
        result = speed(data_folder() / "instructions" / "train.jsonl", options.turns)
    with tempfile.TemporaryDirectory() as name:
        few, many = memory(1000, Path(name)), memory(options.rows, Path(name))
        formats = reading(options.rows, Path(name))
    result |= {"rss_mib_1000": few[-1]["rss_mib"], f"rss_mib_{options.rows}": many[-1]["rss_mib"],
               "rows": options.rows, "memory_curve": many, "rss_mib_of_reading": formats,
               "machine": machine(), "cores": os.cpu_count(),
               "date": date.today().isoformat(), "versions": {name: version(name) for name in PACKAGES}}
    for point in many:
        print(f"{point['rows']:>9,} rows  {point['rss_mib']:7.1f} MiB")
    print(json.dumps({key: value for key, value in result.items() if key != "memory_curve"}, indent=2))
    store("data", result, options.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
