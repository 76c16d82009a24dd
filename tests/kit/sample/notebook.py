"""Cells of the sample notebook, as text: conftest.py splits it; nothing imports it."""
# ruff: noqa
# %%
#| default_exp lora.scale
# %%
#| export
import numpy as np
# %%
#| export
#| task: 2.1
def scaling(
    alpha: float,  # strength of the adapter
    r: int,  # rank
) -> float:
    """Factor of the adapter's product."""
    # 1. refuse a rank that cannot be
    if r < 1:
        raise ValueError(f"rank must be at least 1, got {r}")
    # 2. the factor, which does not grow with the rank
    return alpha / r
# %%
assert scaling(16, 8) == 2
# %%
#| export
#| task: 2.2
def product(
    x: np.ndarray,  # (T, d_in)
    a: np.ndarray,  # (r, d_in)
    b: np.ndarray,  # (d_out, r)
) -> np.ndarray:
    """The low-rank product, (T, d_out)."""
    # 1. down to the rank, then up
    return x @ a.T @ b.T
# %%
product(np.ones((2, 3)), np.ones((1, 3)), np.ones((4, 1))).shape
# %%
#| export
#| task: 2.3 forward
class Layer:
    """A layer with an adapter."""

    def __init__(self, weight, a, b, alpha):
        self.weight, self.a, self.b, self.alpha = weight, a, b, alpha

    def forward(self, x):
        """Base and adapter, (T, d_out)."""
        # 1. the base's answer
        base_answer = x @ self.weight.T
        # 2. add what the adapter says, scaled
        return base_answer + scaling(self.alpha, len(self.a)) * product(x, self.a, self.b)
# %%
Layer(np.eye(2), np.ones((1, 2)), np.ones((2, 1)), 2).forward(np.ones((1, 2)))
# %%
#| export
#| task: 2.10
def count(
    layer: Layer,  # what is counted
) -> int:
    """Number of the adapter's parameters."""
    # 1. both matrices
    return layer.a.size + layer.b.size
# %%
count(Layer(np.eye(2), np.ones((1, 2)), np.ones((2, 1)), 2))
