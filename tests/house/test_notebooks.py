"""The form of the notebooks: stored run, directives first, small cells, a picture, no unfinished marks."""
import json
import re
from pathlib import Path

import pytest

from milestones.colab import IDS
from milestones.notebooks import IMAGE_LIMIT, SKIP_TAGS, all_notebooks, normalize

ROOT = Path(__file__).parents[2]
NOTEBOOKS = all_notebooks(ROOT)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def outputs(path: Path) -> list[dict]:
    return [output for cell in cells(path) for output in cell["outputs"]]


def pictures(path: Path) -> list[str]:
    """Every stored picture, in base 64."""
    return [output["data"]["image/png"] for output in outputs(path) if "image/png" in output.get("data", {})]


@each_notebook
def test_a_notebook_is_stored_in_its_normal_form(path):
    import nbformat

    stored = path.read_text(encoding="utf-8")
    assert nbformat.writes(normalize(nbformat.reads(stored, as_version=4)), version=4) + "\n" == stored


@each_notebook
def test_a_notebook_is_stored_run_from_top_to_bottom(path):
    run = [cell for cell in cells(path) if not SKIP_TAGS & set(cell["metadata"].get("tags", []))]
    assert [cell["execution_count"] for cell in run] == list(range(1, len(run) + 1))
    assert any(cell["outputs"] for cell in run)


@each_notebook
def test_a_notebook_has_no_stored_error_warning_or_path(path):
    for output in outputs(path):
        tags = next((cell["metadata"].get("tags", []) for cell in cells(path) if output in cell["outputs"]), [])
        assert output["output_type"] != "error" or "raises-exception" in tags
        assert output.get("name") != "stderr", output["text"]
        assert str(ROOT) not in json.dumps(output)


@each_notebook
def test_directives_stand_first_in_their_cell(path):
    for cell in cells(path):
        lines = source(cell).splitlines()
        directives = [number for number, line in enumerate(lines) if line.startswith("#|")]
        assert directives == list(range(len(directives))), f"nbdev ignores a directive below other text: {lines[:3]}"


@each_notebook
def test_a_notebook_opens_with_its_title_and_summary(path):
    first = source(cells(path, "markdown")[0]).splitlines()
    assert first[0].startswith("# ") and first[1].startswith("> ")
    assert re.match(r"#\| default_exp [\w.]+$", source(cells(path)[1])) or path.parent.name == "nbs"


@each_notebook
def test_a_notebook_shows_a_picture_and_none_is_heavy(path):
    sizes = [len(picture) * 3 // 4 for picture in pictures(path)]
    assert sizes and max(sizes) <= IMAGE_LIMIT


@each_notebook
def test_cells_are_small_and_prose_leads(path):
    code = [cell for cell in cells(path) if cell["id"] != IDS[1]]  # the set-up cell is the same everywhere
    lines = sorted(len([line for line in source(cell).splitlines() if line.strip() and not line.startswith("#|")])
                   for cell in code)
    assert lines[len(lines) // 2] <= 8 and max(lines) <= 42
    exported = [line for cell in code if re.search(r"^#\|\s*export", source(cell), re.M)
                for line in source(cell).splitlines() if line.strip()]
    assert len(code) <= 60 and len(exported) <= 330
    words = sum(len(source(cell).split()) for cell in cells(path, "markdown"))
    assert 15 <= words / len(code) <= 90


@each_notebook
def test_nothing_is_left_unfinished(path):
    code = "\n".join(source(cell) for cell in cells(path))
    assert not re.search(r"raise NotImplementedError|\bTODO\b|\bFIXME\b|\bXXX\b", code)
    assert not re.search(r"^\s*[!%]", code, re.M), "no shell commands or magics in a lesson"


def test_all_stored_pictures_together_stay_light():
    assert sum(len(picture) for path in NOTEBOOKS for picture in pictures(path)) < 5_000_000
