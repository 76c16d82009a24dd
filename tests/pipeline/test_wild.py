"""Files as they are found: every row is accounted for, and what is kept can be trained on."""
import json
from pathlib import Path

import pytest

from finetune_lib.core import read_json
from finetune_lib.pipeline.command import main
from finetune_lib.pipeline.run import FineTuningPipeline

WILD = Path(__file__).parents[3] / "shared" / "data" / "wild"
needs_wild = pytest.mark.skipif(not WILD.is_dir(), reason=f"{WILD} is not on this machine")
FORMATS = {"alpaca_en_demo.json": "alpaca", "identity.json": "alpaca", "glaive_toolcall_en_demo.json": "sharegpt",
           "self_instruct_seed_tasks.jsonl": "self-instruct"}


def rows(path: Path) -> int:
    text = path.read_text(encoding="utf-8")
    return len(json.loads(text)) if path.suffix == ".json" else len(text.splitlines())


@needs_wild
@pytest.mark.parametrize("name", FORMATS)
def test_explain_names_the_format_and_every_row(name, capsys):
    assert main(["prepare", "--explain", str(WILD / name), "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert [one["format"] for one in account["recognized"]] == [FORMATS[name]]
    lost = sum(account["quarantined"].values()) + sum(account["removed"].values())
    assert account["read"] == account["kept"] + lost and account["read"] >= rows(WILD / name) and account["kept"] > 0


@needs_wild
def test_running_text_is_refused_with_its_columns_and_the_sum(capsys):
    assert main(["prepare", "--explain", str(WILD / "c4_120.jsonl")]) == 3
    captured = capsys.readouterr()
    assert "120 = 0 + 120 + 0" in captured.out and "recognized as text" in captured.out
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 3


@needs_wild
@pytest.mark.parametrize("name", [name for name in FORMATS if name.endswith(".json")])
def test_a_file_as_found_is_prepared_and_trained_on(name, settings):
    overrides = settings(f"data={WILD / name}", "data.validation=null", "data.test=null", "data.limit=null")
    pipeline = FineTuningPipeline("tiny", overrides)
    summary = pipeline.prepare()["summary"]
    account = read_json(pipeline.folder / "prepare" / "accounting.json")["files"]["train"]
    quarantined = (pipeline.folder / "prepare" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    assert account["read"] == rows(WILD / name)
    assert account["kept"] == summary["train"] + summary["validation"] + summary["test"] > 20
    assert len(quarantined) == sum(account["quarantined"].values())
    assert account["read"] == account["kept"] + len(quarantined) + sum(account["removed"].values())
    assert pipeline.train()["summary"]["steps"] == 3


@needs_wild
def test_a_longer_answer_can_be_cut_by_policy_and_is_not_lost(capsys):
    command = ["prepare", "--explain", str(WILD / "identity.json"), "--json", "--set", "data.max_length=48"]
    kept = []
    for policy in ("reject", "truncate_response"):
        assert main([*command, "--set", f"data.overlong={policy}"]) == 0
        account = json.loads(capsys.readouterr().out)
        lost = sum(account["quarantined"].values()) + sum(account["removed"].values())
        assert account["read"] == account["kept"] + lost
        kept.append(account["kept"])
    assert kept[0] < kept[1]
