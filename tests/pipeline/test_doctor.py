"""The doctor: each symptom is provoked in a copy of a finished run, and named."""
import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from finetune_lib.core import read_json, write_json
from finetune_lib.pipeline.doctor import adapter_size, check_four_bits, check_packages, examine_run


def metrics(folder, **columns):
    """Write a training's records with these columns."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    (folder / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def interrupted(folder):
    (folder / "train.partial").mkdir()


def edited(folder):
    (folder / "evaluate" / "evaluation.json").write_text("{")


def losing(folder):
    path = folder / "prepare" / "accounting.json"
    value = read_json(path)
    value["files"]["train"] |= {"read": 100, "kept": 10, "quarantined": {"too_long": 90}}
    write_json(path, value)


def leaking(folder):
    path = folder / "prepare" / "accounting.json"
    write_json(path, read_json(path) | {"leaked": ["test-1"]})


def untrained(folder):
    metrics(folder, step=[1, 2], loss=[7.6, 7.5], grad_norm=[1.0, 1.0])


def stuck(folder):
    metrics(folder, step=range(30), loss=[3.0] * 30, grad_norm=[1.0] * 30)


def jumping(folder):
    metrics(folder, step=range(30), loss=[3 - 0.1 * n for n in range(30)], grad_norm=[1.0] * 20 + [50.0] * 10)


def idle(folder):
    path = folder / "train" / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor * ("lora_B" not in name) for name, tensor in load_file(path).items()}, path)


def memorized(folder):
    losses = [1.0, 0.5, 0.9]
    text = "".join(json.dumps({"eval_loss": loss}) + "\n" for loss in losses)
    (folder / "train" / "evaluations.jsonl").write_text(text)


def answering(folder, **changed):
    """Change every answer of the tuned model."""
    path = folder / "evaluate" / "evaluation.json"
    value = read_json(path)
    for one in value["tasks"]["predictions"]:
        one.update(changed)
    write_json(path, value)


SICK = [(interrupted, "a stage did not finish"), (edited, "changed after they were written"),
        (losing, "many rows were not used"),
        (leaking, "held-out questions stand in the training data"), (untrained, "starts like an untrained model"),
        (stuck, "nothing was learned"), (jumping, "gradients jump"), (idle, "adapters that never moved"),
        (memorized, "learned by heart"), (lambda folder: answering(folder, stopped=False), "the answers do not stop"),
        (lambda folder: answering(folder, prediction=""), "empty answers")]


@pytest.mark.parametrize("harm, symptom", SICK, ids=[symptom.replace(" ", "-") for _, symptom in SICK])
def test_each_symptom_is_named(finished, tmp_path, harm, symptom):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    harm(folder)
    found = [finding for finding in examine_run(folder) if symptom in finding.symptom]
    assert len(found) == 1 and found[0].evidence and found[0].cause and found[0].fix


def test_the_libraries_of_this_environment_are_in_the_tested_range():
    assert [finding for finding in check_packages() if finding.level != "ok"] == []
    assert check_four_bits().level == "ok"


def test_an_adapter_has_r_times_in_plus_out_parameters():
    one, two = (adapter_size(choice="all-linear", rank=rank)["all"][1] for rank in (4, 8))
    assert two == 2 * one
