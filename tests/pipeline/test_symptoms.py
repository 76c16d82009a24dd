"""Each symptom is provoked in a copy of a run that worked, and is named; that run itself shows none."""
import json
import math
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from finetune_lib.core import read_json, write_json
from finetune_lib.pipeline.doctor import examine_run, symptom_table
from finetune_lib.pipeline.manifest import STAGES, file_hashes
from finetune_lib.pipeline.outcomes import SYMPTOMS
from finetune_lib.pipeline.reading import read_tokens, write_tokens

STEPS = 60
USUAL = {"step": range(1, STEPS + 1), "loss": [0.3 + 3 * 0.93**step for step in range(STEPS)],
         "grad_norm": [1.0] * STEPS, "epoch": [0.05 * step for step in range(STEPS)],
         "learning_rate": [0.001] * STEPS, "tokens_per_second": [1000.0] * STEPS, "skipped": [False] * STEPS}


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def metrics(folder, **columns):
    """A training's records: those of a run that worked, with some columns changed."""
    columns = {**USUAL, **columns}
    lines(folder / "train" / "metrics.jsonl", [dict(zip(columns, row, strict=True)) for row in
                                               zip(*columns.values(), strict=True)])


def event(folder, kind, **evidence):
    lines(folder / "train" / "events.jsonl", [{"step": 7, "kind": kind, "evidence": evidence, "action": "skip"}])


