"""Our four bits against bitsandbytes': the same bytes, the same numbers."""
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from finetune_lib.qlora.loading import import_bitsandbytes
from finetune_lib.qlora.nf4 import (
    BLOCK_SIZES,
    NF4Linear,
    bits_per_weight,
    dynamic_codebook,
    fp4_codebook,
    from_bitsandbytes,
    int4_codebook,
    nf4_codebook,
    pack_nibbles,
    quantize,
    unpack_nibbles,
)

bnb = import_bitsandbytes()
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
shapes = st.lists(st.integers(1, 40), min_size=1, max_size=3)
any_weight = dict(shape=shapes, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**31), zeros=st.floats(0, 1))
any_scheme = dict(kind=st.sampled_from(("nf4", "fp4")), block_size=st.sampled_from(BLOCK_SIZES), double=st.booleans())


def weight_of(shape, dtype, seed, zeros=0.0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    return (values * (torch.rand(shape, generator=generator) >= zeros)).to(dtype)


def test_the_derived_codebooks_are_those_of_bitsandbytes():
    for name, ours in (("nf4", nf4_codebook()), ("fp4", fp4_codebook())):
        assert torch.equal(ours, bnb.functional.get_4bit_type(name, device="cpu"))
    assert torch.equal(dynamic_codebook(), bnb.functional.create_dynamic_map())


@pytest.mark.parametrize("book", [nf4_codebook, fp4_codebook, int4_codebook])
def test_every_codebook_has_sixteen_values_and_an_exact_zero(book):
    assert book().shape == (16,) and (book() == 0).any() and book().max() == 1


@given(**any_weight, **any_scheme)
@settings(max_examples=80, deadline=None)
def test_packed_bytes_and_constants_equal_those_of_bitsandbytes(shape, dtype, seed, zeros, kind, block_size, double):
    weight = weight_of(shape, dtype, seed, zeros)
    ours = quantize(weight, kind, block_size, double)
    packed, state = bnb.functional.quantize_4bit(weight, blocksize=block_size, quant_type=kind,
                                                 compress_statistics=double)
    assert torch.equal(ours.packed, packed)
    if not double:
        assert torch.equal(ours.absmax, state.absmax)
        return
    assert torch.equal(ours.absmax.offset, state.offset) and torch.equal(ours.absmax.absmax, state.state2.absmax)
    if state.state2.absmax.max() > 1e-30:  # below, the kernel's handling of denormal numbers decides the codes
        assert torch.equal(ours.absmax.codes, state.absmax)


@given(rows=st.integers(1, 9), blocks=st.integers(1, 3), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**31),
       block_size=st.sampled_from(BLOCK_SIZES[:4]), kind=st.sampled_from(("nf4", "fp4")), double=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_round_trip_equals_that_of_bitsandbytes(rows, blocks, dtype, seed, block_size, kind, double):
    weight = weight_of((rows, blocks * block_size), dtype, seed)
    packed, state = bnb.functional.quantize_4bit(weight, blocksize=block_size, quant_type=kind,
                                                 compress_statistics=double)
    assert torch.equal(quantize(weight, kind, block_size, double).dequantize(),
                       bnb.functional.dequantize_4bit(packed, state))


@given(**any_weight, block_size=st.sampled_from(BLOCK_SIZES))
@settings(max_examples=40, deadline=None)
def test_no_weight_moves_further_than_half_the_widest_gap(shape, dtype, seed, zeros, block_size):
    weight = weight_of(shape, torch.float32, seed, zeros)
    quantized = quantize(weight, "nf4", block_size)
    widest = (nf4_codebook()[1:] - nf4_codebook()[:-1]).max() / 2
    scale = quantized.absmax.repeat_interleave(block_size)[:weight.numel()].view(weight.shape)
    assert ((quantized.dequantize() - weight).abs() <= widest * scale * 1.00001).all()
    assert (quantized.dequantize()[weight == 0] == 0).all()


@given(codes=st.lists(st.integers(0, 15), min_size=1, max_size=99))
@settings(max_examples=50, deadline=None)
def test_packing_is_undone_and_puts_the_earlier_code_high(codes):
    packed = pack_nibbles(torch.tensor(codes, dtype=torch.uint8))
    assert unpack_nibbles(packed, len(codes)).tolist() == codes
    assert packed.shape == (math.ceil(len(codes) / 2), 1) and packed[0, 0] >> 4 == codes[0]


def test_published_bits_are_the_limits():
    assert bits_per_weight() == 4.5
    assert bits_per_weight(double=True) == 4 + 8 / 64 + 32 / (64 * 256)
    assert round(bits_per_weight() - bits_per_weight(double=True), 3) == 0.373
    assert round(bits_per_weight(192 * 192, double=True), 4) == 4.1285


@given(shape=shapes, block_size=st.sampled_from(BLOCK_SIZES), double=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_formula_counts_the_bytes_that_are_there(shape, block_size, double):
    quantized = quantize(torch.ones(shape), "nf4", block_size, double)
    assert quantized.bits_per_weight() == bits_per_weight(math.prod(shape), block_size, double)


def test_nf4_is_best_on_normal_weights_and_int4_on_uniform_ones():
    torch.manual_seed(0)
    error = lambda w, kind: (quantize(w, kind).dequantize() - w).square().mean().item()  # noqa: E731
    normal, uniform = torch.randn(256, 256), torch.rand(256, 256) * 2 - 1
    assert error(normal, "nf4") < 0.8 * min(error(normal, "fp4"), error(normal, "int4"))
    assert error(uniform, "int4") < 0.8 * error(uniform, "nf4")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="must be finite, got 1 NaN or infinite of 3"):
        quantize(torch.tensor([1.0, value, 2.0]))


def test_what_has_no_meaning_in_four_bits_is_refused():
    with pytest.raises(TypeError, match="quantized already must not be quantized again"):
        quantize(quantize(torch.randn(8, 8)).packed)
    with pytest.raises(ValueError, match="must have elements"):
        quantize(torch.empty(0, 4))
    with pytest.raises(ValueError, match="block_size must be one of"):
        quantize(torch.randn(8), block_size=48)
    with pytest.raises(ValueError, match="codebook must be one of nf4, fp4, int4"):
        quantize(torch.randn(8), "nf8")


@pytest.mark.parametrize("double", [False, True])
def test_the_layer_computes_what_its_codes_say_with_gradient_to_the_input_alone(double):
    torch.manual_seed(0)
    linear = nn.Linear(70, 33)
    layer = NF4Linear.from_linear(linear, double=double)
    x, y = torch.randn(2, 5, 70, requires_grad=True), torch.randn(2, 5, 70)
    y.copy_(x.detach()).requires_grad_()
    layer(x).square().sum().backward()
    F.linear(y, quantize(linear.weight, double=double).dequantize(), linear.bias.detach()).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert all(p.grad is None for p in layer.parameters())


def test_nothing_in_float_is_kept_for_backward():
    layer, kept = NF4Linear.from_linear(nn.Linear(64, 64, bias=False)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(3, 64, requires_grad=True))
    assert kept == []


def test_casting_the_model_rounds_no_constant():
    layer = NF4Linear.from_linear(nn.Linear(64, 64), double=True)
    before = layer.dequantized_weight()
    assert torch.equal(layer.half().bfloat16().dequantized_weight(), before)
    assert layer(torch.randn(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_layer_is_saved_and_loaded_with_its_codes():
    first, second = (NF4Linear.from_linear(nn.Linear(64, 32), double=True) for _ in range(2))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.dequantized_weight(), second.dequantized_weight())


def test_bytes_of_bitsandbytes_are_read_without_quantizing_again():
    linear = bnb.nn.Linear4bit(48, 40, quant_type="nf4", compress_statistics=True)
    linear.weight.data = weight = torch.randn(40, 48)
    linear = linear.to("cpu")
    assert torch.equal(from_bitsandbytes(linear.weight).dequantize(), quantize(weight, double=True).dequantize())
