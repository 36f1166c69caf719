"""How long it still takes, and how to say it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Work", "format_metric", "time_left"]


@dataclass(frozen=True)
class Work:
    """A part of a run, done or still to do.

    Attributes:
        row: the row that the run belongs to.
        iterations: of a training, 0 for an evaluation.
        seconds: that it took, where it is done.
    """

    row: str
    iterations: int
    seconds: float = 0.0


def time_left(to_do: Sequence[Work], done: Sequence[Work], jobs: int) -> float | None:
    """Seconds that ``to_do`` takes with ``jobs`` at a time, None as long as nothing is measured.

    A training takes what an iteration of its row took so far, or else of any row; an evaluation
    what others took, or else nothing.
    """
    each = []
    for work in to_do:
        like = [other for other in done if bool(other.iterations) == bool(work.iterations)]
        of_row = [other for other in like if other.row == work.row] or like
        if of_row:
            units = sum(max(other.iterations, 1) for other in of_row)
            seconds_per_unit = sum(other.seconds for other in of_row) / units
            each.append(max(work.iterations, 1) * seconds_per_unit)
        elif work.iterations:
            return None
    return max(sum(each) / jobs, max(each, default=0.0))


def format_metric(metrics: Mapping[str, float | None], metric: str) -> str:
    """A metric of one run, in percent."""
    value = metrics.get(metric)
    return "undefined" if value is None else f"{value:.2f}"