def log(folder, *records):
    with open(folder / "log.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def summary(folder, stage, **values):
    path = folder / stage / "manifest.json"
    found = read_json(path)
    write_json(path, found | {"summary": found["summary"] | values})


def setting(folder, name, value):
    """A setting, in the configuration and in every manifest: as if the run had been made with it."""
    path, (section, _, key) = folder / "config.yaml", name.rpartition(".")
    values = yaml.safe_load(path.read_text())
    (values[section] if section else values)[key] = value
    path.write_text(yaml.safe_dump(values))
    for manifest in folder.glob("*/manifest.json"):
        found = read_json(manifest)
        found["inputs"] |= {name: value} if name in found["inputs"] else {}
        write_json(manifest, found)


def answers(folder, change, stage="evaluate", **means):
    """Change every answer of a model, and its mean scores."""
    path = folder / stage / "evaluation.json"
    value = read_json(path)
    value["tasks"]["predictions"] = [one | change(one) for one in value["tasks"]["predictions"]]
    value["tasks"]["means"] |= means
    write_json(path, value)


def samples(folder, change):
    path = folder / "prepare" / "train.parquet"
    write_tokens(path, [change(sample) for sample in read_tokens(path)])


def adapter(folder, change):
    """Change the tensors of the adapter: {name: tensor} → {name: tensor}."""
    path = folder / "train" / "adapter" / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def accounting(folder, **values):
    path = folder / "prepare" / "accounting.json"
    found = read_json(path)
    found["files"]["train"] |= values.pop("train", {})
    write_json(path, found | values)


def seal(folder):
    """Manifests that fit the files again, so that only what a symptom looks for is wrong."""
    for name in STAGES:
        found = read_json(folder / name / "manifest.json")
        write_json(folder / name / "manifest.json", found | {"outputs": file_hashes(folder / name)})


@pytest.fixture(scope="module")
def worked(finished, tmp_path_factory):
    """The small run of `finished`, with the records and answers that a longer one leaves."""
    folder = tmp_path_factory.mktemp("worked") / "run"
    shutil.copytree(finished.folder, folder)
    metrics(folder)
    path = folder / "prepare" / "train.parquet"
    write_tokens(path, 2 * read_tokens(path))
    summary(folder, "train", steps=STEPS)
    summary(folder, "baseline", questions=200)
    answers(folder, lambda one: {"prediction": one["reference"], "stopped": True}, rouge_l=1.0)
    seal(folder)
    return folder


def flipped(change):
    return lambda folder: adapter(folder, lambda found: {name: change(name, tensor) for name, tensor in found.items()})


def forgetting(folder):
    for stage, nll in (("baseline", 100.0), ("evaluate", 200.0)):
        path = folder / stage / "evaluation.json"
        write_json(path, read_json(path) | {"general": {"nll": nll, "tokens": 100, "by_category": {}}})


def qlora(folder, **more):
    setting(folder, "method", "qlora")
    for name, value in more.items():
        setting(folder, name.replace("__", "."), value)


def costly(folder):
    """A base that reads the answers at 2 nats a token in full, and begins training at 6 in 4 bits."""
    qlora(folder)
    path = folder / "baseline" / "evaluation.json"
    write_json(path, read_json(path) | {"response": {"nll": 200.0, "tokens": 100, "by_category": {}}})
    metrics(folder, loss=[6.0 * 0.97**step for step in range(STEPS)])


def without_stop(folder):
    for name in ("generation_config.json", "config.json"):
        path = folder / "export" / "huggingface" / name
        write_json(path, read_json(path) | {"eos_token_id": None})


def older(folder):
    path = folder / "train" / "manifest.json"
    found = read_json(path)
    write_json(path, found | {"versions": found["versions"] | {"torch": "1.13"}})


def late(folder):
    metrics(folder, learning_rate=[0.001 * step / STEPS for step in range(STEPS)])


def evaluations(folder, *losses):
    lines(folder / "train" / "evaluations.jsonl", [{"eval_step": 20 * n, "eval_loss": x} for n, x in enumerate(losses)])


def stop_of(folder):
    return read_json(folder / "evaluate" / "evaluation.json")["tasks"]["protocol"]["stop_ids"]


def unlabeled_stop(folder):
    stop = stop_of(folder)
    samples(folder, lambda one: replace(one, labels=[-100 if label in stop else label for label in one.labels]))


def one_answer(folder):
    first = read_tokens(folder / "prepare" / "train.parquet")[0]
    samples(folder, lambda one: replace(one, input_ids=first.input_ids, labels=first.labels))


def half_of_it(folder):
    path = folder / "prepare" / "train.parquet"
    write_tokens(path, read_tokens(path)[:10])


HARM = {  # symptom → what is done to the folder
    "a stage did not finish": lambda folder: (folder / "train.partial").mkdir(),
    "a stage failed": lambda folder: log(folder, {"event": "stage.failed", "stage": "merge", "error": "ExportError",
                                                  "message": "disk full"}),
    "results belong to other settings": lambda folder: (folder / "config.yaml").write_text(
        (folder / "config.yaml").read_text().replace("r: 8", "r: 16")),
    "many rows were not used": lambda folder: accounting(
        folder, train={"read": 100, "kept": 10, "quarantined": {"too_long": 90}}),
    "held-out questions stand in the training data": lambda folder: accounting(folder, leaked=["test-1"]),
    "little to train on": half_of_it,
    "no validation data watches the training": lambda folder: summary(folder, "prepare", validation=0),
    "the prompts are trained on": lambda folder: samples(folder, lambda one: replace(one, labels=one.input_ids)),
    "the stop token carries no label": unlabeled_stop,
    "samples begin with the same token twice": lambda folder: samples(folder, lambda one: replace(
        one, input_ids=[one.input_ids[0], *one.input_ids], labels=[-100, *one.labels])),
    "many samples are cut at the length limit": lambda folder: setting(folder, "data.max_length", 20),
    "one answer fills the training data": one_answer,
    "too few held-out questions to believe a score": lambda folder: summary(folder, "baseline", questions=5),
    "held-out questions were left out": lambda folder: summary(folder, "baseline", left_out=100),
    "training starts like an untrained model": lambda folder: metrics(
        folder, loss=[7.6 - 0.1 * n for n in range(STEPS)]),
    "the answers were known before training": lambda folder: metrics(
        folder, loss=[0.1 / n for n in range(1, STEPS + 1)]),
    "nothing was learned": lambda folder: metrics(folder, loss=[3.0] * STEPS),
    "loss or gradient was not a number": lambda folder: metrics(folder, grad_norm=[None] + [1.0] * (STEPS - 1)),
    "gradients jump": lambda folder: metrics(folder, grad_norm=[0.1] * 50 + [4.0] * 10),
    "nearly every gradient was shortened to a small part": lambda folder: metrics(folder, grad_norm=[50.0] * STEPS),
    "training was rolled back": lambda folder: event(folder, "rolled_back", to="checkpoint-000005"),
    "steps were left out": lambda folder: metrics(folder, skipped=[True] * 5 + [False] * (STEPS - 5)),
    "hardly any steps were made": lambda folder: summary(folder, "train", steps=3),
    "most of the run was warm-up": late,
    "the learning rate is too low for LoRA": lambda folder: setting(folder, "training.learning_rate", 1e-6),
    "learned by heart: the held-out loss rises again": lambda folder: evaluations(folder, 1.0, 0.5, 0.9),
    "the same data was seen many times": lambda folder: metrics(folder, epoch=range(STEPS)),
    "training became much slower": lambda folder: metrics(folder, tokens_per_second=[1000.0] * 40 + [100.0] * 20),
    "memory was nearly full": lambda folder: log(folder, {"event": "alert", "of": "memory", "share": 0.97, "step": 9}),
    "settings changed in the middle of training": lambda folder: event(folder, "changed_setting", seed=[1, 2]),
    "a checkpoint was broken": lambda folder: event(folder, "broken_checkpoint", name="checkpoint-5", reason="cut off"),
    "adapters that never moved": flipped(lambda name, tensor: tensor * ("lora_B" not in name)),
    "an adapter holds values that are not finite": flipped(lambda name, tensor: tensor + math.nan),
    "an adapter has exploded": flipped(lambda name, tensor: torch.full_like(tensor, 50.0)),
    "an adapter has a matrix without its partner": lambda folder: adapter(
        folder, lambda found: dict(sorted(found.items())[1:])),
    "the adapter's scale is out of the usual": lambda folder: setting(folder, "lora.lora_alpha", 512),
    "the adapter belongs to another base": lambda folder: write_json(
        folder / "train/adapter/adapter_config.json", {"base_model_name_or_path": "somebody/else"}),
    "quantization costs too much": costly,
    "the 4-bit type is the less exact one": lambda folder: qlora(folder, quantization__quant_type="fp4"),
    "float16 overflows": lambda folder: (setting(folder, "training.mixed_precision", "fp16"), setting(
        folder, "training.use_cpu", False), event(folder, "nan_gradient")),
    "float16 on a processor": lambda folder: setting(folder, "model.dtype", "float16"),
    "the merged model answers otherwise": lambda folder: summary(folder, "merge", equal_answers=0.5),
    "the tuned model is no better": lambda folder: answers(folder, lambda one: {}, rouge_l=0.0),
    "the answers do not stop": lambda folder: answers(folder, lambda one: {"stopped": False}),
    "empty answers": lambda folder: answers(folder, lambda one: {"prediction": ""}),
    "all questions get the same answer": lambda folder: answers(folder, lambda one: {"prediction": "I do not know."}),
    "the answers run in circles": lambda folder: answers(
        folder, lambda one: {"prediction": one["reference"] + " and so on" * 5}),
    "the answers contain marks of the template": lambda folder: answers(
        folder, lambda one: {"prediction": one["reference"] + "<|user|>"}),
    "the model forgot": forgetting,
    "validation perplexity rose by a fifth": lambda folder: log(
        folder, {"event": "alert", "of": "perplexity", "best": 2.0, "now": 2.5, "step": 40}),
    "base and tuned model were asked different questions": lambda folder: answers(
        folder, lambda one: {"id": "other-" + one["id"]}),
    "the exported template is not the trained one": lambda folder: (
        folder / "export/huggingface/chat_template.jinja").write_text("{{ messages }}"),
    "the exported model has no stop token": without_stop,
    "stages were made with different versions": older,
}


def named(folder):
    return sorted(finding.symptom for finding in examine_run(folder))


def test_a_run_that_worked_shows_no_symptom(worked):
    assert [finding.level for finding in examine_run(worked)] == ["ok"], named(worked)


@pytest.mark.parametrize("symptom", HARM, ids=[name.replace(" ", "-") for name in HARM])
def test_each_symptom_is_named_alone(worked, tmp_path, symptom):
    folder = tmp_path / "run"
    shutil.copytree(worked, folder)
    HARM[symptom](folder)
    seal(folder)
    found = examine_run(folder)
    assert [finding.symptom for finding in found] == [symptom]
    assert found[0].evidence and found[0].cause and found[0].fix and found[0].level != "ok"


def test_an_edited_result_is_named_and_what_it_hides_too(worked, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(worked, folder)
    (folder / "evaluate" / "evaluation.json").write_text("{")
    found = {finding.symptom: finding for finding in examine_run(folder)}
    assert set(found) == {"results were changed after they were written", "evidence that cannot be read"}
    assert "evaluation.json" in found["evidence that cannot be read"].evidence


def test_every_symptom_is_provoked_here_and_stands_in_the_table():
    provoked = {*HARM, "results were changed after they were written"}
    assert {one.name for one in SYMPTOMS} == provoked and len(SYMPTOMS) >= 30
    assert Counter(one.part for one in SYMPTOMS).keys() == {"data", "loop", "adapter", "quantization", "export"}
    rows = symptom_table().splitlines()[2:]
    assert len(rows) == len(SYMPTOMS) and all(row.count(" | ") == 3 for row in rows)


def test_a_run_that_has_only_begun_can_be_examined(worked, tmp_path):
    (tmp_path / "config.yaml").write_text((worked / "config.yaml").read_text())
    assert [finding.level for finding in examine_run(tmp_path)] == ["ok"]
