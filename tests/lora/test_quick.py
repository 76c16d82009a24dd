"""Base and adapter in one node of the graph: right by slopes, used where it may be, and nowhere else."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from finetune_lib.lora.adapter import LoRALinear
from finetune_lib.lora.quick import QuickLoRALinear, QuickProducts

VIEWS = {
    "as it is": lambda x: x,
    "transposed": lambda x: x.transpose(0, 1),
    "expanded": lambda x: x[:1].expand_as(x),
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2],
}


def layer_of(bias=True, dropout=0.0):
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(6, 4, bias=bias), r=2, lora_alpha=4, lora_dropout=dropout, init_lora_weights=False)
    layer.base.requires_grad_(False)
    return layer


def in_both_orders(layer, say):
    """What is said with the layer in plain and in quick order."""
    said = []
    for layer.__class__ in (LoRALinear, QuickLoRALinear):
        torch.manual_seed(1)
        said.append(say(layer))
    return said


def is_one_node(layer, x):
    layer.__class__ = QuickLoRALinear
    return type(layer(x).grad_fn).__name__ == "QuickProductsBackward"


def assert_same(layer, x):
    def say(layer):
        learned = [x, *(weight for weight in layer.parameters() if weight.requires_grad)]
        output = layer(x)
        return output, *torch.autograd.grad(output.float().square().sum(), learned)

    plain, quick = in_both_orders(layer, say)
    for expected, other in zip(plain, quick, strict=True):
        assert other.dtype == expected.dtype and other.shape == expected.shape
        torch.testing.assert_close(other, expected)


@settings(max_examples=20, deadline=None)
@given(sizes=st.tuples(*[st.integers(1, 4)] * 5), bias=st.booleans(), scaling=st.floats(-2, 2))
def test_the_gradients_are_the_slopes(sizes, bias, scaling):
    rows, columns, d_in, d_out, r = sizes
    x, lora_A, lora_B, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True)
                            for shape in [(rows, columns, d_in), (r, d_in), (d_out, r), (d_out,)])
    weight = torch.randn(d_out, d_in, dtype=torch.float64)
    torch.autograd.gradcheck(QuickProducts.apply, (x, weight, b if bias else None, lora_A, lora_B, scaling))


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
@pytest.mark.parametrize("shape", [(2, 2, 6), (3, 3, 6), (1, 1, 6), (2, 2, 3, 6), (0, 0, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_inputs_lie_in_memory_as_they_like(bias, shape, view):
    layer = layer_of(bias)
    x = view(torch.randn(shape)).detach().requires_grad_()
    assert is_one_node(layer, x)
    assert_same(layer, x)
    assert_same(layer, view(torch.randn(shape, requires_grad=True)))


@pytest.mark.parametrize("of_base", [True, False])
def test_what_needs_no_gradient_gets_none_and_a_bias_that_learns_does(of_base):
    layer = layer_of()
    layer.base.bias.requires_grad_(of_base)
    x = torch.randn(3, 6)
    assert is_one_node(layer, x)

    def say(layer):
        layer.zero_grad()
        layer(x).square().sum().backward()
        return {name: weight.grad for name, weight in layer.named_parameters()}

    plain, quick = in_both_orders(layer, say)
    assert quick["base.weight"] is None and (quick["base.bias"] is not None) is of_base
    for name, gradient in plain.items():
        torch.testing.assert_close(quick[name], gradient)


def other_weight(layer):
    layer.base.weight.requires_grad_()


def hook(layer):
    layer.base.register_forward_hook(lambda module, given, output: output * 2)


def pre_hook(layer):
    layer.base.register_forward_pre_hook(lambda module, given: (given[0] * 2,))


def backward_hook(layer):
    layer.base.register_full_backward_hook(lambda module, inner, outer: (inner[0] * 2,))


def backward_pre_hook(layer):
    layer.base.register_full_backward_pre_hook(lambda module, outer: (outer[0] * 2,))


def other_forward(layer):
    before = layer.base.forward
    layer.base.forward = lambda x: before(x) * 2


def other_class(layer):
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    layer.base.__class__ = Doubled


def parametrized(layer):
    torch.nn.utils.parametrizations.weight_norm(layer.base)
    layer.base.requires_grad_(False)


COMES_BETWEEN = [other_weight, hook, pre_hook, backward_hook, backward_pre_hook, other_forward, other_class,
                 parametrized]


@pytest.mark.parametrize("change", COMES_BETWEEN, ids=lambda change: change.__name__)
def test_whoever_listens_at_the_base_or_changes_it_is_heard(change):
    layer = layer_of()
    change(layer)
    x = torch.randn(2, 3, 6, requires_grad=True)
    assert not is_one_node(layer, x)
    assert_same(layer, x)


def test_other_number_types_stay_what_they_are():
    layer = layer_of()
    layer.base.to(torch.bfloat16)
    x = torch.randn(2, 3, 6, requires_grad=True)
    assert not is_one_node(layer, x.bfloat16())
    plain, quick = in_both_orders(layer, lambda layer: layer(x.bfloat16()))
    assert quick.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(quick, plain)
    layer = layer_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_one_node(layer, x)
        plain, quick = in_both_orders(layer, lambda layer: layer(x))
    assert quick.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(quick, plain)


def test_dropout_is_the_adapters_alone_and_ends_with_training():
    layer, x = layer_of(dropout=0.5), torch.randn(2, 3, 6, requires_grad=True)
    assert not is_one_node(layer, x)
    assert_same(layer, x)  # the same inputs are dropped
    layer.eval()
    assert is_one_node(layer, x)
    assert_same(layer, x)


def test_a_layer_that_is_not_active_is_its_base():
    layer, x = layer_of(), torch.randn(2, 3, 6)
    layer.__class__, layer.active = QuickLoRALinear, False
    assert torch.equal(layer(x), layer.base(x))


def test_a_model_may_change_the_output_in_place():
    x = torch.randn(2, 3, 6, requires_grad=True)

    def say(layer):
        output = layer(x).mul_(2).relu_()
        return torch.autograd.grad(output.sum(), [x, layer.lora_A, layer.lora_B])

    for expected, other in zip(*in_both_orders(layer_of(), say), strict=True):
        torch.testing.assert_close(other, expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    layer, x = layer_of(), torch.randn(2, 3, 6, requires_grad=True)
    layer.__class__ = QuickLoRALinear
    said = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
        layer.zero_grad()
        run(x).square().sum().backward()
        said.append((layer.lora_A.grad, layer.lora_B.grad))
    for expected, other in zip(*said, strict=True):
        torch.testing.assert_close(other, expected, rtol=0, atol=0)


def test_a_compiled_layer_says_the_same():
    layer, x = layer_of(), torch.randn(2, 3, 6, requires_grad=True)
    layer.__class__ = QuickLoRALinear
    said = []
    for run in (layer, torch.compile(layer, backend="aot_eager")):
        output = run(x)
        said.append((output, *torch.autograd.grad(output.square().sum(), [x, layer.lora_A, layer.lora_B])))
    for expected, other in zip(*said, strict=True):
        torch.testing.assert_close(other, expected)


def test_an_input_changed_in_place_before_the_way_back_is_told():
    hidden = torch.randn(2, 6, requires_grad=True) * 1
    layer = layer_of()
    layer.__class__ = QuickLoRALinear
    total = layer(hidden).sum()
    with torch.no_grad():
        hidden.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_a_gradient_of_gradients_is_refused_and_never_wrong():
    layer, x = layer_of(), torch.randn(2, 6)
    layer.__class__ = QuickLoRALinear
    slope, = torch.autograd.grad(layer(x).square().sum(), layer.lora_A, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
