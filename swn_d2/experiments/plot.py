"""The picture of the table: every seed, the means, and the paired differences."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..analysis.style import TEXT, color_of, new_figure, plain_axes, save
from ..errors import require_matplotlib
from .summary import Summary, half_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_rows", "plot_rows"]

_COLLAPSED = 0.1  # of the best mean
_LONGEST = 40  # characters of a line below an axis
# The shapes tell them apart as well.
_MEAN, _SEED = color_of(0), color_of(1)


def plot_rows(summaries: Sequence[Summary], baseline: str, file: Path) -> None:
    """Write the picture of :func:`draw_rows`, with a transparent background.

    Raises:
        UserError: Matplotlib is not installed, or the file can't be written.
    """
    require_matplotlib()
    save(draw_rows(summaries, baseline), file)


def draw_rows(summaries: Sequence[Summary], baseline: str) -> "Figure":
    """Draw every row's seeds and mean, and beside them its difference to the baseline.

    Rows with less than a tenth of the best mean, trainings that collapsed, are numbers at the left
    edge where the axis of the others does not reach them.

    Args:
        summaries: of all rows in one metric. Those without a value are left out, if any has one.
    """
    summaries = [s for s in summaries if s.mean is not None] or summaries
    figure = new_figure(9, 0.42 * len(summaries) + 1.5)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
    best = max((s.mean or 0.0 for s in summaries), default=0.0)
    collapsed = []
    for y, summary in enumerate(summaries):
        if summary.mean is None:
            continue
        if summary.mean < _COLLAPSED * best:
            collapsed.append((y, summary))
        else:
            _draw_mean(left, y, summary)
            _draw_difference(right, y, summary)
    right.axvline(0, color=TEXT, linewidth=1, linestyle="--", zorder=1)
    # No metric is beyond, though an interval may be.
    low, high = left.get_xlim()
    left.set_xlim(max(low, 0), min(high, 100))
    for y, summary in collapsed:
        difference = summary.difference and summary.difference.mean
        for axes, value, text, draw in (
            (left, summary.mean, f"{summary.mean:.1f}", _draw_mean),
            (right, difference, f"{difference or 0:+.1f}".replace("-", "−"), _draw_difference),
        ):
            if value is None:
                continue
            axes.autoscale(False)
            if value >= axes.get_xlim()[0]:  # where the other rows' intervals reach as far
                draw(axes, y, summary)
            else:
                style = {"transform": axes.get_yaxis_transform(), "va": "center", "size": 9}
                axes.text(0.01, y, f"◂ {text}", color=_MEAN, **style)
    metric = summaries[0].metric
    left.set_yticks(range(len(summaries)), [s.row for s in summaries])
    left.set_ylim(len(summaries) - 0.4, -0.6)  # the first row on top
    left.set_xlabel(f"{metric} (%)")
    difference_in = f"{metric}: difference to {baseline} (percentage points)"
    right.set_xlabel(textwrap.fill(difference_in, _LONGEST))
    left.scatter([], [], s=20, facecolors="none", edgecolors=_SEED, label="a seed")
    left.errorbar([], [], xerr=[], label="mean, 95 % interval", **_mean_style())
    figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=TEXT, fontsize=9)
    for axis in (left, right):
        plain_axes(axis, grid="x")
        axis.spines["left"].set_visible(False)
    right.tick_params(left=False)
    return figure


def _draw_mean(axes: "Axes", y: float, summary: Summary) -> None:
    seeds = list(summary.values.values())
    below = [y + 0.25] * len(seeds)  # not under the bar
    axes.scatter(seeds, below, s=20, facecolors="none", edgecolors=_SEED)
    axes.errorbar(summary.mean, y, xerr=half_width(seeds), **_mean_style())


def _draw_difference(axes: "Axes", y: float, summary: Summary) -> None:
    if difference := summary.difference:
        axes.errorbar(difference.mean, y, xerr=difference.half_width, **_mean_style())


def _mean_style() -> dict:
    return {"fmt": "D", "markersize": 6, "color": _MEAN, "capsize": 4, "linewidth": 1.8}
