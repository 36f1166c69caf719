"""How many of a kind there are, as far as that can be told."""

from typing import NamedTuple

import numpy as np

__all__ = ["Estimate", "mean_shifted_to", "share_of"]


class Estimate(NamedTuple):
    """An estimated share, or number, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_known(self) -> bool:
        """Where nothing can be said, the value is 0, and the interval is not."""
        return self.value > 0 or self.high == 0

    def times(self, number: int) -> "Estimate":
        """The estimated number among so many."""
        return Estimate(*(number * x for x in self))


def share_of(successes: int, trials: int) -> Estimate:
    """A share by Jeffreys' rule: the mean and the quantiles of its posterior, given a prior of
    Beta(1/2, 1/2)."""
    from scipy.stats import beta  # with scikit-learn, where that is

    posterior = beta(successes + 0.5, trials - successes + 0.5)
    low, high = posterior.ppf([0.025, 0.975])
    return Estimate(float(posterior.mean()), float(low), float(high))


def mean_shifted_to(probabilities: np.ndarray, mean: float) -> np.ndarray:
    """Probabilities (N,) with one number added to all their logits, so that their mean is
    ``mean``, in (0, 1)."""
    clipped = np.clip(probabilities, 1e-12, 1 - 1e-12)
    logits = np.log(clipped) - np.log1p(-clipped)
    low, high = -60.0, 60.0
    for _ in range(60):  # halvings; the mean grows with the shift
        shift = (low + high) / 2
        shifted = 1 / (1 + np.exp(-(logits + shift)))
        low, high = (shift, high) if shifted.mean() < mean else (low, shift)
    return shifted
