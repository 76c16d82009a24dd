"""Known mistakes of milestone 3, each with the check that catches it and the words that it says."""
from milestones.listed import Mistake

BOOK = "test_the_codebook_is_nf4s"
SCALES = "test_each_block_has_its_own_absmax"
CODES = "test_each_weight_gets_the_code_of_the_nearest_value"
EDGES = "test_a_block_that_is_not_full_and_a_block_of_zeros"
PACKED = "test_two_codes_share_a_byte_the_earlier_one_in_the_high_half"
BACK = "test_unpacking_gives_the_codes_back_odd_counts_included"
VALUES = "test_each_code_becomes_its_value_times_the_scale_of_its_block"
MEAN = "test_scales_are_stored_around_their_mean"
EIGHT = "test_the_scales_come_back_from_8_bits"
LIMIT, COUNT = "test_bits_of_a_very_large_tensor", "test_bits_of_one_tensor_count_partly_filled_blocks"
PRODUCT = "test_product_and_gradient_are_those_of_the_dequantized_weight"
COPY = "test_no_float_copy_of_the_weight_waits_for_backward"
BYTES = "test_what_is_there_all_the_time_by_method"

MISTAKES = [
    Mistake(
        "no exact zero",
        "3.1",
        "torch.cat([negative, torch.zeros(1), positive])",
        "torch.special.ndtri(torch.linspace(1 - TAIL, TAIL, 16).double()).float()",
        BOOK,
        "no value is exactly zero",
    ),
    Mistake("not brought to one", "3.1", "values / values.max()", "values", BOOK, "not brought to one"),
    Mistake("not sorted", "3.1", ".sort().values", "", BOOK, "ascending order"),
    Mistake(
        "one scale for the tensor",
        "3.2",
        "absmax = blocks.abs().amax(dim=1)",
        "absmax = blocks.abs().max().repeat(len(blocks))",
        SCALES,
        "one scale for the whole tensor",
    ),
    Mistake(
        "largest value", "3.2", "blocks.abs().amax(dim=1)", "blocks.amax(dim=1)", SCALES, "not the largest magnitude"
    ),
    Mistake(
        "wrong axis",
        "3.2",
        "blocks.abs().amax(dim=1)",
        "blocks.abs().amax(dim=0)[:len(blocks)]",
        "test_each_block_has_its_own_absmax",
        "",
    ),
    Mistake(
        "code by index",
        "3.2",
        "nearest(scaled.clamp(-1, 1), codebook)",
        "(scaled.clamp(-1, 1) * 7.5 + 7.5).round().clamp(0, 15).to(torch.uint8)",
        CODES,
        "not among the codebook's values",
    ),
    Mistake(
        "rounded down",
        "3.2",
        "nearest(scaled.clamp(-1, 1), codebook)",
        "(torch.searchsorted(codebook, scaled.contiguous(), right=True) - 1).clamp(0, 15).to(torch.uint8)",
        CODES,
        "rounded down",
    ),
    Mistake(
        "not scaled",
        "3.2",
        "scaled = blocks * (1 / absmax.clamp(min=TINY)).unsqueeze(1)",
        "scaled = blocks.clone()",
        CODES,
        "not divided by their scale",
    ),
    Mistake(
        "last block dropped",
        "3.2",
        "view(-1)[:n], absmax",
        "view(-1)[:n // block_size * block_size], absmax[:n // block_size]",
        EDGES,
        "is dropped",
    ),
    Mistake("filling kept", "3.2", ".view(-1)[:n]", ".view(-1)", EDGES, "filling are kept"),
    Mistake("zero by zero", "3.2", "(1 / absmax.clamp(min=TINY))", "(1 / absmax)", EDGES, "divided by zero"),
    Mistake(
        "nibbles exchanged",
        "3.3",
        "(pairs[:, :1] << 4) | pairs[:, 1:]",
        "(pairs[:, 1:] << 4) | pairs[:, :1]",
        PACKED,
        "exchanged",
    ),
    Mistake(
        "pairs far apart", "3.3", "pairs = codes.view(-1, 2)", "pairs = codes.view(2, -1).T", PACKED, "not neighbors"
    ),
    Mistake(
        "unpacked the other way", "3.3", "[packed >> 4, packed & 15]", "[packed & 15, packed >> 4]", BACK, "exchanged"
    ),
    Mistake("filler kept", "3.3", "view(-1)[:count]", "view(-1)", BACK, "filler is not left out"),
    Mistake("filler not used", "3.3", "value=filler", "value=0", BACK, "filler is not used"),
    Mistake(
        "odd one dropped",
        "3.3",
        "F.pad(codes, (0, len(codes) % 2), value=filler)",
        "codes[:len(codes) // 2 * 2]",
        BACK,
        "odd count is dropped",
    ),
    Mistake("scales left out", "3.4", "(values * absmax.unsqueeze(1))", "values", VALUES, "scales are left out"),
    Mistake("first scale for all", "3.4", "absmax.unsqueeze(1)", "absmax[0]", VALUES, "first scale is used for all"),
    Mistake("codes for values", "3.4", "codebook[codes.int()]", "codes.float()", VALUES, "taken for values"),
    Mistake("divided by scales", "3.4", "values * absmax", "values / absmax", VALUES, "divided by"),
    Mistake(
        "no offset", "3.5", "offset = absmax.mean()", "offset = absmax.mean() * 0", MEAN, "the mean is not taken off"
    ),
    Mistake("smallest for mean", "3.5", "absmax.mean()", "absmax.min()", MEAN, "smallest scale"),
    Mistake(
        "one outer scale",
        "3.5",
        "blocks = to_blocks(absmax - offset, OUTER_BLOCK)",
        "blocks = to_blocks(absmax - offset, len(absmax))",
        MEAN,
        "one scale for all",
    ),
    Mistake(
        "second level NF4 again",
        "3.5",
        "nearest(scaled, dynamic_codebook(absmax.device))",
        "nearest(scaled, nf4_codebook())",
        EIGHT,
        "NF4 again",
    ),
    Mistake(
        "codes without offset",
        "3.5",
        "scaled = on_grid(blocks *",
        "scaled = on_grid((blocks + offset) *",
        EIGHT,
        "the offset is not taken off",
    ),
    Mistake(
        "constants not counted",
        "3.6",
        "return 4 + (8 / block_size + 32 / (block_size * OUTER_BLOCK) if double else 32 / block_size)",
        "return 4.0",
        LIMIT,
        "constants are not counted",
    ),
    Mistake("scale in bytes", "3.6", "else 32 / block_size)", "else 4 / block_size)", LIMIT, "in bytes"),
    Mistake(
        "outer scales forgotten",
        "3.6",
        "8 / block_size + 32 / (block_size * OUTER_BLOCK)",
        "8 / block_size",
        LIMIT,
        "own scales are forgotten",
    ),
    Mistake(
        "last block not counted",
        "3.6",
        "blocks = -(-count // block_size)",
        "blocks = count // block_size",
        COUNT,
        "the last block is not counted",
    ),
    Mistake(
        "offset not counted",
        "3.6",
        "// OUTER_BLOCK) + 32) if",
        "// OUTER_BLOCK)) if",
        COUNT,
        "the offset is not counted",
    ),
    Mistake(
        "product with the wrong side",
        "3.7",
        "gradient @ ctx.weight.dequantize(gradient.dtype), None",
        "gradient @ ctx.weight.dequantize(gradient.dtype) * 0, None",
        PRODUCT,
        "all of it is zero",
    ),
    Mistake(
        "float copy kept",
        "3.7",
        "ctx.weight = weight",
        "ctx.weight = weight; ctx.copy = weight.dequantize(x.dtype)",
        COPY,
        "dequantized copy is kept",
    ),
    Mistake(
        "fp16 on a CPU",
        "3.8",
        "torch.float16 if cuda else torch.float32",
        "torch.float16",
        "test_a_cpu_computes_in_float32_and_refuses_float16",
        "no hardware",
    ),
    Mistake(
        "float16 accepted",
        "3.8",
        'if wanted == "float16" and not cuda:',
        'if wanted == "fp16" and not cuda:',
        "test_a_cpu_computes_in_float32_and_refuses_float16",
        "not checked",
    ),
    Mistake(
        "flag not set",
        "3.9",
        "layer.support_avx512bf16_for_cpu = False",
        "pass",
        "test_no_4_bit_layer_may_repack_its_weights",
        "no flag is set",
    ),
    Mistake(
        "repacked accepted",
        "3.9",
        'if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):',
        "if False:",
        "test_no_4_bit_layer_may_repack_its_weights",
        "not checked",
    ),
    Mistake(
        "constants forgotten", "3.10", "layers = sizes.quantized_layers if four_bits else ()", "layers = ()",
            BYTES, "constants of 4 bits"),
    Mistake(
        "head and embedding in 4 bits",
        "3.10",
        'sizes.quantized if method == "qlora" else 0',
        'sizes.quantized + sizes.other if method == "qlora" else 0',
        BYTES,
        "in 4 bits",
    ),
    Mistake(
        "gradients of frozen weights",
        "3.10",
        'trained = sizes.quantized + sizes.other if method == "full" else sizes.adapters',
        "trained = sizes.quantized + sizes.other + sizes.adapters",
        BYTES,
        "frozen weights get",
    ),
]
