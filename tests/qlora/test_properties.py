"""Property 9 over settings that nobody chose; the others that an adapter has to keep are in tests/lora."""
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from finetune_lib.qlora.loading import QuantizationConfig, kept_in_float, layers_in_4bit, load_base, quantize_linears
from finetune_lib.qlora.nf4 import bits_per_weight, from_bitsandbytes

from .conftest import KINDS, tiny_model

FIELDS = dict(quant_type=st.sampled_from(("nf4", "fp4")), double_quant=st.booleans(), kind=st.sampled_from(KINDS))


@settings(max_examples=16, deadline=None)
@given(**FIELDS, width=st.sampled_from((32, 48, 64, 96)))
def test_property_9_every_linear_layer_but_the_head_takes_four_bits_in_fact(quant_type, double_quant, kind, width):
    model = tiny_model(kind) if kind == "gpt2" else tiny_model(kind, hidden_size=width)
    asked = QuantizationConfig(quant_type=quant_type, double_quant=double_quant)
    weights = {name: layer.weight.numel() for name, layer in model.named_modules()
               if isinstance(layer, nn.Linear) or hasattr(layer, "nf")}
    quantize_linears(model, asked, kept_in_float(model.config, asked), torch.device("cpu"))
    packed = layers_in_4bit(model)
    assert set(weights) - set(packed) == {"lm_head"}
    for name, layer in packed.items():
        assert layer.quantized.packed.numel() == -(-weights[name] // 2)  # two weights in each byte
        assert layer.quantized.bits_per_weight() == bits_per_weight(weights[name], 64, double_quant)
        assert not any(tensor.numel() >= weights[name] for tensor in (*layer.parameters(), *layer.buffers()))


@settings(max_examples=8, deadline=None)
@given(**FIELDS)
def test_property_9_holds_for_what_bitsandbytes_loads(quant_type, double_quant, kind, folders):
    model = load_base(folders[kind], QuantizationConfig(quant_type=quant_type, double_quant=double_quant))
    for layer in layers_in_4bit(model).values():
        count = torch.Size(layer.weight.quant_state.shape).numel()
        assert layer.weight.dtype == torch.uint8 and layer.weight.numel() == count // 2
        assert from_bitsandbytes(layer.weight).bits_per_weight() == bits_per_weight(count, 64, double_quant)
