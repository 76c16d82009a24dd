"""README's way to a first run of one's own, walked from the first line to the last on a small table."""
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from finetune_lib.core import read_json

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def walk(run, checkout):
    """What each of the ten lines said, in their order; `make demo` has a test of its own."""
    shutil.copy(ROOT / "data/instructions/samples/instructions.csv", checkout / "my_data.csv")
    told_codes = (0, 1)  # doctor ends with 1 where it finds a mistake: sixty rows teach little
    return {
        "activate": run("source .venv/bin/activate"),
        "doctor": run("finetune doctor"),
        "explain": run("finetune prepare --explain my_data.csv"),
        "init": run("finetune init my.yaml --data my_data.csv"),
        "plan": run("finetune run my.yaml --dry-run"),
        "run": run("finetune run my.yaml"),
        "ask": run('finetune generate runs/mine "What is the plural of lamp?"'),
        "examine": run("finetune doctor runs/mine", codes=told_codes),
        "examine as it stands above the table": run("finetune doctor RUN", codes=told_codes, RUN="runs/mine"),
        "fit": run("finetune fit"),
    }


def test_the_demo_leaves_what_readme_says(run, checkout):
    said = run("make demo")
    report = read_json(checkout / "runs/demo/report.json")
    assert set(report["models"]) == {"base", "lora", "qlora"} and "Three answers side by side" in said
    assert report["models"]["lora"]["exact_match"] > 0.9 > 0.1 > report["models"]["base"]["exact_match"]
    for method in ("lora", "qlora"):
        assert (checkout / f"runs/demo/{method}/export/huggingface/model.safetensors").is_file()


def test_each_of_the_ten_lines_says_what_its_comment_promises(walk):
    assert "4 bits" in walk["doctor"] and "disk" in walk["doctor"]
    assert "60 rows recognized as" in walk["explain"] and "kept" in walk["explain"]
    assert "finetune run my.yaml --dry-run" in walk["init"]
    assert all(word in walk["plan"] for word in ("plan", "memory", "training about"))
    assert "exact match" in walk["run"] and "report.html" in walk["run"]
    assert walk["ask"].strip() and walk["examine"] == walk["examine as it stands above the table"]
    assert "total" in walk["fit"]


def test_what_comes_out_is_where_readme_says(walk, checkout):
    text = re.search(r"\*\*What comes out\.\*\*.*", README)[0]
    names = [name for name in re.findall(r"`([^`]+)`", text) if name != "runs/mine"]
    assert len(names) >= 9
    assert [name for name in names if not (checkout / "runs/mine" / name).exists()] == []


def test_the_python_block_is_the_same_run(walk, checkout):
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    check = "print(len(report['models']))"
    done = subprocess.run([checkout / ".venv/bin/python", "-c", f"{code}\n{check}"], cwd=checkout, text=True,
                          capture_output=True, check=True)
    assert done.stdout.split() == ["2"]
