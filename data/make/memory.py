"""Measure the memory of training: `python -m make.memory` from `data/`, about ten minutes on two idle cores.

The points of `finetune fit --validate` with their probing steps, and the three methods on a model of the base's shape,
each in a process of its own. The result is `data/studies/memory.json`.
"""
from finetune_lib.core import write_json
from finetune_lib.pipeline.probing import METHODS, Point, measured_peak, validate

from .measure import DATA

STUDY = DATA / "studies" / "memory.json"
BATCH, LENGTH = 16, 128


def main() -> None:
    peaks = {method: measured_peak(Point("course", method, BATCH, LENGTH)) for method in METHODS}
    write_json(STUDY, validate(print) | {"methods": {"batch": BATCH, "length": LENGTH, "measured_bytes": peaks}})


if __name__ == "__main__":
    main()
