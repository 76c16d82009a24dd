"""Checks of milestone 3: four bits a weight, block by block, and nothing in them ever gets a gradient."""
import pytest
import torch
from torch import nn

from milestones.expecting import equal, expect, gives, refuses, same
from milestones.saying import describe

# The sixteen values as printed in the QLoRA paper (arXiv 2305.14314, appendix E).
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0])


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blockwise(weight, block_size):
    """Scale of each block, and each weight over the scale of its block, one block at a time."""
    blocks = weight.flatten().double().split(block_size)
    scales = [block.abs().max() for block in blocks]
    return torch.stack(scales).float(), torch.cat([block / scale for block, scale in zip(blocks, scales, strict=True)])


def nearest_codes(scaled, codebook):
    return (scaled[:, None] - codebook.double()[None]).abs().argmin(1).to(torch.uint8)


def levels(tail: float, upper: int = 9, lower: int = 8):
    """The codebook by its definition, from another outermost probability or with other counts."""
    positive = torch.special.ndtri(torch.linspace(tail, 0.5, upper)[:-1].double()).float()
    negative = -torch.special.ndtri(torch.linspace(tail, 0.5, lower)[:-1].double()).float()
    outer = torch.cat([negative, positive, positive.new_zeros(1)])
    return outer.sort().values / outer.max()


@pytest.mark.task("3.1", points=8, hint="8 values above zero, 7 below, and zero itself: the two sides differ")
def test_the_codebook_is_nf4s(lib, seed):
    got = gives(lib.nf4_codebook(), "nf4_codebook", torch.Tensor)
    even = torch.special.ndtri(torch.linspace(1 - 0.9677083, 0.9677083, 16).double()).float()
    upper = torch.special.ndtri(torch.linspace(0.9677083, 0.5, 9)[:-1].double()).float()
    lower = -torch.special.ndtri(torch.linspace(0.9677083, 0.5, 8)[:-1].double()).float()
    whole = torch.cat([lower, torch.zeros(1), upper]).sort().values
    same(got, NF4, "the NF4 codebook", {
        "both sides have eight values, so that no value is exactly zero": even / even.max(),
        "the two sides are exchanged: the eight values are the positive ones": -NF4.flip(0),
        "the largest value is not brought to one": whole,
        "the values are not in ascending order": got.shape == (16,) and torch.equal(got.sort().values, NF4),
        "the values are evenly spaced, as in int4": torch.linspace(-1, 1, 16),
        "the lower side has no minus sign": got.min().item() >= 0,
        "one half is not left out of the probabilities: its quantile is zero, once on each side": got.numel() == 18,
        "a probability is missing on each side: 9 and 8 include both ends, and one half is left out": got.numel() == 14,
        "probabilities are taken for values, or the distribution function for its inverse, the quantile": got.shape
        == (16,) and (got[1:7] - got[:6]).std().item() < 0.05,
        "another outermost probability than TAIL is used": any(
            equal(got, levels(tail), atol=1e-5) for tail in (0.97, 0.95, 0.99, 1 - 1 / 30, 1 - 1 / 32, 1 - 1 / 31)),
    }, atol=1e-6, dtype=torch.float32)


@pytest.mark.task("3.2", points=7, hint="one scale for each block, not one for the tensor")
def test_each_block_has_its_own_absmax(lib, seed):
    weight = normal(seed, 6, 64) * torch.logspace(-2, 0, 6)[:, None]
    scales, columns = blockwise(weight, 64)[0], weight.abs().amax(0)
    codes, got = gives(lib.quantize_blocks(weight, NF4, 64), "quantize_blocks", (tuple, list), parts=2)
    same(got, scales, "the scales of the blocks", {
        "codes and scales are exchanged: the codes come first": equal(codes, scales),
        "there is one scale for the whole tensor": scales.max().expand(6),
        "the scale is the largest value, not the largest magnitude": weight.max(dim=1).values,
        "the scale is half of the span from the smallest to the largest value": (weight.amax(1) - weight.amin(1)) / 2,
        "the scale is the standard deviation": weight.std(dim=1),
        "the maximum is taken over the wrong axis": equal(got, columns) or equal(got, columns[:6]),
        "the weights are read column by column: blocks go along the rows": weight.T.reshape(6, 64).abs().amax(1),
        "an axis of one is left over (keepdim)": scales[:, None]}, dtype=torch.float32)


