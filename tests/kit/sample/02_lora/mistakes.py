"""Mistakes of the sample milestone."""
from milestones.listed import Mistake

FORWARD = "test_forward_adds_the_scaled_product"

MISTAKES = [
    Mistake("alpha not divided by r", "2.1", "alpha / r", "alpha", "test_scale_is_alpha_over_r", "not divided by r"),
    Mistake("no refusal", "2.1", "if r < 1", "if r < -1", "test_rank_zero_is_refused", "is checked"),
    Mistake("no scale", "2.3", "scaling(self.alpha, len(self.a)) * ", "", FORWARD, "not scaled"),
]
