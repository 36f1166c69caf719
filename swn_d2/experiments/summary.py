"""What the seeds of a row say: mean, spread, and the paired difference to the baseline."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import require_scipy

__all__ = ["Difference", "Summary", "half_width", "paired_difference"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Of a row to the baseline, over the seeds that both have.

    Attributes:
        half_width: of the 95 % interval; None for a single seed.
    """

    mean: float
    half_width: float | None
    pairs: int


@dataclass(frozen=True)
class Summary:
    """A row in one metric.

    Attributes:
        values: seed -> percent.
        std: the sample standard deviation; None for fewer than two seeds.
        difference: None for the baseline, and where there is no common seed.
    """

    row: str
    metric: str
    values: Mapping[int, float]
    difference: Difference | None

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def std(self) -> float | None:
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None


def half_width(values: Iterable[float]) -> float | None:
    """Half the 95 % interval of the mean of normal values, by Student's t with n - 1 degrees of
    freedom; None for fewer than two.

    Raises:
        UserError: SciPy is not installed.
    """
    values = list(values)
    if len(values) < 2:
        return None
    require_scipy()
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float]
) -> Difference | None:
    """``values`` minus ``baseline``, both seed -> value, seed by seed."""
    differences = [values[seed] - baseline[seed] for seed in values if seed in baseline]
    if not differences:
        return None
    return Difference(statistics.fmean(differences), half_width(differences), len(differences))