@pytest.mark.task("3.2", points=7, values=False)
def test_each_weight_gets_the_code_of_the_nearest_value(lib, seed):
    weight = normal(seed, 5, 128) * torch.logspace(-1, 1, 5)[:, None]
    (scales, scaled), before = blockwise(weight, 64), weight.clone()
    codes, everywhere = nearest_codes(scaled, NF4), nearest_codes((weight.flatten() / weight.abs().max()).double(), NF4)
    got, _ = gives(lib.quantize_blocks(weight, NF4, 64), "quantize_blocks", (tuple, list), parts=2)
    expect(bool(torch.equal(weight, before)), "the weight that was given stays as it was", "the same values",
           weight, {"the weight itself is scaled, in place": True})
    distance = scaled[:, None] - NF4.double()[None]
    off = got.flatten().int() - codes.int() if got.numel() == codes.numel() else torch.full((1,), 99)
    same(
        got,
        codes,
        "the codes",
        {
            "codes and scales are exchanged: the codes come first": equal(got, scales),
            "one scale is used for the whole tensor": everywhere,
            "the nearest is sought among numbers, not among the codebook's values": (scaled * 7.5 + 7.5)
            .round()
            .clamp(0, 15)
            .to(torch.uint8),
            "values are rounded down to the next lower code": bool((off <= 0).all() and (off >= -1).all()),
            "values are rounded up to the next higher code": bool((off >= 0).all() and (off <= 1).all()),
            "the weights are not divided by their scale": nearest_codes(weight.flatten().double().clamp(-1, 1), NF4),
            "the weights are multiplied by their scale, not divided": nearest_codes(
                scaled * scales.double().repeat_interleave(64) ** 2, NF4),
            "the farthest value is taken, not the nearest": distance.abs().argmax(1).to(torch.uint8),
            "the sign of the distance counts: its magnitude is meant": distance.argmin(1).to(torch.uint8),
            "each row of the matrix is taken for a block, whatever block_size says": nearest_codes(
                (weight / weight.abs().amax(1, keepdim=True)).flatten().double(), NF4),
            "the weights are read column by column: blocks go along the rows": nearest_codes(
                blockwise(weight.T.contiguous(), 64)[1], NF4),
            "they have the weight's shape: flat codes are asked for": codes.view(5, 128),
        },
        dtype=torch.uint8,
    )


@pytest.mark.task("3.2", points=4)
def test_a_block_that_is_not_full_and_a_block_of_zeros(lib, seed):
    weight = torch.cat([torch.zeros(32), normal(seed, 32 + 7)])
    codes, scales = gives(lib.quantize_blocks(weight, NF4, 32), "quantize_blocks", (tuple, list), parts=2)
    same([len(codes), len(scales)], [71, 3], "the numbers of codes and scales for 71 weights in blocks of 32", {
        "the last block, which is not full, is dropped": [64, 2], "codes of the filling are kept": [96, 3],
        "block_size is not looked at: blocks are of 64": [71, 2],
        "the rows of the weight are taken for blocks": [71, 1],
        "codes and scales are exchanged: the codes come first": [3, 71]})
    expect(bool(torch.isfinite(scales).all()), "a block of zeros has a finite scale", got=scales)
    same(codes[:32], torch.full((32,), 7, dtype=torch.uint8), "the codes of a block of zeros", {
        "zero is divided by zero: nothing is near to NaN": codes[0].item() == 15,
        "the code of another value than the exact zero is taken": True})
    expect(float(scales[0]) <= 1e-37, "the scale of a block of zeros is zero", "0", f"{float(scales[0]):.3g}", {
        "what is never divided by is returned too: only the division needs another number than zero": True})
    same(scales[-1:], weight[64:].abs().max()[None], "the scale of the last block")


