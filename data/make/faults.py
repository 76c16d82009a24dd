"""Deliberately bad rows, as they come in real files: what the quality lesson and the pipeline's door have to find."""
import copy
import random

from .world import SEED


def emptied(row: dict) -> dict:
    row["messages"][-1]["content"] = "  "
    return row


def unanswered(row: dict) -> dict:
    row["messages"] = row["messages"][:-1]
    return row


def swapped(row: dict) -> dict:
    row["messages"] = row["messages"][::-1]
    return row


def garbled(row: dict) -> dict:
    row["messages"][-1]["content"] += " ItÃ¢â‚¬â„¢s so. \ufffd\ufffd"
    return row


def stuttering(row: dict) -> dict:
    row["messages"][-1]["content"] = " ".join([row["messages"][-1]["content"]] * 12)
    return row


def nameless_role(row: dict) -> dict:
    row["messages"][0]["role"] = "narrator"
    return row


def without_messages(row: dict) -> dict:
    return {"id": row["id"], "family": row["family"]}


def repeated(row: dict) -> dict:
    return row


FAULTS = [emptied, unanswered, swapped, garbled, stuttering, nameless_role, without_messages, repeated]


def with_faults(rows: list[dict], each: int = 6) -> list[dict]:
    """The rows with `each` bad copies of every kind put in at random places; their ids begin with the fault's name."""
    draw = random.Random(SEED + 11)
    faulty = list(rows)
    for fault in FAULTS:
        for place, row in enumerate(draw.sample(rows, each)):
            bad = fault(copy.deepcopy(row)) | {"id": f"{fault.__name__}-{place}"}
            faulty.insert(draw.randrange(len(faulty)), bad)
    return faulty
