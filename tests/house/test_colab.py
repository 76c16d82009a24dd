"""Every notebook opens in Colab: the badge and the set-up cell stand in each, made from settings.ini."""
import ast

import pytest

from milestones.colab import IDS, badge_and_cell, settings
from milestones.notebooks import ROOT, all_notebooks
from milestones.tasks import cell_source, read_notebook

NAMES = [path.relative_to(ROOT / "nbs").as_posix() for path in all_notebooks()]


@pytest.mark.parametrize("name", NAMES)
def test_badge_and_set_up_cell_follow_the_title(name):
    cells = read_notebook(ROOT / "nbs" / name)["cells"]
    assert tuple(map(cell_source, cells[1:3])) == badge_and_cell(name), "write them: python -m milestones.colab"
    assert [cell["cell_type"] for cell in cells[:3]] == ["markdown", "markdown", "code"]
    assert tuple(cell["id"] for cell in cells if cell["id"] in IDS) == IDS
    assert cells[2]["outputs"] == [], "on one's own machine the set-up cell says nothing"


def test_the_set_up_cell_is_the_same_everywhere_and_short():
    cells = {badge_and_cell(name)[1] for name in NAMES}
    assert len(cells) == 1
    source = cells.pop()
    assert len(source.splitlines()) <= 15 and ast.parse(source)


def test_badge_and_cell_name_the_address_of_settings_ini(tmp_path):
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nuser = ada\nrepo = engine\n")
    badge, cell = badge_and_cell("01_data/03_turns.ipynb", tmp_path)
    assert "github/ada/engine/blob/skeleton/nbs/01_data/03_turns.ipynb" in badge
    assert "https://github.com/ada/engine" in cell
    here = f"{settings()['user']}/{settings()['repo']}"
    assert here not in badge + cell
