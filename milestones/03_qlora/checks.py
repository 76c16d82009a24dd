"""Checks of milestone 3: four bits a weight, block by block, and nothing in them ever gets a gradient."""
import pytest
import torch
from torch import nn

from milestones.expecting import expect, refuses, same

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


@pytest.mark.task("3.1", points=10, hint="8 values above zero, 7 below, and zero itself: the two sides differ")
def test_the_codebook_is_nf4s(lib, seed):
    got = lib.nf4_codebook()
    even = torch.special.ndtri(torch.linspace(1 - 0.9677083, 0.9677083, 16).double()).float()
    upper = torch.special.ndtri(torch.linspace(0.9677083, 0.5, 9)[:-1].double()).float()
    lower = -torch.special.ndtri(torch.linspace(0.9677083, 0.5, 8)[:-1].double()).float()
    whole = torch.cat([lower, torch.zeros(1), upper]).sort().values
    same(got, NF4, "the NF4 codebook", {
        "both sides have eight values, so that no value is exactly zero": even / even.max(),
        "the largest value is not brought to one": whole,
        "the values are not in ascending order": got.shape == (16,) and torch.equal(got.sort().values, NF4),
        "the values are evenly spaced, as in int4": torch.linspace(-1, 1, 16)}, atol=1e-6)


@pytest.mark.task("3.2", points=8, hint="one scale for each block, not one for the tensor")
def test_each_block_has_its_own_absmax(lib, seed):
    weight = normal(seed, 6, 64) * torch.logspace(-2, 0, 6)[:, None]
    scales = blockwise(weight, 64)[0]
    got = lib.quantize_blocks(weight, NF4, 64)[1]
    same(got, scales, "the scales of the blocks", {
        "there is one scale for the whole tensor": scales.max().expand(6),
        "the scale is the largest value, not the largest magnitude": weight.max(dim=1).values,
        "the maximum is taken over the wrong axis": got.shape != scales.shape})


@pytest.mark.task("3.2", points=8, values=False)
def test_each_weight_gets_the_code_of_the_nearest_value(lib, seed):
    weight = normal(seed, 5, 128) * torch.logspace(-1, 1, 5)[:, None]
    scales, scaled = blockwise(weight, 64)
    codes, everywhere = nearest_codes(scaled, NF4), nearest_codes((weight.flatten() / weight.abs().max()).double(), NF4)
    got = lib.quantize_blocks(weight, NF4, 64)[0]
    expect(got.dtype == torch.uint8, "codes are uint8", "torch.uint8", str(got.dtype))
    same(
        got,
        codes,
        "the codes",
        {
            "one scale is used for the whole tensor": everywhere,
            "the nearest is sought among numbers, not among the codebook's values": (scaled * 7.5 + 7.5)
            .round()
            .clamp(0, 15)
            .to(torch.uint8),
            "values are rounded down to the next lower code": got.shape == codes.shape
            and bool(((codes.int() - got.int()) >= 0).all() and ((codes.int() - got.int()) <= 1).all()),
            "the weights are not divided by their scale": nearest_codes(weight.flatten().double().clamp(-1, 1), NF4),
        },
    )


@pytest.mark.task("3.2", points=4)
def test_a_block_that_is_not_full_and_a_block_of_zeros(lib, seed):
    weight = torch.cat([torch.zeros(32), normal(seed, 32 + 7)])
    codes, scales = lib.quantize_blocks(weight, NF4, 32)
    same([len(codes), len(scales)], [71, 3], "the numbers of codes and scales for 71 weights in blocks of 32", {
        "the last block, which is not full, is dropped": [64, 2], "codes of the filling are kept": [96, 3]})
    expect(bool(torch.isfinite(scales).all()), "a block of zeros has a finite scale", got=scales)
    same(codes[:32], torch.full((32,), 7, dtype=torch.uint8), "the codes of a block of zeros", {
        "zero is divided by zero": True})
    same(scales[-1:], weight[64:].abs().max()[None], "the scale of the last block")


