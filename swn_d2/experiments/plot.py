"""The picture of the table: every seed, the means, and the paired differences."""

from collections.abc import Sequence
from pathlib import Path

from ..analysis.style import TEXT, color_of, new_figure, plain_axes, save
from ..errors import require_matplotlib
from .summary import Summary, half_width

__all__ = ["plot_rows"]

# The shapes tell them apart as well.
_MEAN, _SEED = color_of(0), color_of(1)


def plot_rows(summaries: Sequence[Summary], baseline: str, file: Path) -> None:
    """Draw every row's seeds and mean, and beside them its difference to the baseline.

    Rows with less than half of the best mean, trainings that collapsed, are named at the left edge
    instead of stretching the axis.

    Args:
        summaries: of all rows in one metric; those without a value are drawn empty.
        file: where to write the picture, with a transparent background.

    Raises:
        UserError: Matplotlib is not installed, or the file can't be written.
    """
    require_matplotlib()
    figure = new_figure(9, 0.42 * len(summaries) + 1.5)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
    best = max((s.mean for s in summaries if s.mean is not None), default=0.0)
    for y, summary in enumerate(summaries):
        if summary.mean is None:
            continue
        if summary.mean < best / 2:
            for axis, text in (
                (left, f"◂ {summary.mean:.1f}"),
                (right, f"◂ {summary.difference.mean:+.1f}" if summary.difference else ""),
            ):
                place = axis.get_yaxis_transform()
                axis.text(0.01, y, text, transform=place, va="center", color=_MEAN, size=9)
            continue
        seeds = list(summary.values.values())
        below = [y + 0.25] * len(seeds)  # not under the bar
        left.scatter(seeds, below, s=20, facecolors="none", edgecolors=_SEED)
        left.errorbar(summary.mean, y, xerr=half_width(seeds), **_mean_style())
        if summary.difference:
            difference = summary.difference
            right.errorbar(difference.mean, y, xerr=difference.half_width, **_mean_style())

    metric = summaries[0].metric
    left.set_yticks(range(len(summaries)), [s.row for s in summaries])
    left.set_ylim(len(summaries) - 0.4, -0.6)  # the first row on top
    left.set_xlabel(f"{metric} (%)")
    right.set_xlabel(f"{metric}: difference to {baseline} (percentage points)")
    right.axvline(0, color=TEXT, linewidth=1, linestyle="--", zorder=1)
    left.scatter([], [], s=20, facecolors="none", edgecolors=_SEED, label="a seed")
    left.errorbar([], [], xerr=[], label="mean, 95 % interval", **_mean_style())
    figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=TEXT, fontsize=9)
    for axis in (left, right):
        plain_axes(axis, grid="x")
        axis.spines["left"].set_visible(False)
    right.tick_params(left=False)
    save(figure, file)


def _mean_style() -> dict:
    return {"fmt": "D", "markersize": 6, "color": _MEAN, "capsize": 4, "linewidth": 1.8}
