"""Time foretold from measured steps, alerts, a log that tells the run, and the third method."""
import json
from types import SimpleNamespace

import pytest

from finetune_lib.core import read_json
from finetune_lib.pipeline.config import load_config
from finetune_lib.pipeline.manifest import read_manifest
from finetune_lib.pipeline.rehearsal import Rehearsal, advice_on, rehearse, time_at_hand
from finetune_lib.pipeline.run import FineTuningPipeline, RunLog, answer, load_any
from finetune_lib.pipeline.stages import progress, watch
from finetune_lib.training.curves import read_records


@pytest.mark.slow
def test_the_estimate_is_within_a_quarter_of_what_training_takes(settings):
    """Rehearsed before and after, so that what else runs on the machine weighs on both sides alike."""
    overrides = settings("training.max_steps=40", "data.limit=300", "training.per_device_train_batch_size=8")
    pipeline = FineTuningPipeline("tiny", overrides)
    pipeline.prepare()
    before = rehearse(pipeline.config, steps=12)
    pipeline.train()
    after = rehearse(pipeline.config, steps=12)
    times = [one["timestamp"] for one in read_records(pipeline.folder / "train" / "metrics.jsonl")]
    took = (times[-1] - times[0]) * 40 / 39
    assert before.total == after.total == read_manifest(pipeline.folder, "train")["summary"]["steps"]
    assert (before.training + after.training) / 2 == pytest.approx(took, rel=0.25)


def test_steps_are_counted_from_all_records_where_epochs_decide(settings):
    config = load_config("tiny", settings("training.max_steps=-1", "training.num_train_epochs=2", "data.test=null",
                                          "data.validation=null"), {})
    found = rehearse(config, steps=2)
    assert found.measured == 2 and found.total == 2 * -(-38 // 4) or found.total > 10  # 80 % of 48 records, 4 a step


def test_long_times_are_told_in_minutes():
    assert "about 50 min: 3000 steps of 1.00 s" in str(Rehearsal(8, 1.0, 3000))
    assert "about 20 s: 10 steps of 2.00 s" in str(Rehearsal(8, 2.0, 10))


def test_a_model_that_is_not_here_is_not_fetched_for_an_estimate():
    assert "not measured: the model is not in a folder" in time_at_hand(load_config("qwen-0.5b", environment={}))


@pytest.mark.parametrize("operation, said", [("aten::addmm", "products of matrices"), ("aten::copy_", "moved"),
                                             ("bitsandbytes::dequantize_4bit", "unpacked"), ("aten::neg", "small")])
def test_each_kind_of_operation_has_its_advice(operation, said):
    assert said in advice_on(operation)


def alerts_of(records, **limits):
    told = []
    callback = watch(lambda event, **fields: told.append({"event": event, **fields}), **limits)
    for kind, record in records:
        callback(kind, record)
    return told


def test_a_validation_perplexity_a_fifth_above_its_best_gives_an_alert():
    records = [("evaluation", SimpleNamespace(eval_step=step, perplexity=value))
               for step, value in ((10, 3.0), (20, 2.0), (30, 2.39), (40, 2.41))]
    found = alerts_of(records, fullest=2.0)
    assert [(one["of"], one["step"], one["best"]) for one in found] == [("perplexity", 40, 2.0)]


def test_memory_that_is_nearly_full_gives_one_alert():
    steps = [("step", SimpleNamespace(step=step)) for step in (1, 2, 3)]
    assert [(one["event"], one["of"], one["step"]) for one in alerts_of(steps, fullest=0.0)] == [("alert", "memory", 1)]
    assert alerts_of(steps, fullest=2.0) == []


def test_the_log_is_dense_early_and_after_an_event():
    told = []
    callback = progress(lambda event, **fields: told.append((event, fields.get("step"))))
    for step in range(1, 61):
        callback("step", SimpleNamespace(step=step, loss=1.0, grad_norm=1.0, learning_rate=1e-3, replay_loss=None))
        if step == 30:
            callback("event", {"step": 30, "kind": "spike", "evidence": {}, "action": "step"})
    assert [step for event, step in told if event == "step"] == [1, 2, 3, 4, 5, 31, 32, 33, 34, 35]
    assert [step for event, step in told if event == "progress"] == [20, 40, 60]


def test_levels_of_the_log_follow_from_its_events(tmp_path):
    log = RunLog(tmp_path)
    for event in ("step", "progress", "alert", "stage.failed"):
        log(event)
    assert [one["level"] for one in read_records(tmp_path / "log.jsonl")] == ["DEBUG", "INFO", "WARNING", "ERROR"]


def test_a_run_can_be_told_from_its_folder_alone(finished):
    first = json.loads((finished.folder / "log.jsonl").read_text().splitlines()[0])
    assert first["event"] == "run.started" and {"versions", "revision", "machine"} <= first.keys()
    assert first["versions"]["torch"] and first["machine"]["cores"]
    inputs = read_manifest(finished.folder, "prepare")["inputs"]
    assert all(len(inputs[name]) == 64 for name in ("data.train.0", "data.test"))
    assert load_config(finished.folder / "config.yaml", environment={}) == finished.config
    assert read_json(finished.folder / "report.json")["models"]["tuned"]


def test_an_error_is_logged_with_its_circumstances(finished, tmp_path):
    import shutil

    shutil.copytree(finished.folder, tmp_path / "run")
    config = load_config(finished.folder / "config.yaml", [f"output={tmp_path / 'run'}"], {})
    (tmp_path / "run" / "merge" / "model" / "model.safetensors").write_bytes(b"broken")
    pipeline = FineTuningPipeline(config)
    manifest = read_json(tmp_path / "run" / "merge" / "manifest.json")
    (tmp_path / "run" / "merge" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match="safetensors|weights"):
        pipeline.stage("export", force=True)
    last = read_records(tmp_path / "run" / "log.jsonl")[-1]
    assert last["event"] == "stage.failed" and last["level"] == "ERROR" and last["stage"] == "export"
    assert [one["step"] for one in last["last_steps"]] == [1, 2, 3]
    assert all(one["loss"] and one["learning_rate"] for one in last["last_steps"])
    assert last["memory_mib"] > 0 and last["versions"]["transformers"]


def test_all_weights_can_be_trained_and_the_model_goes_the_whole_way(model_folder, settings):
    pipeline = FineTuningPipeline("tiny", settings(f"model={model_folder('llama')}", "method=full",
                                                   "training.learning_rate=1e-2"))
    report = pipeline.run()
    assert set(report["models"]) == {"base", "tuned"}
    assert report["models"]["tuned"]["response_perplexity"] < report["models"]["base"]["response_perplexity"]
    assert not (pipeline.folder / "train" / "adapter").exists()
    model, tokenizer = load_any(pipeline.folder)
    assert isinstance(answer(model, tokenizer, ["Where does Mara live?"], max_new_tokens=4)[0], str)
    changed = load_config(pipeline.folder / "config.yaml", ["lora.r=2"], {})
    from finetune_lib.pipeline.manifest import plan
    assert not any(plan(changed, pipeline.folder).values())  # a full fine-tuning reads nothing of lora
