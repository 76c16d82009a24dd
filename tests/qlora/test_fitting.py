"""The estimate against real trainings: what is measured, how, and what was found."""
import json
from dataclasses import replace

import pytest

from finetune_lib.core import data_folder, read_json
from finetune_lib.pipeline.command import main
from finetune_lib.pipeline.probing import MIB, POINTS, Point, estimated_peak, measured_peak, validate
from finetune_lib.qlora.probe import smaller


def test_the_points_cover_methods_lengths_batches_and_checkpointing_and_are_large_enough():
    assert len(POINTS) == len(set(POINTS)) >= 12
    assert {point.method for point in POINTS} == {"full", "lora", "qlora"}
    assert {128, 2048} <= {point.length for point in POINTS} and {1, 16} <= {point.batch for point in POINTS}
    for method in ("full", "lora", "qlora"):
        assert {point.checkpointing for point in POINTS if point.method == method} == {True, False}
    assert {point.checkpointing for point in POINTS if point.bits == 8} == {True, False}
    assert min(estimated_peak(point) for point in POINTS) >= 256 * MIB


def test_the_stored_study_is_of_these_points_with_errors_within_the_target():
    study = read_json(data_folder() / "studies" / "memory.json")
    fields = ("shape", "method", "batch", "length", "checkpointing", "bits")
    assert [Point(**{name: row[name] for name in fields}) for row in study["points"]] == POINTS
    for row in study["points"]:
        assert row["measured_bytes"] >= 256 * MIB
        assert estimated_peak(Point(**{name: row[name] for name in fields})) == row["estimated_bytes"]
    errors = sorted(abs(row["estimated_bytes"] / row["measured_bytes"] - 1) for row in study["points"])
    assert errors[-1] <= 0.10 and errors[len(errors) // 2] <= 0.05


def test_one_probing_step_brings_every_stored_point_within_three_percent_and_is_no_point_itself():
    rows = read_json(data_folder() / "studies" / "memory.json")["points"]
    assert max(abs(row["probed_bytes"] / row["measured_bytes"] - 1) for row in rows) <= 0.03
    assert not {replace(point, **dict(zip(("batch", "length"), smaller(point.batch, point.length), strict=True)))
                for point in POINTS} & set(POINTS)


@pytest.mark.slow
def test_a_training_of_today_is_foretold_to_a_tenth(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("finetune_lib.pipeline.probing.validate",
                        lambda tell: validate(tell, [Point("wide", "qlora", 4, 256)]))
    assert main(["fit", "--validate", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    (row,) = found["points"]
    assert row["method"] == "qlora" and (row["batch"], row["length"], row["checkpointing"]) == (4, 256, False)
    assert abs(row["estimated_bytes"] / row["measured_bytes"] - 1) <= 0.10
    assert abs(row["probed_bytes"] / row["measured_bytes"] - 1) <= 0.03
    assert "1 points: median error" in capsys.readouterr().out


def test_a_training_that_fails_says_which_and_why():
    with pytest.raises(RuntimeError, match=r"method='lorra'.* ended with code 1: .*lorra"):
        measured_peak(Point("course", "lorra", 1, 8))


def test_a_file_in_no_folder_is_refused_before_anything_is_measured(tmp_path, capsys):
    assert main(["fit", "--validate", "--json", str(tmp_path / "nowhere" / "found.json")]) == 2
    assert "must exist before" in capsys.readouterr().err
