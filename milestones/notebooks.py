"""Execute notebooks and store them in one normal form: `python -m milestones.notebooks [--times] [NOTEBOOK…]`.

The stored run reads on the web and is what nbval compares; running it again changes no byte unless the content changed.
`--times` also stores the seconds of each run in data/studies, from which README's map is made.
"""
import argparse
import os
import sys
import time
from datetime import date
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from finetune_lib.core import machine, read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
TIMES = ROOT / "data/studies/notebooks.json"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
NOTEBOOK_METADATA = ("colab", "accelerator")
SKIP_TAGS = {"nbval-skip", "skip-execution"}
IMAGE_LIMIT = 60_000  # bytes of base64-decoded PNG in one output


def all_notebooks(root: Path = ROOT) -> list[Path]:
    """Every notebook of the course, in reading order."""
    return sorted(path for path in (root / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def execute(path: Path, timeout: int = 600) -> nbformat.NotebookNode:
    """Run a notebook from top to bottom in a fresh kernel, in its own folder, and return it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", record_timing=False, coalesce_streams=True,
        skip_cells_with_tag="skip-execution", resources={"metadata": {"path": str(path.parent)}},
    )
    return client.execute()


def normalize(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Keep only what a reader needs: counts 1..n, known metadata, no timing, no empty cells."""
    known = {key: notebook.metadata[key] for key in NOTEBOOK_METADATA if key in notebook.metadata}
    notebook.metadata = nbformat.from_dict({**known, "kernelspec": KERNEL})
    notebook.cells = [cell for cell in notebook.cells if cell.source.strip()]
    count = 0
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            count = number(cell, count)
    return notebook


def number(cell: nbformat.NotebookNode, count: int) -> int:
    """Give a code cell its place in the run; a skipped cell has none. Returns the count after it."""
    if SKIP_TAGS & set(cell.metadata.get("tags", [])):
        cell.execution_count, cell.outputs = None, []
        return count
    cell.execution_count = count + 1
    for output in cell.outputs:
        output.pop("transient", None)
        if output.output_type == "execute_result":
            output.execution_count = count + 1
        check_image(cell, output)
    return count + 1


def check_image(cell: nbformat.NotebookNode, output: nbformat.NotebookNode) -> None:
    """A stored picture must stay small: the repository keeps every version of it."""
    size = len(output.get("data", {}).get("image/png", "")) * 3 // 4
    if size > IMAGE_LIMIT:
        first = cell.source.splitlines()[0]
        raise ValueError(f"a stored picture must be at most {IMAGE_LIMIT} bytes, got {size} in the cell that begins "
                         f"{first!r}; draw fewer points or lower the dpi")


def write(path: Path, notebook: nbformat.NotebookNode) -> bool:
    """Write the notebook if its text changed; returns whether it did."""
    text = nbformat.writes(notebook, version=4) + "\n"
    if path.read_text(encoding="utf-8") == text:
        return False
    path.write_text(text, encoding="utf-8")
    return True


def store_times(seconds: dict[str, float]) -> None:
    """Keep how long notebooks ran, by their path below nbs/, beside what was kept before; drop those that are gone."""
    known = read_json(TIMES)["seconds"] if TIMES.is_file() else {}
    there = {str(path.relative_to(ROOT / "nbs")) for path in all_notebooks()}
    kept = {name: value for name, value in {**known, **seconds}.items() if name in there}
    write_json(TIMES, {"machine": machine(), "date": date.today().isoformat(), "seconds": kept})


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m milestones.notebooks", description="run notebooks and store them")
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of nbs/ where none is named")
    parser.add_argument("--times", action="store_true", help="also store how long each ran")
    options = parser.parse_args(words)
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # a bar is not a result
    seconds = {}
    for path in [path.resolve() for path in options.notebooks] or all_notebooks():
        begin = time.perf_counter()
        notebook = execute(path)
        seconds[str(path.relative_to(ROOT / "nbs"))] = round(time.perf_counter() - begin, 1)
        changed = write(path, normalize(notebook))
        sys.stdout.write(f"{'changed' if changed else 'same   '}  {path.relative_to(ROOT)}\n")
    if options.times:
        store_times(seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
