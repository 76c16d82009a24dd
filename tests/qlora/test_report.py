"""What loading in few bits did: read off the model, measured on it."""
import sys

import pytest
import torch

from finetune_lib.core import ConfigError
from finetune_lib.qlora.loading import QuantizationConfig, load_base
from finetune_lib.qlora.nf4 import bits_per_weight
from finetune_lib.qlora.report import (
    FALLBACKS,
    double_quantization_cost,
    load_or_fall_back,
    load_with_report,
    stored_bits,
)

from .conftest import KINDS

EIGHT_BITS = QuantizationConfig(load_in_4bit=False, load_in_8bit=True)


@pytest.mark.parametrize("backend", ["own", "bitsandbytes"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_report_names_what_is_packed_and_what_is_not(folders, kind, backend):
    model, report = load_with_report(folders[kind], QuantizationConfig(), backend=backend)
    assert report.skipped == ["lm_head"] and len(report.quantized) == {"gpt2": 8}.get(kind, 14)
    assert report.bytes == model.get_memory_footprint() and report.seconds > 0 and report.perplexity is None
    first = f"{len(report.quantized)} layers in {report.bits:.3f} bits a weight, 1 left in float: lm_head"
    assert str(report).startswith(first)


def test_a_pattern_that_matches_nothing_shows_and_one_that_matches_too(folders):
    _, nothing = load_with_report(folders["llama"], QuantizationConfig(skip_modules=("model.layer.0",)), backend="own")
    _, first = load_with_report(folders["llama"], QuantizationConfig(skip_modules=("model.layers.0",)), backend="own")
    assert nothing.skipped == ["lm_head"] and len(first.skipped) == 8


def test_bits_are_counted_from_bytes(folders):
    ours = load_base(folders["llama"], QuantizationConfig(double_quant=False), "own")
    assert stored_bits(ours) == bits_per_weight()
    counts = [layer.weight.numel() for name, layer in load_base(folders["llama"]).named_modules()
              if isinstance(layer, torch.nn.Linear) and name != "lm_head"]
    double = sum(bits_per_weight(count, double=True) * count for count in counts) / sum(counts)
    for backend in ("own", "bitsandbytes"):
        assert stored_bits(load_base(folders["llama"], QuantizationConfig(), backend)) == pytest.approx(double)
    _, eight = load_with_report(folders["llama"], EIGHT_BITS)
    assert 8 < eight.bits <= 8 + 32 / 64 and eight.double is None
    assert load_with_report(folders["llama"], QuantizationConfig(load_in_4bit=False))[1].bits == 0


@pytest.mark.parametrize("double", [False, True])
def test_the_time_of_double_quantization_is_measured_whether_or_not_it_is_used(folders, double):
    cost = double_quantization_cost(load_base(folders["qwen2"], QuantizationConfig(double_quant=double), "own"))
    counts = [layer.weight.numel() for name, layer in load_base(folders["qwen2"]).named_modules()
              if isinstance(layer, torch.nn.Linear) and name != "lm_head"]
    bits = [(bits_per_weight(count) - bits_per_weight(count, double=True)) * count for count in counts]
    assert cost.bits_saved == pytest.approx(sum(bits) / sum(counts))
    assert min(cost.packing, cost.unpacking, cost.all_unpacking) > 0
    assert double_quantization_cost(load_base(folders["qwen2"])) is None


def test_perplexity_before_training_is_asked_of_both_models(folders, ids):
    def perplexity(model):
        with torch.no_grad():
            return model(input_ids=ids, labels=ids).loss.exp().item()

    model, report = load_with_report(folders["llama"], QuantizationConfig(), perplexity, backend="own")
    assert report.perplexity == (perplexity(load_base(folders["llama"])), perplexity(model))
    assert report.perplexity[0] != report.perplexity[1] and "perplexity before any training" in str(report)


def test_another_way_is_taken_only_when_asked_for_and_is_named(folders, ids, monkeypatch, caplog):
    expected = load_base(folders["llama"], QuantizationConfig(), "own")(input_ids=ids).logits
    assert load_or_fall_back(folders["llama"], QuantizationConfig(), FALLBACKS)[1] == "as asked" and not caplog.records
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # what Python does with a package that is not there
    with pytest.raises(ConfigError, match="cannot be imported here"):
        load_or_fall_back(folders["llama"], QuantizationConfig(), [])
    with pytest.raises(ConfigError, match="cannot be imported here"):
        load_or_fall_back(folders["llama"], QuantizationConfig(), ["8bit"])
    model, taken = load_or_fall_back(folders["llama"], QuantizationConfig(), ["8bit", "own", "16bit"])
    assert taken == "own" and torch.equal(model(input_ids=ids).logits, expected)
    model, taken = load_or_fall_back(folders["llama"], QuantizationConfig(), ["16bit"])
    assert taken == "16bit" and model.dtype == torch.bfloat16
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "taken instead, as it was asked for: own" in caplog.text


def test_a_fallback_that_is_none_is_refused_and_a_wrong_folder_is_no_reason_for_one(folders, tmp_path):
    with pytest.raises(ConfigError, match="must be one of own, 8bit, 16bit, got '2bit'"):
        load_or_fall_back(folders["llama"], QuantizationConfig(), ["2bit"])
    with pytest.raises(ConfigError, match="must hold config.json"):
        load_or_fall_back(tmp_path, QuantizationConfig(), FALLBACKS)
