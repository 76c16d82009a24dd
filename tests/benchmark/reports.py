"""Reports of benchmarks: the last in runs/bench, those to keep in tests/benchmark/results by day; and what moved."""
import json
import sys
from pathlib import Path

from finetune_lib.core import write_json

ROOT = Path(__file__).resolve().parents[2]
LAST, KEPT = ROOT / "runs/bench", ROOT / "tests/benchmark/results"
LEAST = 0.1  # a relative change smaller than this is noise on a shared machine


def store(name: str, report: dict, keep: bool) -> None:
    """Write a report, which names its day; with `keep`, also where it stays."""
    write_json(LAST / f"{name}.json", report)
    if keep:
        write_json(KEPT / f"{name}-{report['date']}.json", report)


def numbers(value: object, name: str = "") -> dict[str, float]:
    """Every number of a report by its place, such as "tiny.best_batching.ours.tokens_per_second"."""
    if isinstance(value, bool) or not isinstance(value, dict | int | float):
        return {}
    if not isinstance(value, dict):
        return {name: float(value)}
    found = [numbers(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items()]
    return {key: number for part in found for key, number in part.items()}


def moved(old: dict, new: dict) -> list[tuple[str, float, float]]:
    """(place, old, new) of the numbers in both reports that changed by more than a tenth."""
    before, after = numbers(old), numbers(new)
    return [(name, before[name], after[name]) for name in sorted(before.keys() & after.keys())
            if abs(after[name] - before[name]) > LEAST * abs(before[name])]


def main() -> int:
    for path in sorted(LAST.glob("*.json")):
        stored = max(KEPT.glob(f"{path.stem}-*.json"), default=None)
        if stored is None:
            sys.stdout.write(f"{path.stem}: no stored report; store one with --keep\n")
            continue
        old, new = (json.loads(each.read_text(encoding="utf-8")) for each in (stored, path))
        found = moved(old, new)
        sys.stdout.write(f"{path.stem}: {len(found)} numbers moved by more than {LEAST:.0%} since {old.get('date')}\n")
        for name, before, after in found:
            change = f"{after / before - 1:+.0%}" if before else "from zero"
            sys.stdout.write(f"  {name}  {before:g} → {after:g}  {change}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
