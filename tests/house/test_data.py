"""What lies in data/ is what its scripts make, and what its README says."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_lib.core import sha256

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder in which the scripts have made text and instructions again."""
    folder = tmp_path_factory.mktemp("again") / "data"
    shutil.copytree(DATA / "make", folder / "make")
    subprocess.run([sys.executable, "-m", "make.files"], cwd=folder, check=True, capture_output=True)
    return folder


def sums(data: Path, folder: str) -> dict[str, str]:
    """SHA-256 of each file below a folder of data/, by its path in data/."""
    files = [path for path in sorted((data / folder).rglob("*")) if path.is_file()]
    return {str(path.relative_to(data)): sha256(path) for path in files}


@pytest.mark.parametrize("folder", ["instructions", "text"])
def test_text_and_instructions_come_out_byte_for_byte(made, folder):
    assert sums(made, folder) == sums(DATA, folder), "in data/, run: python -m make.files"


def test_the_checksums_in_the_readme_of_data_are_those_of_the_files():
    text = (DATA / "README.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"([\w./-]+\.\w+)`?[^\n]*?\b([0-9a-f]{64})\b", text))
    assert {"base/model.safetensors", "instructions/train.jsonl", "text/general.jsonl"} <= set(told)
    assert told == {name: sha256(DATA / name) for name in told}


def test_the_base_model_is_small_safe_and_stored_in_16_bits():
    from safetensors import safe_open

    files = [path for path in (DATA / "base").iterdir()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    assert not [path.name for path in files if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    with safe_open(DATA / "base/model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} <= {"BF16", "F16"}


def test_the_adapters_of_the_lessons_are_of_this_base_and_the_longer_trained_one_is_better():
    from finetune_lib.core import base_model, load_tokenizer, read_json
    from finetune_lib.data.chat import tokenize_all
    from finetune_lib.data.records import load_conversations
    from finetune_lib.lora.adapter import load_adapter
    from finetune_lib.qlora.loading import load_base
    from finetune_lib.training.step import evaluation_loss

    tokenizer = load_tokenizer(base_model())
    samples, _ = tokenize_all(load_conversations(DATA / "instructions/validation.jsonl")[0][:100], tokenizer)
    losses = [evaluation_loss(load_base(base_model()), samples, tokenizer.pad_token_id)]
    for steps in (60, 120):
        folder = DATA / "adapters" / f"{steps}-steps"
        assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] == "data/base"
        assert read_json(folder / "training.json")["max_steps"] == steps
        model = load_adapter(load_base(base_model()), folder)  # refuses one of another base: run make.tuned again
        losses.append(evaluation_loss(model, samples, tokenizer.pad_token_id))
    assert losses == sorted(losses, reverse=True), losses
