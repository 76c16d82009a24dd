"""Other right answers to the sample milestone."""
from milestones.listed import Alternative

ALTERNATIVES = [
    Alternative("einsum", "2.2", "x @ a.T @ b.T", 'np.einsum("ti,ri,or->to", x, a, b)'),
    Alternative("other words", "2.10", "", """
def count(layer: Layer) -> int:
    return sum(m.size for m in (layer.a, layer.b))
"""),
]
