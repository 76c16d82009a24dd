"""Checks of the sample milestone."""
import numpy as np
import pytest

from milestones.expecting import expect, refuses, same


@pytest.fixture
def matrices(seed):
    draw = np.random.default_rng(seed)
    return [draw.normal(size=shape) for shape in ((5, 6), (3, 6), (4, 3), (4, 6))]


@pytest.mark.task("2.1", points=10, hint="what must not change when r is doubled?")
def test_scale_is_alpha_over_r(lib, seed):
    alpha, r = 1 + seed % 31, 2 + seed % 7
    same(lib.scaling(alpha, r), alpha / r, "the scale", {
        "alpha is not divided by r": alpha, "alpha is divided by the root of r": alpha / r**0.5})


@pytest.mark.task("2.1", points=10, values=False)
def test_rank_zero_is_refused(lib):
    refuses(lambda: lib.scaling(16, 0), "a rank of 0", ValueError, "at least 1")


@pytest.mark.task("2.2", points=30)
def test_product_goes_down_then_up(lib, matrices):
    x, a, b, _ = matrices
    same(lib.product(x, a, b), np.einsum("ti,ri,or->to", x, a, b), "the product")


@pytest.mark.task("2.3", points=30)
def test_forward_adds_the_scaled_product(lib, matrices):
    x, a, b, w = matrices
    base, adapter = x @ w.T, x @ a.T @ b.T
    same(lib.Layer(w, a, b, 6).forward(x), base + 2 * adapter, "the output",
         {"the adapter is not scaled": base + adapter, "the base is left out": 2 * adapter})


@pytest.mark.task("2.10", points=10)
def test_count_is_both_matrices(lib, matrices):
    x, a, b, w = matrices
    got = lib.count(lib.Layer(w, a, b, 6))
    expect(got == 30, "both matrices are counted", 30, got, {"only A is counted": got == 18})
