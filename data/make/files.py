"""Writes the text and instruction files of `data/`: `python -m make.files` from `data/`.

The same bytes come out on every machine.
"""
import csv
import json
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .faults import with_faults
from .instructions import make_entities, make_split
from .prose import documents
from .world import SEED

DATA = Path(__file__).resolve().parent.parent
SIZES = {"train": 4_000, "validation": 400, "test": 400}
SAMPLE_ROWS = 60
GENERAL_DOCUMENTS, REPLAY_DOCUMENTS = 200, 2_000
GENERAL_SEED, REPLAY_SEED = SEED + 900_001, SEED + 900_002  # far from the seeds of pretraining


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="\n")


def write_json(path: Path, value: list[dict]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")


def write_samples(folder: Path, rows: list[dict]) -> None:
    """A few single-turn rows in the formats that people's files come in."""
    folder.mkdir(parents=True, exist_ok=True)
    chats = [row["messages"] for row in rows if len(row["messages"]) == 2]
    pairs = [(question["content"], answer["content"]) for question, answer in chats]
    pairs = [pair for pair in pairs if "{" not in pair[1]][:SAMPLE_ROWS]
    plain = [{"instruction": question, "response": answer} for question, answer in pairs]
    with (folder / "instructions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["instruction", "response"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(plain)
    write_json(folder / "instructions.json", plain)
    pq.write_table(pa.Table.from_pylist(plain), folder / "instructions.parquet")
    write_json(folder / "alpaca.json", [{"instruction": q, "input": "", "output": answer} for q, answer in pairs])
    write_json(folder / "sharegpt.json", [
        {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": answer}]} for q, answer in pairs])
    write_jsonl(folder / "dolly.jsonl", [{"instruction": q, "context": "", "response": answer, "category": "open_qa"}
                                         for q, answer in pairs])
    write_jsonl(folder / "openassistant.jsonl", [message for number, pair in enumerate(pairs)
                                                 for message in as_tree(number, *pair)])


def as_tree(number: int, question: str, answer: str) -> list[dict]:
    """A conversation as OpenAssistant publishes it: one row a message, each with its parent's id."""
    ids = (f"{number}-0", f"{number}-1")
    return [{"message_id": ids[0], "parent_id": None, "role": "prompter", "text": question, "rank": None},
            {"message_id": ids[1], "parent_id": ids[0], "role": "assistant", "text": answer, "rank": 0}]


def main() -> None:
    entities = make_entities()
    splits = {name: make_split(name, size, entities[name]) for name, size in SIZES.items()}
    for name, rows in splits.items():
        write_jsonl(DATA / "instructions" / f"{name}.jsonl", rows)
    write_jsonl(DATA / "instructions" / "raw.jsonl", with_faults(splits["train"]))
    write_samples(DATA / "instructions" / "samples", splits["train"])
    general = islice(documents(GENERAL_SEED), GENERAL_DOCUMENTS)
    replay = islice(documents(REPLAY_SEED), REPLAY_DOCUMENTS)
    for name, texts in [("general", general), ("replay", replay)]:
        write_jsonl(DATA / "text" / f"{name}.jsonl", [{"text": text} for text in texts])


if __name__ == "__main__":
    main()
