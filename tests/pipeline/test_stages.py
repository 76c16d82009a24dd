"""Stages: nothing twice, nothing half, and a change runs exactly what depends on it."""
import json
import os
import shutil
import signal

import pytest
from safetensors.torch import load_file

from finetune_lib.core import ConfigError, DataError, ExportError, read_json, sha256
from finetune_lib.pipeline import stages
from finetune_lib.pipeline.config import FinetuneConfig, load_config
from finetune_lib.pipeline.manifest import STAGES, plan
from finetune_lib.pipeline.run import FineTuningPipeline, share


def run_again(finished, *changed):
    """Names of the stages that a second run of the same folder would do with these settings changed."""
    values = finished.config.model_dump()
    for section, name, value in changed:
        values[section] = value if name is None else {**values[section], name: value}
    reasons = plan(FinetuneConfig.model_validate(values), finished.folder)
    return [stage for stage in STAGES if reasons[stage]]


def test_a_second_run_does_nothing(finished):
    seen = []
    again = FineTuningPipeline(finished.config, listen=seen.append)
    again.run()
    assert [record["event"] for record in seen] == ["run.started", *["stage.skipped"] * len(STAGES)]


def test_a_moved_file_changes_nothing_and_an_edited_one_does(finished, tmp_path):
    source = finished.config.data.train[0]
    shutil.copy(source, tmp_path / "elsewhere.jsonl")
    moved = ("data", "train", (str(tmp_path / "elsewhere.jsonl"),))
    assert run_again(finished, moved) == []
    with open(tmp_path / "elsewhere.jsonl", "a") as file:
        file.write("\n")
    assert run_again(finished, moved)[0] == "prepare"


def test_a_damaged_result_is_made_again(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "copy")
    (tmp_path / "copy" / "merge" / "model" / "config.json").write_text("{}")
    reasons = plan(finished.config, tmp_path / "copy")
    assert reasons["merge"] == ["model/config.json is damaged"] and not reasons["train"] and reasons["export"]


def test_a_failed_stage_leaves_the_old_result_whole(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    before = read_json(folder / "evaluate" / "manifest.json")
    (folder / "train" / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises((ConfigError, FileNotFoundError)):
        stages.evaluate(finished.config, folder, force=True)
    assert read_json(folder / "evaluate" / "manifest.json") == before


def test_a_stage_without_what_it_needs_says_which_to_run_first(tmp_path, settings):
    with pytest.raises(ConfigError, match="run prepare first"):
        stages.train(load_config(None, settings(), {}), tmp_path)


def interrupt(event, **fields):
    """A log that presses Ctrl-C at the first report of the loop, which comes at step 20."""
    if event == "progress":
        os.kill(os.getpid(), signal.SIGINT)


def test_training_that_was_stopped_goes_on_and_ends_the_same(finished, settings):
    runs = {name: FineTuningPipeline("tiny", settings("training.max_steps=24", folder=name))
            for name in ("whole", "stopped")}
    for pipeline in runs.values():
        share(finished.folder, pipeline.folder, ["prepare"])
    stopped = runs["stopped"]
    with pytest.raises(KeyboardInterrupt, match="after step 20"):
        stages.train(stopped.config, stopped.folder, log=interrupt)
    assert not (stopped.folder / "train").exists()
    adapters = []
    for pipeline in runs.values():
        pipeline.train()
        adapters.append(load_file(pipeline.folder / "train" / "adapter" / "adapter_model.safetensors"))
    assert all((adapters[1][name] == tensor).all() for name, tensor in adapters[0].items())


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, with its configuration."""
    shutil.copytree(finished.folder, tmp_path / "copy")
    return load_config(finished.folder / "config.yaml", [f"output={tmp_path / 'copy'}"], {})


def test_a_metric_that_fails_is_told_in_the_report_and_costs_no_model(copied, tmp_path, monkeypatch):
    from finetune_lib.evaluation import compare

    def broken(*arguments, **options):
        raise DataError("ROUGE-L must be computed, got an answer without words; mend the metric")

    monkeypatch.setattr(compare, "evaluate_instructions", broken)
    shutil.rmtree(tmp_path / "copy" / "merge")
    with pytest.raises(DataError, match="ROUGE-L"):
        FineTuningPipeline(copied).run("evaluate")
    report = read_json(tmp_path / "copy" / "report.json")
    assert "ROUGE-L" in report["failed"]["evaluate"] and set(report["models"]) == {"base"}
    assert "ROUGE-L" in (tmp_path / "copy" / "report.html").read_text()
    for left in ("train/adapter/adapter_model.safetensors", "merge/model/model.safetensors"):
        assert (tmp_path / "copy" / left).is_file()


def test_an_export_that_fails_is_told_in_the_report_and_the_merged_model_stays(copied, tmp_path, monkeypatch):
    from finetune_lib.evaluation import export

    def broken(*arguments, **options):
        raise ExportError("the folder must answer alike, got other answers; export it again")

    monkeypatch.setattr(export, "export_huggingface", broken)
    with pytest.raises(ExportError, match="alike"):
        FineTuningPipeline(copied).run("export")
    report = read_json(tmp_path / "copy" / "report.json")
    assert "alike" in report["failed"]["export"] and set(report["models"]) == {"base", "tuned"}
    assert (tmp_path / "copy" / "merge/model/model.safetensors").is_file()


def test_every_number_of_the_report_stands_in_a_stage_file(finished):
    report = read_json(finished.folder / "report.json")
    for name, stage in (("base", "baseline"), ("tuned", "evaluate")):
        saved = read_json(finished.folder / stage / "evaluation.json")
        assert report["models"][name]["exact_match"] == saved["tasks"]["means"]["exact_match"]
        assert set(report["models"][name]) >= {"exact_match", "rouge_l", "response_perplexity", "general_perplexity",
                                               "families"}
    assert set(report["seconds"]) == set(STAGES)
    assert report["data"]["train"]["read"] == 48


def test_the_log_is_json_lines_with_time_and_event(finished):
    records = [json.loads(line) for line in (finished.folder / "log.jsonl").read_text().splitlines()]
    assert all({"time", "event"} <= set(record) for record in records)
    assert [record["stage"] for record in records if record["event"] == "stage.finished"][:6] == list(STAGES)


def test_the_exported_folder_answers_in_plain_transformers(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished.folder / "export" / "huggingface"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    chat = [{"role": "user", "content": "Where does Mara live?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert model.generate(**inputs, max_new_tokens=4).shape[1] > inputs["input_ids"].shape[1]


def test_data_without_a_usable_row_stops_at_the_door(settings, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"instruction": "", "output": ""}\n')
    pipeline = FineTuningPipeline("tiny", settings(f"data={tmp_path / 'bad.jsonl'}"))
    with pytest.raises(DataError, match="nothing is left to train on: 1 read"):
        pipeline.run()


def test_an_export_says_where_it_comes_from(finished):
    folder = finished.folder / "export" / "huggingface"
    lineage, card = read_json(folder / "manifest.json")["lineage"], (folder / "README.md").read_text(encoding="utf-8")
    files = {"trained": ("train", "adapter/adapter_model.safetensors"), "merged": ("merge", "model/model.safetensors")}
    for kind, (stage, name) in files.items():
        assert lineage[kind][name] == sha256(finished.folder / stage / name) and lineage[kind][name] in card
    assert lineage["settings_and_files"]["data.train.0"] == sha256(finished.config.data.train[0])
    assert lineage["settings_and_files"]["lora.r"] == finished.config.lora.r and "torch" in lineage["versions"]