@pytest.mark.task("3.3", points=6, hint="0x4A: the 4 came first")
def test_two_codes_share_a_byte_the_earlier_one_in_the_high_half(lib, seed):
    codes = torch.randint(0, 16, (10,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    codes[:2] = torch.tensor([4, 10])
    got, pairs = lib.pack_nibbles(codes), codes.view(-1, 2)
    same(got, (pairs[:, 0] * 16 + pairs[:, 1])[:, None], "the packed bytes", {
        "the two halves are exchanged": (pairs[:, 1] * 16 + pairs[:, 0])[:, None],
        "nothing is packed": got.numel() == 10,
        "codes far apart are paired, not neighbors": (codes[:5] * 16 + codes[5:])[:, None]})
    expect(got.dtype == torch.uint8, "packed codes are uint8", "torch.uint8", str(got.dtype))


@pytest.mark.task("3.3", points=4, values=False)
def test_unpacking_gives_the_codes_back_odd_counts_included(lib, seed):
    for count in (1, 9, 64):
        codes = torch.randint(0, 16, (count,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
        packed = lib.pack_nibbles(codes, 7)
        expect(
            packed.numel() == (count + 1) // 2,
            f"{count} codes take {(count + 1) // 2} bytes",
            str((count + 1) // 2),
            str(packed.numel()),
            {"the last code of an odd count is dropped": packed.numel() < (count + 1) // 2},
        )
        if count % 2:
            same(packed.flatten()[-1:], codes[-1:] * 16 + 7, "the last byte of an odd count",
                 {"the filler is not used": codes[-1:] * 16})
        whole = torch.cat([codes, torch.full((count % 2,), 7, dtype=torch.uint8)])
        swapped = whole.view(-1, 2).flip(1).flatten()[:count]
        same(lib.unpack_nibbles(packed, count), codes, f"{count} codes packed and unpacked", {
            "the two halves are exchanged": swapped, "the filler is not left out": count % 2 == 1})


@pytest.mark.task("3.4", points=10, hint="look the value up, then multiply by the scale of its block")
def test_each_code_becomes_its_value_times_the_scale_of_its_block(lib, seed):
    count, size = 64 + 64 + 9, 64
    codes = torch.randint(0, 16, (count,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    scales = torch.tensor([0.5, 2.0, 3.0]) + seed % 7
    own = scales.repeat_interleave(size)[:count]
    same(lib.dequantize_blocks(codes, scales, NF4, size), NF4[codes.long()] * own, "the dequantized weights", {
        "the scales are left out": NF4[codes.long()],
        "the first scale is used for all": NF4[codes.long()] * scales[0],
        "codes are taken for values": codes.float() * own,
        "scales are divided by": NF4[codes.long()] / own})


def double_quantized(absmax, codebook, offset):
    """The second level, by its definition: blocks of 256, 8 bits each."""
    blocks = (absmax - offset).split(256)
    largest = torch.stack([block.abs().max() for block in blocks])
    codes = [
        (block[:, None] / top - codebook[None]).abs().argmin(1) for block, top in zip(blocks, largest, strict=True)
    ]
    return largest, torch.cat([codebook[code] * top for code, top in zip(codes, largest, strict=True)]) + offset


@pytest.mark.task("3.5", points=6, hint="subtract the mean first: all scales are positive")
def test_scales_are_stored_around_their_mean(lib, seed):
    absmax = normal(seed, 300).abs() * 0.02 + 0.05
    got, mean = lib.quantize_absmax(absmax), absmax.mean()
    same(
        got.offset,
        mean,
        "the offset",
        {"the mean is not taken off": 0.0, "the smallest scale is taken off": absmax.min()},
    )
    same(
        got.absmax,
        torch.stack([(block - mean).abs().max() for block in absmax.split(256)]),
        "the second level's scales",
        {
            "the mean is not taken off before the maximum": torch.stack([block.max() for block in absmax.split(256)]),
            "there is one scale for all": (absmax - mean).abs().max()[None],
        },
    )


@pytest.mark.task("3.5", points=4, values=False)
def test_the_scales_come_back_from_8_bits(lib, seed):
    absmax, book = normal(seed, 300).abs() * 0.02 + 0.05, lib.dynamic_codebook()
    got, gap = lib.quantize_absmax(absmax), (absmax - absmax.mean()).abs().max()
    expect(got.codes.dtype == torch.uint8 and len(got.codes) == 300, "there is one 8-bit code for each scale",
           "300 codes of uint8", f"{len(got.codes)} codes of {got.codes.dtype}")
    values = book[got.codes.long()] * got.absmax.repeat_interleave(256)[:300] + got.offset
    reference = double_quantized(absmax, book, absmax.mean())[1]
    same(
        values,
        reference,
        "the scales after 8 bits",
        {
            "the second level is NF4 again: it has 256 values, not 16": int(got.codes.max()) <= 15,
            "the offset is not taken off before the codes are chosen": (values - absmax).abs().max() > 0.1 * gap,
        },
        atol=0.02 * gap.item(),
    )


@pytest.mark.task("3.6", points=5)
def test_bits_of_a_very_large_tensor(lib, seed):
    same(lib.bits_per_weight(), 4.5, "bits a weight of NF4", {
        "the constants are not counted": 4.0, "a scale is counted in bytes": 4 + 4 / 64})
    same(lib.bits_per_weight(double=True), 4 + 8 / 64 + 32 / (64 * 256), "bits a weight with double quantization", {
        "the constants are not counted": 4.0, "double quantization is not looked at": 4.5,
        "the second level's own scales are forgotten": 4 + 8 / 64,
        "the second level is counted with 4 bits": 4 + 4 / 64 + 32 / (64 * 256)}, rtol=1e-9, atol=0)
    same(
        lib.bits_per_weight(block_size=128),
        4.25,
        "bits a weight in blocks of 128",
        {"the block size is not looked at": 4.5},
    )


@pytest.mark.task("3.6", points=5, hint="round up: a block that is not full has a scale too")
def test_bits_of_one_tensor_count_partly_filled_blocks(lib, seed):
    count = 64 * (3 + seed % 50) + 1 + 2 * (seed % 20)  # odd, and the last block is not full
    blocks, packed = count // 64 + 1, 8 * ((count + 1) // 2)
    same(
        lib.bits_per_weight(count),
        (packed + 32 * blocks) / count,
        f"bits a weight of {count} weights",
        {
            "the last block is not counted": (packed + 32 * (blocks - 1)) / count,
            "it is that of a very large tensor": 4.5,
        },
    )
    outer = -(-blocks // 256)
    same(lib.bits_per_weight(count, double=True), (packed + 8 * blocks + 32 * outer + 32) / count,
         f"bits a weight of {count} weights, double", {
             "the offset is not counted": (packed + 8 * blocks + 32 * outer) / count,
             "the second level's scale is not counted": (packed + 8 * blocks + 32) / count}, rtol=1e-9, atol=0)


@pytest.mark.task("3.7", points=6, hint="y = x Wᵀ, so the gradient of x is gradient @ W")
def test_product_and_gradient_are_those_of_the_dequantized_weight(lib, seed):
    weight = lib.quantize(normal(seed, 6, 8), "nf4", 32)
    float_weight = weight.dequantize()
    x, gradient = normal(seed + 1, 3, 8).requires_grad_(), normal(seed + 2, 3, 6)
    y = lib.FrozenMatmul.apply(x, weight)
    same(y, x.detach() @ float_weight.T, "the product")
    y.backward(gradient)
    expect(x.grad is not None, "the input gets a gradient", "a gradient", "None", {"backward gives none": True})
    same(x.grad, gradient @ float_weight, "the gradient of the input", {
        "the weight is transposed once too often": x.grad.shape != x.shape})


@pytest.mark.task("3.7", points=4, values=False, hint="what is saved for backward is 4 bits, not the float copy")
def test_no_float_copy_of_the_weight_waits_for_backward(lib, seed):
    weight, kept = lib.quantize(normal(seed, 16, 32)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = lib.FrozenMatmul.apply(normal(seed + 1, 2, 32).requires_grad_(), weight)
    kept += [value for value in vars(y.grad_fn).values() if isinstance(value, torch.Tensor)]
    large = [tensor for tensor in kept if tensor.is_floating_point() and tensor.numel() >= 16 * 32]
    expect(not large, "no float copy of the weight is kept", "the 4-bit weight alone",
           f"{len(large)} float tensors of the weight's size", {"the dequantized copy is kept for backward": True})


@pytest.mark.task("3.8", points=5, values=False)
def test_a_cpu_computes_in_float32_and_refuses_float16(lib, seed):
    got = lib.compute_dtype("cpu")
    expect(got == torch.float32, "auto on a CPU is float32", "torch.float32", str(got),
           {"a type is taken that this device has no hardware for": got in (torch.bfloat16, torch.float16)})
    for wanted in ("float32", "bfloat16"):
        got = lib.compute_dtype("cpu", wanted)
        expect(got == getattr(torch, wanted), f"{wanted} is given when it is asked for", wanted, str(got),
               {"what is asked for is not looked at": True})
    refuses(lambda: lib.compute_dtype(torch.device("cpu"), "float16"), "float16 on a CPU", mentions="float16")


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
    expect(lib.guard_bitsandbytes(model) is model, "the model is returned", "the model", "something else")
    left = [layer.support_avx512bf16_for_cpu for layer in layers]
    same(left, [False, False], "support_avx512bf16_for_cpu of the 4-bit layers", {
        "no flag is set": [True, True], "only layers on the top level are guarded": [False, True]})
    layers[1].weight.quant_state.packing_format_for_cpu = True
    refuses(lambda: lib.guard_bitsandbytes(model), "a layer that was repacked already", mentions="repack")


@pytest.mark.task(
    "3.10", points=10, hint="what is trained needs a gradient and two moments; what is frozen needs neither"
)
def test_what_is_there_all_the_time_by_method(lib, seed):
    layers = (64 * 64, 64 * (128 + seed % 64))
    for method, adapters in (("full", 0), ("lora", 5_000 + seed % 1_000), ("qlora", 5_000 + seed % 1_000)):
        sizes = lib.Sizes(sum(layers), 70_000, adapters, max(layers), 64_000, layers)
        every, bits = sum(layers) + 70_000, method == "qlora"
        trained, one = (every, 2) if method == "full" else (adapters, 4)
        constants = sum(-(-n // 64) * 4 for n in layers)
        want = {"weights": sum(layers) // 2 + 140_000 if bits else 2 * every, "constants": constants if bits else 0,
                "adapters": 4 * adapters, "gradients": one * trained, "optimizer": 8 * trained}
        got = lib.static_bytes(sizes, method, 2, False, 8)
        same(got, want, f"the bytes of {method}", {
            "the constants of 4 bits are not counted": bits and got.get("constants") == 0,
            "embeddings and norms are counted in 4 bits": bits and got.get("weights") == every // 2,
            "frozen weights get gradients": method != "full" and got.get("gradients", 0) > 4 * adapters,
            "frozen weights get optimizer state": method != "full" and got.get("optimizer", 0) > 8 * adapters,
            "4 bits are used without qlora": method == "lora" and got.get("weights", 0) < 2 * every})
