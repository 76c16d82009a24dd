"""What is read, cached and divided: never a stale token, never a row unaccounted for, never a twin on both sides."""
import json
from pathlib import Path

import pytest

from finetune_lib.core import ConfigError, DataError, base_model, data_folder, load_tokenizer, read_json, write_json
from finetune_lib.pipeline import reading, stages
from finetune_lib.pipeline.config import load_config
from finetune_lib.pipeline.manifest import read_manifest
from finetune_lib.pipeline.reading import PARTS, read_data, read_parts, tokenizer_of, vocabulary_of
from finetune_lib.pipeline.run import FineTuningPipeline, share

ALPACA = data_folder() / "instructions" / "samples" / "alpaca.json"
ROWS = json.loads(ALPACA.read_text(encoding="utf-8"))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def settings_of(*overrides):
    return load_config("alpaca", overrides, environment={})


def entries(cache: Path) -> int:
    return len(list(cache.iterdir()))


def read(config, cache=None, tokenizer=None):
    return read_data(config.data.train, config, tokenizer or tokenizer_of(config), cache)


def test_a_second_reading_takes_the_tokens_of_the_first(cache, monkeypatch):
    config = settings_of()
    first = read(config, cache)
    monkeypatch.setattr("finetune_lib.data.cache.tokenize_stream", None)
    assert read(config, cache) == first == read(config) and first.samples


def test_a_changed_template_is_never_served_stale(cache):
    before = read(settings_of(), cache)
    template = load_tokenizer(base_model()).chat_template.replace("' ' + message", "'  ' + message")
    changed = settings_of({"data": {"template": template}})
    after = read(changed, cache)
    assert after == read(changed) and entries(cache) == 2
    assert all(a.input_ids != b.input_ids for a, b in zip(before.samples, after.samples, strict=True))


def test_a_changed_tokenizer_is_never_served_stale(cache):
    config = settings_of()
    before, other = read(config, cache), tokenizer_of(config)
    other.add_tokens([" Mara", " lives"])
    after = read(config, cache, other)
    assert after == read(config, None, other) and entries(cache) == 2
    assert [one.input_ids for one in before.samples] != [one.input_ids for one in after.samples]


def test_changed_content_is_never_served_stale(cache, tmp_path):
    path = tmp_path / "rows.json"
    for number in range(2):
        path.write_text(json.dumps([{**ROWS[0], "output": ROWS[0]["output"] + "!" * number}, *ROWS[1:]]))
        config = settings_of(f"data={path}")
        assert read(config, cache) == read(config)
    assert entries(cache) == 2


def test_a_row_put_aside_for_its_tokens_is_named_with_file_and_line(cache):
    config = settings_of("data.max_length=24")
    for _ in range(2):
        found = read(config, cache)
        named = {(one.file, one.line) for one in found.problems if one.reason == "too_long"}
        assert len(named) == found.accounting.quarantined["too_long"] > 1
        assert {file for file, _ in named} == {ALPACA.name} and min(line for _, line in named) > 0


def test_training_rows_tied_to_a_held_out_file_are_removed_and_counted(tmp_path):
    (tmp_path / "test.json").write_text(json.dumps(ROWS[:6]))
    config = settings_of(f"data.test={tmp_path / 'test.json'}")
    parts, found, leaks = read_parts(config, tokenizer_of(config))
    account = found["train"].accounting.check()
    assert account.removed["held_out"] >= len(parts["test"][0]) > 0
    assert account.read == len(ROWS) and account.kept == len(parts["train"][0]) + len(parts["validation"][0])
    assert len(found["train"].samples) == account.kept
    assert set(leaks) == {"train → validation", "train → test", "validation → test"}
    assert all(report.clean for report in leaks.values())


@pytest.mark.parametrize("given, ratios, filled", [
    ((), "[0.7,0.15,0.15]", PARTS), ((), "[0.8,0.2,0]", PARTS[:2]), ((), "[0.8,0,0.2]", ("train", "test")),
    ((), "[1,0,0]", ("train",)), (("test",), "[0.8,0.2,0]", PARTS), (("test",), "[1,0,0]", ("train", "test")),
    (("validation",), "[0.8,0,0.2]", PARTS), (("validation", "test"), "[0.7,0.15,0.15]", PARTS),
])
def test_parts_are_what_was_asked_for_and_every_row_is_in_one(tmp_path, given, ratios, filled):
    overrides = [f"data.ratios={ratios}"]
    for number, name in enumerate(given):
        (tmp_path / f"{name}.json").write_text(json.dumps(ROWS[number::20]))
        overrides.append(f"data.{name}={tmp_path / f'{name}.json'}")
    config = settings_of(*overrides)
    parts, found, _ = read_parts(config, tokenizer_of(config))
    assert tuple(name for name in PARTS if parts[name][0]) == filled
    assert all(len(chats) == len(samples) for chats, samples in parts.values())
    assert sum(one.accounting.check().kept for one in found.values()) == sum(len(chats) for chats, _ in parts.values())


def test_a_held_out_file_of_which_nothing_is_left_is_refused_by_name(tmp_path):
    (tmp_path / "test.json").write_text(json.dumps([{"instruction": "Who?", "output": ""}]))
    config = settings_of(f"data.test={tmp_path / 'test.json'}")
    with pytest.raises(DataError, match=r"nothing is left to use as data\.test: 1 read"):
        read_parts(config, tokenizer_of(config))


def test_a_training_file_that_is_all_held_out_is_refused_with_the_numbers():
    config = settings_of(f"data.test={ALPACA}", "data.ratios=[1,0,0]")
    with pytest.raises(DataError, match=r"train is empty .* of \d+ conversations are tied to what is held out"):
        read_parts(config, tokenizer_of(config))


def test_the_stage_keeps_the_leak_report_and_the_vocabulary(finished):
    leaks = read_json(finished.folder / "prepare" / "leaks.json")
    assert set(leaks) == {"train → validation", "train → test", "validation → test"}
    assert all(report["held_out"] and not report["exact"] and not report["near"] for report in leaks.values())
    manifest = read_manifest(finished.folder, "prepare")
    assert "leaks.json" in manifest["outputs"]
    assert manifest["summary"]["vocabulary"] == vocabulary_of(finished.config, tokenizer_of(finished.config))


def test_training_refuses_tokens_of_another_vocabulary(finished, settings):
    pipeline = FineTuningPipeline("tiny", settings(folder="other"))
    share(finished.folder, pipeline.folder, ["prepare"])
    path = pipeline.folder / "prepare" / "manifest.json"
    manifest = read_json(path)
    write_json(path, manifest | {"summary": manifest["summary"] | {"vocabulary": "0" * 64}})
    with pytest.raises(ConfigError, match="the tokenizer must be the one that the data was made with"):
        stages.train(pipeline.config, pipeline.folder)


def test_a_token_outside_the_embedding_is_refused_at_the_door(monkeypatch):
    def grown(config):
        tokenizer = tokenizer_of(config)
        tokenizer.add_tokens([f"<new-{number}>" for number in range(4096)])
        return tokenizer

    monkeypatch.setattr(reading, "tokenizer_of", grown)
    with pytest.raises(ConfigError, match="embedding rows"):
        reading.check(settings_of())


def test_rows_that_share_an_id_are_told_apart(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([{**row, "id": "same"} for row in ROWS]))
    found = read(settings_of(f"data={tmp_path / 'rows.json'}"))
    assert len({chat.id for chat in found.conversations}) == found.accounting.kept > 50
    assert [chat.id for chat in found.conversations] == [sample.id for sample in found.samples]
