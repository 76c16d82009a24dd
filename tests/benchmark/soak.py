"""Training killed with SIGKILL at random moments, and resumed: `make soak`. Writes runs/soak/report.json.

A child trains a tiny model with dropout and saves a checkpoint at every step; the parent kills it, half of the times at
any moment, half of the times while a checkpoint is being written, and starts it again until the run ends. Then weights,
optimizer, generators, records and the order of samples are compared with those of a run that was never stopped.
"""
import argparse
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from finetune_lib.core import write_json
from finetune_lib.data.chat import TokenizedSample
from finetune_lib.training.checkpoints import find_latest
from finetune_lib.training.curves import read_records
from finetune_lib.training.loop import train
from finetune_lib.training.schedule import TrainingConfig
from finetune_lib.training.step import target_loss

ROOT = Path(__file__).resolve().parents[2]
CLOCK = ("timestamp", "samples_per_second", "tokens_per_second", "eval_runtime")
LAST = 12


def rows(count: int, seed: int) -> list[TokenizedSample]:
    chance, found = random.Random(seed), []
    for number in range(count):
        ids = [chance.randint(3, 63) for _ in range(chance.randint(4, 12))]
        found.append(TokenizedSample(f"s{seed}-{number}", ids, [1] * len(ids), ids, 1, len(ids) - 1, len(ids)))
    return found


def learn(folder: Path) -> None:
    """One attempt at the whole run; `order.jsonl` gets the tokens that each step really saw."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, attention_dropout=0.2, max_position_embeddings=32, pad_token_id=0)).eval()
    seen: list[list[int]] = []
    runs: list[object] = []

    def loss(model, batch):
        if model.training:
            seen.append(batch["input_ids"].flatten().tolist())
        return target_loss(model, batch)

    def tell(kind: str, record: object) -> None:
        if kind == "step":
            count = len(runs[0].windows.at(record.step - 1))  # before the first step, the longest batch was tried
            with open(folder / "order.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": record.step, "seen": seen[-count:]}) + "\n")
        if kind in ("start", "step"):
            seen.clear()
        if kind == "start":
            runs.append(record)
            (folder / "started").touch()

    config = TrainingConfig(learning_rate=3e-3, per_device_train_batch_size=3, gradient_accumulation_steps=2,
                            max_steps=LAST, warmup_steps=2, eval_steps=4, save_steps=1, use_cpu=True)
    train(model, rows(25, 0), config, 0, eval_samples=rows(4, 1), folder=folder, callbacks=[tell], loss_function=loss)


def everything(folder: Path) -> dict:
    """All that a finished run leaves, but for the clock."""
    path, broken = find_latest(folder)
    names = ("trainable.safetensors", "optimizer.safetensors", "random.json")
    found = {name: (path / name).read_bytes() for name in names}
    for name in ("metrics", "evaluations"):
        found[name] = [{key: value for key, value in record.items() if key not in CLOCK}
                       for record in read_records(folder / f"{name}.jsonl")]
    last = {record["step"]: record["seen"] for record in read_records(folder / "order.jsonl")}
    return {**found, "order": last, "broken": broken, "end": path.name}


def attempt(folder: Path, chance: random.Random, kill: bool, saving: bool) -> tuple[bool, bool]:
    """Train in a child, killed or not; returns (whether it was killed, whether a checkpoint was half written then)."""
    (folder / "started").unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            learn(folder)
        except BaseException:
            logging.exception("the child failed")
            os._exit(1)
        os._exit(0)
    half = False
    if kill:
        wait_for(folder, chance, saving)
        os.kill(child, signal.SIGKILL)  # a child that has ended is still there to be waited for
        half = any(folder.glob(".checkpoint-*"))
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"a run must resume, got an error in {folder}; its message stands above")
    return os.WIFSIGNALED(status), half and os.WIFSIGNALED(status)


def wait_for(folder: Path, chance: random.Random, saving: bool) -> None:
    """Until the moment to kill: any, or while a checkpoint is being written."""
    give_up = time.monotonic() + 20
    while not (folder / "started").exists() and time.monotonic() < give_up:
        time.sleep(0.0005)
    time.sleep(chance.uniform(0.001, 0.25))
    give_up = time.monotonic() + 2
    while saving and time.monotonic() < give_up and not any(folder.glob(".checkpoint-*")):
        time.sleep(0.0001)


def soak(kills: int, place: Path, seed: int) -> dict:
    """So many kills, over as many runs as they take."""
    chance = random.Random(seed)
    (place / "whole").mkdir(parents=True)
    attempt(place / "whole", chance, kill=False, saving=False)
    expected = everything(place / "whole")
    report = {"seed": seed, "kills": 0, "while_saving": 0, "resumed": 0, "different": 0, "runs": 0}
    while report["kills"] < kills:
        folder = place / f"run-{report['runs']}"
        folder.mkdir()
        in_this_run = 0
        while report["kills"] < kills and in_this_run < 4:
            killed, half = attempt(folder, chance, kill=True, saving=report["kills"] % 2 == 1)
            if not killed:
                break
            in_this_run += 1
            report["kills"] += 1
            report["while_saving"] += half
        attempt(folder, chance, kill=False, saving=False)  # raises where it does not resume
        report["resumed"] += in_this_run
        report["different"] += everything(folder) != expected
        report["runs"] += 1
        shutil.rmtree(folder)
    return report


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--out", type=Path, default=ROOT / "runs/soak/report.json")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    logging.getLogger("finetune_lib").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        report = soak(options.kills, Path(name), options.seed)
    write_json(options.out, report)
    sys.stdout.write(json.dumps(report) + "\n")
    return int(report["different"] > 0 or report["resumed"] < report["kills"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
