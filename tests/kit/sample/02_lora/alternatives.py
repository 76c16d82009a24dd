"""Other right answers to the sample milestone."""
from milestones.listed import Alternative

ALTERNATIVES = [
    Alternative("einsum", "2.2", "x @ a.T @ b.T", 'np.einsum("ti,ri,or->to", x, a, b)'),
    Alternative("division by another name", "2.1", "alpha / r", "alpha * r**-1"),
    Alternative("in place", "2.3", "", """
class Layer:
    def __init__(self, weight, a, b, alpha):
        self.weight, self.a, self.b, self.alpha = weight, a, b, alpha

    def forward(self, x):
        y = x @ self.weight.T
        y += product(x, self.a, self.b) * scaling(self.alpha, self.a.shape[0])
        return y
"""),
    Alternative("other words", "2.10", "", """
def count(layer: Layer) -> int:
    return sum(m.size for m in (layer.a, layer.b))
"""),
]
