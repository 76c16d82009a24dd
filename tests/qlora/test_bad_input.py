"""What a base in few bits is refused for, one row each; the adapter's own refusals are in tests/lora."""
import sys

import pytest
import torch

from finetune_lib.core import ConfigError
from finetune_lib.qlora.loading import QuantizationConfig, import_bitsandbytes, load_base
from finetune_lib.qlora.nf4 import quantize

FOUR_BITS = QuantizationConfig()


def quantize_twice(folder):
    return quantize(quantize(torch.randn(8, 8)).packed)


def other_four_bits(folder):
    load_base(folder, FOUR_BITS).save_pretrained(folder / "packed")
    return load_base(folder / "packed", QuantizationConfig(quant_type="fp4"))


def eight_from_four_bits(folder):
    load_base(folder, FOUR_BITS).save_pretrained(folder / "packed")
    return load_base(folder / "packed", QuantizationConfig(load_in_4bit=False, load_in_8bit=True))


def four_from_eight_bits(folder):
    load_base(folder, QuantizationConfig(load_in_4bit=False, load_in_8bit=True)).save_pretrained(folder / "packed")
    return load_base(folder / "packed", FOUR_BITS)


def half_on_a_cpu(folder):
    return load_base(folder, QuantizationConfig(compute_dtype="float16"), device="cpu")


def both_widths(folder):
    return QuantizationConfig(load_in_8bit=True)


def own_in_eight_bits(folder):
    return load_base(folder, QuantizationConfig(load_in_4bit=False, load_in_8bit=True), backend="own")


def own_in_float_storage(folder):
    return load_base(folder, QuantizationConfig(quant_storage="bfloat16"), backend="own")


def not_finite(folder):
    return quantize(torch.tensor([1.0, float("inf")]))


@pytest.mark.parametrize("call, message", [
    (quantize_twice, "quantized already must not be quantized again"),
    (other_four_bits, "in nf4 already and is not quantized again to fp4; set quant_type='nf4'"),
    (eight_from_four_bits, "in nf4 already and is not quantized again to int8"),
    (four_from_eight_bits, "in int8 already and is not quantized again to nf4; set load_in_8bit=True"),
    (half_on_a_cpu, "float16 needs a GPU, got cpu; set 'auto' or 'float32'"),
    (both_widths, "load_in_8bit needs load_in_4bit=False"),
    (own_in_eight_bits, "set backend='bitsandbytes'"), (own_in_float_storage, "set backend='bitsandbytes'"),
    (not_finite, "must be finite, got 1"),
], ids=lambda value: value.__name__ if callable(value) else "")
def test_what_cannot_work_is_refused_with_what_would(folders, tmp_path, call, message):
    folder = tmp_path / "model"
    load_base(folders["llama"]).save_pretrained(folder)
    with pytest.raises((ConfigError, ValueError, TypeError), match=message):
        call(folder)


def test_without_bitsandbytes_the_own_back_end_is_offered_and_works(folders, ids, monkeypatch):
    with_it = load_base(folders["llama"], FOUR_BITS)
    expected = with_it(input_ids=ids).logits
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # what Python does with a package that is not there
    for call in (import_bitsandbytes, lambda: load_base(folders["llama"], FOUR_BITS)):
        with pytest.raises(ConfigError, match="cannot be imported here .*; set backend='own'"):
            call()
    assert torch.equal(load_base(folders["llama"], FOUR_BITS, backend="own")(input_ids=ids).logits, expected)
