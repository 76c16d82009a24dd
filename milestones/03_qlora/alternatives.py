"""Other right answers to milestone 3."""
from milestones.listed import Alternative

ALTERNATIVES = [
    Alternative(
        "the values written down",
        "3.1",
        "",
        '''
def nf4_codebook() -> Tensor:
    """The sixteen values, as bitsandbytes has them."""
    return torch.tensor([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                         -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                         0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                         0.7229568362236023, 1.0])
''',
    ),
    Alternative(
        "a loop over blocks",
        "3.2",
        "",
        '''
def quantize_blocks(weight: Tensor, codebook: Tensor, block_size: int = 64) -> tuple[Tensor, Tensor]:
    """Block by block, dividing in float64."""
    codes, scales = [], []
    for block in weight.detach().reshape(-1).double().split(block_size):
        top = block.abs().max().clamp(min=1e-38)
        distance = (block[:, None] / top - codebook.double()[None, :]).abs()
        codes.append(distance.argmin(dim=1).to(torch.uint8))
        scales.append(block.abs().max().float())
    return torch.cat(codes), torch.stack(scales)
''',
    ),
    Alternative(
        "multiplication for a shift", "3.3", "(pairs[:, :1] << 4) | pairs[:, 1:]", "pairs[:, :1] * 16 + pairs[:, 1:]"
    ),
    Alternative("division for a mask", "3.3", "[packed >> 4, packed & 15]", "[packed // 16, packed % 16]"),
    Alternative(
        "repeated scales",
        "3.4",
        "",
        '''
def dequantize_blocks(codes: Tensor, absmax: Tensor, codebook: Tensor, block_size: int = 64) -> Tensor:
    """Repeat each scale for its block."""
    return codebook.float()[codes.long()] * absmax.repeat_interleave(block_size)[: len(codes)]
''',
    ),
    Alternative(
        "in place",
        "3.5",
        "blocks = to_blocks(absmax - offset, OUTER_BLOCK)",
        "centered = absmax.clone()\n    centered -= offset\n    blocks = to_blocks(centered, OUTER_BLOCK)",
    ),
    Alternative(
        "math.ceil", "3.6", "blocks = -(-count // block_size)", "blocks = (count + block_size - 1) // block_size"
    ),
    Alternative(
        "einsum",
        "3.7",
        "F.linear(x, weight.dequantize(x.dtype))",
        'torch.einsum("...i,oi->...o", x, weight.dequantize(x.dtype))',
    ),
    Alternative(
        "what backward needs as saved tensors",
        "3.7",
        """        ctx.weight = weight
""",
        """        ctx.save_for_backward(weight.packed)
        ctx.weight = weight
""",
    ),
    Alternative(
        "arithmetic in whole bytes and float64",
        "3.4",
        "",
        '''
def dequantize_blocks(codes: Tensor, absmax: Tensor, codebook: Tensor, block_size: int = 64) -> Tensor:
    """A loop over blocks, multiplied in float64 and rounded once."""
    parts = [codebook[part.long()].double() * scale.double()
             for part, scale in zip(codes.split(block_size), absmax, strict=True)]
    return torch.cat(parts).float()
''',
    ),
    Alternative(
        "a table of types",
        "3.8",
        "return getattr(torch, wanted)",
        'return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[wanted]',
    ),
    Alternative(
        "if for a conditional",
        "3.10",
        'four_bits = sizes.quantized if method == "qlora" else 0',
        'four_bits = 0\n    if method == "qlora":\n        four_bits = sizes.quantized',
    ),
]