@pytest.mark.task("3.3", points=5, hint="0x4A: the 4 came first")
def test_two_codes_share_a_byte_the_earlier_one_in_the_high_half(lib, seed):
    codes = torch.randint(0, 16, (10,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    codes[:2] = torch.tensor([4, 10])
    got, pairs = gives(lib.pack_nibbles(codes), "pack_nibbles", torch.Tensor), codes.view(-1, 2)
    first, second = pairs[:, :1], pairs[:, 1:]
    same(got, first * 16 + second, "the packed bytes", {
        "the two halves are exchanged": second * 16 + first,
        "nothing is packed": got.numel() == 10,
        "codes far apart are paired, not neighbors": (codes[:5] * 16 + codes[5:])[:, None],
        "the first code is moved out of the byte: a half is 4 bits wide": second,
        "the first code is moved by fewer than 4 bits, into the second one": any(
            equal(got, join) for bits in (1, 2, 3) for join in ((first << bits) | second, (first << bits) + second)),
        "decimal digits are packed: a half of a byte holds 16 codes, not 10": first * 10 + second,
        "the halves are joined by & where | is needed": (first << 4) & second,
        "a byte of filling is added to an even number of codes": got.numel() == 6,
        "they are flat: one byte in each row is asked for, as bitsandbytes has it": (first * 16 + second).flatten(),
    }, dtype=torch.uint8)


@pytest.mark.task("3.3", points=4, values=False)
def test_unpacking_gives_the_codes_back_odd_counts_included(lib, seed):
    for count in (9, 1, 64):
        codes = torch.randint(0, 16, (count,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
        packed = gives(lib.pack_nibbles(codes, 7), "pack_nibbles", torch.Tensor)
        expect(
            packed.numel() == (count + 1) // 2,
            f"{count} codes take {(count + 1) // 2} bytes",
            str((count + 1) // 2),
            str(packed.numel()),
            {"the last code of an odd count is dropped": packed.numel() < (count + 1) // 2},
        )
        if count % 2:
            same(packed.flatten()[-1:], codes[-1:] * 16 + 7, "the last byte of an odd count", {
                "the filler is not used": codes[-1:] * 16,
                "the filler comes before the codes, not behind them": int(packed.flatten()[0]) // 16 == 7,
                "the two halves are exchanged": codes[-1:] + 7 * 16})
        whole = torch.cat([codes, torch.full((count % 2,), 7, dtype=torch.uint8)])
        swapped, halves = whole.view(-1, 2).flip(1).flatten()[:count], whole.view(-1, 2).T.flatten()[:count]
        got = gives(lib.unpack_nibbles(packed, count), "unpack_nibbles", torch.Tensor)
        same(got, codes, f"{count} codes packed and unpacked", {
            "the filler is not left out": whole if count % 2 else False,
            "all first codes come before all second ones: a byte's two codes are neighbors": halves,
            "the two halves are exchanged": swapped,
            "the second code keeps the bits of the first: a mask of four ones is missing": equal(
                got % 16 if got.dtype == torch.uint8 else False, codes),
            "the mask is too narrow: four ones are 15, or 0x0F": any(
                equal(got[1::2], codes[1::2] & mask) for mask in (1, 3, 7))}, dtype=torch.uint8)


@pytest.mark.task("3.4", points=8, hint="look the value up, then multiply by the scale of its block")
def test_each_code_becomes_its_value_times_the_scale_of_its_block(lib, seed):
    for size in (64, 32):
        count = 2 * size + 9
        codes = torch.randint(0, 16, (count,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
        scales = torch.tensor([0.5, 2.0, 3.0]) + seed % 7
        own, values = scales.repeat_interleave(size)[:count], NF4[codes.long()]
        got = gives(lib.dequantize_blocks(codes, scales, NF4, size), "dequantize_blocks", torch.Tensor)
        same(got, values * own, f"the dequantized weights in blocks of {size}", {
            "the scales are left out": values,
            "the first scale is used for all": values * scales[0],
            "the mean of the scales is used for all": values * scales.mean(),
            "scales change from weight to weight: repeat_interleave, not repeat": values * scales.repeat(size)[:count],
            "each block takes the scale of the next one": values * scales.roll(-1).repeat_interleave(size)[:count],
            "codes are taken for values": codes.float() * own,
            "codes are taken for evenly spaced values, as in int4": any(
                equal(got, (codes.float() - 8) / half * own) for half in (7, 7.5, 8)),
            "scales are added": values + own,
            "scales are divided by": values / own,
            "block_size is not looked at": size == 32 and equal(got, values * scales.repeat_interleave(64)[:count]),
            "the filling of the last block is kept": got.numel() == 3 * size,
            "the last block, which is not full, is dropped": got.numel() == 2 * size}, dtype=torch.float32)


def double_quantized(absmax, codebook, offset):
    """The second level, by its definition: blocks of 256, 8 bits each."""
    blocks = (absmax - offset).split(256)
    largest = torch.stack([block.abs().max() for block in blocks])
    codes = [
        (block[:, None] / top - codebook[None]).abs().argmin(1) for block, top in zip(blocks, largest, strict=True)
    ]
    return largest, torch.cat([codebook[code] * top for code, top in zip(codes, largest, strict=True)]) + offset


@pytest.mark.task("3.5", points=5, hint="subtract the mean first: all scales are positive")
def test_scales_are_stored_around_their_mean(lib, seed):
    for absmax in (normal(seed, 300).abs() * 0.02 + 0.05, 0.2 - normal(seed, 300).abs() * 0.02):  # skewed either way
        before, mean = absmax.clone(), absmax.mean()
        got = gives(lib.quantize_absmax(absmax), "quantize_absmax", fields=("codes", "absmax", "offset"))
        expect(bool(torch.equal(absmax, before)), "the scales that were given stay as they were", "the same values",
               absmax, {"the mean is taken off in place": True})
        top = torch.stack([(block - mean).abs().max() for block in absmax.split(256)])
        same(
            got.offset,
            mean,
            "the offset",
            {
                "the mean is not taken off": 0.0,
                "the smallest scale is taken off": absmax.min(),
                "the median is taken off": absmax.median(),
                "only the first block's mean is taken": absmax[:256].mean(),
                "absmax and offset are exchanged: the fields are codes, absmax, offset": top,
            },
        )
        same(
            got.absmax,
            top,
            "the second level's scales",
            {
                "the mean is not taken off before the maximum": torch.stack([b.max() for b in absmax.split(256)]),
                "the mean is added, not taken off": torch.stack([(b + mean).max() for b in absmax.split(256)]),
                "the largest value is taken, not the largest magnitude": torch.stack(
                    [(block - mean).max() for block in absmax.split(256)]),
                "there is one scale for all": (absmax - mean).abs().max()[None],
                "blocks of 64 are made: the second level has blocks of 256": len(got.absmax) == 5,
            },
            dtype=torch.float32,
        )


@pytest.mark.task("3.5", points=4, values=False)
def test_the_scales_come_back_from_8_bits(lib, seed):
    absmax, book = normal(seed, 300).abs() * 0.02 + 0.05, lib.dynamic_codebook()
    mean, gap = absmax.mean(), (absmax - absmax.mean()).abs().max()
    got = gives(lib.quantize_absmax(absmax.clone()), "quantize_absmax", fields=("codes", "absmax", "offset"))
    expect(got.codes.dtype == torch.uint8 and len(got.codes) == 300, "there is one 8-bit code for each scale",
           "300 codes of uint8", f"{len(got.codes)} codes of {got.codes.dtype}", {
               "codes of the filling are kept": len(got.codes) == 512,
               "codes are left in a larger type than a byte": got.codes.dtype != torch.uint8})
    values = book[got.codes.long()] * got.absmax.repeat_interleave(256)[:300] + got.offset
    largest, reference = double_quantized(absmax, book, mean)
    scaled = (absmax - mean) / largest.repeat_interleave(256)[:300]
    same(
        values,
        reference,
        "the scales after 8 bits",
        {
            "the second level is NF4 again: it has 256 values, not 16": int(got.codes.max()) <= 15,
            "the 256 values are evenly spaced: those of dynamic_codebook are not": bool(
                (got.codes.int() - ((scaled + 1) * 127.5).round().int()).abs().max() <= 1),
            "what is left is not divided by its block's largest magnitude": bool(
                (values - mean).abs().max() < 0.2 * gap),
            "the offset is not taken off before the codes are chosen": bool((values - absmax).mean() > 0.2 * gap),
        },
        atol=0.02 * gap.item(),
    )
    level = lib.quantize_absmax(torch.full((300,), 0.0625))
    same(level.codes, torch.zeros(300, dtype=torch.uint8), "the codes of scales that are all equal", {
        "zero is divided by zero: a row of zeros gets code 0, as bitsandbytes has it": True})


@pytest.mark.task("3.6", points=5)
def test_bits_of_a_very_large_tensor(lib, seed):
    same(lib.bits_per_weight(), 4.5, "bits a weight of NF4", {
        "the constants are not counted": 4.0, "a scale is counted in bytes": 4 + 4 / 64,
        "a scale is counted with 16 bits: it is float32": 4.25})
    same(lib.bits_per_weight(double=True), 4 + 8 / 64 + 32 / (64 * 256), "bits a weight with double quantization", {
        "the constants are not counted": 4.0, "double quantization is not looked at": 4.5,
        "the second level's own scales are forgotten": 4 + 8 / 64,
        "the second level is counted with 4 bits": 4 + 4 / 64 + 32 / (64 * 256),
        "256 weights share a scale of the second level, not 256 blocks": 4 + 8 / 64 + 32 / 256,
        "the first level's scales are still counted with 32 bits": 4 + 32 / 64 + 32 / (64 * 256)}, rtol=1e-9, atol=0)
    same(
        lib.bits_per_weight(block_size=128),
        4.25,
        "bits a weight in blocks of 128",
        {"the block size is not looked at": 4.5},
    )


@pytest.mark.task("3.6", points=5, hint="round up: a block that is not full has a scale too")
def test_bits_of_one_tensor_count_partly_filled_blocks(lib, seed):
    for size in (64, 128):
        count = size * (3 + seed % 50) + 1 + 2 * (seed % 20)  # odd, and the last block is not full
        blocks, packed = count // size + 1, 8 * ((count + 1) // 2)
        whole = packed + 32 * blocks
        same(
            lib.bits_per_weight(count, size),
            whole / count,
            f"bits a weight of {count} weights in blocks of {size}",
            {
                "the last block is not counted": (packed + 32 * (blocks - 1)) / count,
                "it is that of a very large tensor": 4 + 32 / size,
                "a block that is not full is counted in part: it has a whole scale": packed / count + 32 / size,
                "the last byte of an odd count is counted half": (4 * count + 32 * blocks) / count,
                "bytes are given, not bits": whole / 8 / count,
                "all bits are given, not those of one weight": float(whole),
                "it is rounded to whole bits": float(whole // count),
                "the block size is not looked at": (packed + 32 * -(-count // 64)) / count,
            },
            rtol=1e-9,
            atol=0,
        )
        outer = -(-blocks // 256)
        double = packed + 8 * blocks + 32 * outer
        same(lib.bits_per_weight(count, size, double=True), (double + 32) / count,
             f"bits a weight of {count} weights in blocks of {size}, double", {
                 "the offset is not counted, or an outer block that is not full": double / count,
                 "double quantization is not looked at": whole / count,
                 "the second level's scale is not counted": (packed + 8 * blocks + 32) / count}, rtol=1e-9, atol=0)


@pytest.mark.task("3.7", points=5, hint="y = x Wᵀ, so the gradient of x is gradient @ W")
def test_product_and_gradient_are_those_of_the_dequantized_weight(lib, seed):
    weight = lib.quantize(normal(seed, 6, 8), "nf4", 32)
    float_weight = weight.dequantize()
    x, gradient = normal(seed + 1, 2, 3, 8).requires_grad_(), normal(seed + 2, 2, 3, 6)
    y = gives(lib.FrozenMatmul.apply(x, weight), "FrozenMatmul.forward", torch.Tensor)
    half, rounded = (x.detach().half() @ float_weight.half().T).float(), float_weight.half().float()
    same(y, x.detach() @ float_weight.T, "the product", {
        "the weight is dequantized in 16 bits, and not in x's type": x.detach() @ rounded.T,
        "the product is made in 16 bits, not in x's type": equal(y, half, rtol=1e-3, atol=1e-2)})
    y.backward(gradient)
    expect(x.grad is not None, "the input gets a gradient", "a gradient", "None", {"backward gives none": True})
    same(x.grad, gradient @ float_weight, "the gradient of the input", {
        "the weight is transposed once too often": x.grad.shape != x.shape,
        "the gradient that comes in is not used": torch.ones_like(gradient) @ float_weight})
    low = gives(lib.FrozenMatmul.apply(x.detach().bfloat16(), weight), "FrozenMatmul.forward", torch.Tensor)
    expect(low.dtype == torch.bfloat16, "bfloat16 in gives bfloat16 out", "torch.bfloat16", str(low.dtype), {
        "the product is not made in x's type": True})


def tensors_in(value) -> list:
    """The tensors in a value, also inside lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in tensors_in(part)] if isinstance(value, (list, tuple)) else []


@pytest.mark.task("3.7", points=4, values=False, hint="what is saved for backward is 4 bits, not the float copy")
def test_no_float_copy_of_the_weight_waits_for_backward(lib, seed):
    weight, kept = lib.quantize(normal(seed, 16, 32)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = lib.FrozenMatmul.apply(normal(seed + 1, 1, 2, 32).requires_grad_(), weight)
    cached = tensors_in(vars(weight))
    kept += tensors_in(vars(gives(y, "FrozenMatmul.forward", torch.Tensor).grad_fn)) + cached
    large = [tensor for tensor in kept if tensor.is_floating_point() and tensor.numel() >= 16 * 32]
    expect(not large, "no float copy of the weight is kept", "the 4-bit weight alone",
           f"{len(large)} float tensors of the weight's size", {
               "the dequantized copy is cached on the weight": any(t is other for t in large for other in cached),
               "the dequantized copy is kept for backward": True})


@pytest.mark.task("3.8", points=5, values=False)
def test_a_cpu_computes_in_float32_and_refuses_float16(lib, seed):
    for device in ("cpu", torch.device("cpu")):
        got = lib.compute_dtype(device)
        same(str(got), "torch.float32", f"what auto gives for {device!r}", {
            "nothing is returned": got is None,
            "a type's name is given, not the type: getattr(torch, name)": isinstance(got, str),
            "a type is taken that this device has no hardware for": got in (torch.bfloat16, torch.float16)})
    for wanted in ("float32", "bfloat16"):
        got = lib.compute_dtype("cpu", wanted)
        expect(got == getattr(torch, wanted), f"{wanted} is given when it is asked for", f"torch.{wanted}",
               describe(got), {
                   "nothing is returned at the end of this way": got is None,
                   "a type's name is given, not the type: getattr(torch, name)": isinstance(got, str),
                   "what is asked for is not looked at": True})
    refuses(lambda: lib.compute_dtype(torch.device("cpu"), "float16"), "float16 on a CPU", mentions="float16")
    for device in ("cuda", torch.device("cuda"), "cuda:0"):
        got = lib.compute_dtype(device)
        expect(got in (torch.bfloat16, torch.float16), f"auto for {device!r} is a type of 16 bits",
               "torch.bfloat16 or torch.float16", describe(got), {
                   "the device that is asked about is compared as text: torch.device(device).type tells": True})


@pytest.mark.task("3.9", points=5, values=False, hint="the flag is an attribute of each layer")
def test_no_4_bit_layer_may_repack_its_weights(lib, seed):
    import bitsandbytes

    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1] = bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=torch.float32)
    model.append(nn.Sequential(bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=torch.float32)))
    layers = [model[1], model[2][0]]
    for layer in layers:
        layer.to("cpu")
        layer.support_avx512bf16_for_cpu = True
    back = gives(lib.guard_bitsandbytes(model), "guard_bitsandbytes", nn.Module)
    left = [layer.support_avx512bf16_for_cpu for layer in layers]
    same(left, [False, False], "support_avx512bf16_for_cpu of the 4-bit layers", {
        "no flag is set: it is an attribute of the layer, of just this name": [True, True],
        "only layers on the top level are guarded, or only the first one": [False, True]})
    expect(back is model, "the model that was given is returned", "the model", back, {
        "a copy is guarded and returned, not the model": True})
    layers[1].weight.quant_state.packing_format_for_cpu = True
    refuses(lambda: lib.guard_bitsandbytes(model), "a layer that was repacked already", mentions="repack")


@pytest.mark.task(
    "3.10", points=9, hint="what is trained needs a gradient and two moments; what is frozen needs neither"
)
def test_what_is_there_all_the_time_by_method(lib, seed):
    layers = (64 * 64, 64 * 129 + 10 + 2 * (seed % 20), 64 * (128 + seed % 64))  # the last block of one is not full
    for method, two, size, moments in (("full", False, 2, 8), ("full", False, 4, 2), ("lora", False, 2, 8),
                                       ("qlora", False, 2, 8), ("qlora", True, 4, 2)):
        bits, whole = method == "qlora", sum(layers) + 70_000
        adapters = 0 if method == "full" else 5_000 + seed % 1_000
        sizes = lib.Sizes(sum(layers), 70_000, adapters, max(layers), 64_000, layers)
        trained, one = (whole, size) if method == "full" else (adapters, 4)
        blocks = [-(-n // 64) for n in layers]
        constants = sum(b + 4 * -(-b // 256) + 4 if two else 4 * b for b in blocks)
        want = {"weights": sum(layers) // 2 + 70_000 * size if bits else size * whole,
                "constants": constants if bits else 0, "adapters": 4 * adapters, "gradients": one * trained,
                "optimizer": moments * trained}
        got = gives(lib.static_bytes(sizes, method, size, two, moments), "static_bytes", dict)
        value = got.get
        same(got, want, f"the bytes of {method} (weights of {size} bytes, double_quant={two}, moments of {moments})", {
            "a name of the result is another one: the docstring and the estimate know five": set(got) != set(want),
            "the constants of 4 bits are not counted": bits and value("constants") == 0,
            "constants are counted in bits, not in bytes": bits and value("constants") == 8 * constants,
            "double_quant is not looked at": two and value("constants") == sum(4 * b for b in blocks),
            "constants are those of a very large tensor, or of one: each layer has blocks that are not full": bits
            and value("constants") != constants,
            "embeddings and norms are counted in 4 bits": bits and value("weights") == whole // 2,
            "a weight in 4 bits is counted as a whole byte": bits and value("weights") == sum(layers) + 70_000 * size,
            "frozen weights get gradients": method != "full" and value("gradients", 0) > 4 * adapters,
            "frozen weights get optimizer state": method != "full" and value("optimizer", 0) > moments * adapters,
            "adapters are counted in the weights' type: they are float32": method != "full"
            and value("adapters") == size * adapters != 4 * adapters,
            "gradients are always counted as float32: in full fine-tuning they have the weights' type": method == "full"
            and value("gradients") == 4 * whole != one * trained,
            "only the linear layers are trained in full fine-tuning, not the embeddings": method == "full"
            and value("gradients") == one * sum(layers),
            "optimizer_bytes is not looked at: 8-bit moments take 2": moments == 2
            and value("optimizer") == 8 * trained,
            "4 bits are used without qlora": method == "lora" and value("weights", 0) < size * whole})
        expect(all(isinstance(number, int) for number in got.values()), "bytes are whole numbers", "int",
               got, {"a float is left in it: round(…)": True})
