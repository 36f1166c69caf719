"""The distribution of the samples' weights in the course of a training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..recording import Record
from .pooling import (
    LATE,
    LOSS_NAMES,
    able,
    part,
    pooled,
    recording_of,
    row_title,
    stage_name,
    stages_of,
)
from .run_folder import RunFolder
from .style import TEXT, color_of, new_figure, plain_axes, weight_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["QUANTILES", "draw_weights", "log2_shares", "weight_bands"]

#: The bands' edges, and the median.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_LOWEST = 2.0**-6  # a weight of 0 has a place on the axis, too
_BINS_PER_OCTAVE = 6


def weight_bands(
    records: Sequence[Record], column: str, group: str = "positives", num_points: int = 60
) -> tuple[np.ndarray, np.ndarray]:
    """The quantiles of a weight over the iterations.

    Args:
        column: like "box_weight".
        group: "positives" or "negatives".
        num_points: at most; more records are pooled, equally many in each point.

    Returns:
        (T,) the mean iteration of each point, and (5, T) the :data:`QUANTILES`.
    """
    records = [record for record in records if len(getattr(record, group).get(column, ()))]
    if not records:
        return np.zeros(0), np.zeros((len(QUANTILES), 0))
    pieces = np.array_split(np.arange(len(records)), min(num_points, len(records)))
    points = [[records[i] for i in piece] for piece in pieces]
    iterations = [np.mean([record.iteration for record in point]) for point in points]
    values = [np.quantile(pooled(point, column, group), QUANTILES) for point in points]
    return np.array(iterations), np.array(values).T


def log2_shares(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A histogram of weights on a logarithmic scale.

    Args:
        weights: (n,), at least one; those below 1/64 count as 1/64.

    Returns:
        (B + 1,) the edges of the bins in log2 of the weight, of which one has its middle at
        weight 1, and (B,) the shares of the samples in percent.
    """
    places = np.log2(np.maximum(weights, _LOWEST)) * _BINS_PER_OCTAVE
    edges = np.arange(np.floor(places.min() + 0.5), np.floor(places.max() + 0.5) + 2) - 0.5
    counts = np.histogram(places, edges)[0]
    return edges / _BINS_PER_OCTAVE, 100 * counts / len(weights)


def draw_weights(runs: Sequence[RunFolder]) -> "Figure":
    """Draw, for every loss that a run weights, the weights over the iterations and at the end.

    Raises:
        UserError: no run has a recording, or all weights of all of them are 1.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    recorded = [run for run, _ in able(runs, recording_of)]
    rows = [
        (stage, task, group, run)
        for stage in stages_of(record for run in recorded for record in run.recording)
        for task in LOSS_NAMES
        for group in ("positives", "negatives")
        for run in recorded
        if (_weights(run, stage, task, group) != 1).any()
    ]
    if not rows:
        names = " and ".join(run.name for run in recorded)
        raise UserError(f"the weights of every task are 1 in {names}: nothing was weighted.")
    figure = new_figure(10, 2.5 * len(rows) + 0.4)
    all_axes = figure.subplots(len(rows), 2, squeeze=False, sharey="row", width_ratios=(3, 1))
    for axes, (stage, task, group, run) in zip(all_axes, rows, strict=True):
        bands, histogram = axes
        if bands is not all_axes[0, 0]:
            bands.sharex(all_axes[0, 0])
        color = color_of(runs.index(run))
        records = [record for record in run.recording if record.stage == stage]
        iterations, values = weight_bands(records, f"{task}_weight", group)
        lowest, low, median, high, highest = np.log2(np.maximum(values, _LOWEST))
        style = {"color": color, "linewidth": 0}
        bands.fill_between(iterations, lowest, highest, alpha=0.22, **style)
        bands.fill_between(iterations, low, high, alpha=0.4, **style)
        bands.plot(iterations, median, color=color, linewidth=2)
        last = pooled(part(run.recording, stage, LATE), f"{task}_weight", group)
        if len(last):
            edges, shares = log2_shares(last)
            histogram.barh(edges[:-1], shares, np.diff(edges), align="edge", color=color)
        plain_axes(bands, grid="both")
        plain_axes(histogram, grid="x")
        of_group = group if task == "cls" else ""
        title = row_title(
            run.name if len(runs) > 1 else "",
            stage_name(stage),
            f"weights of the {LOSS_NAMES[task]} loss",
            of_group,
        )
        bands.set_title(title, loc="left", color=TEXT, size=10)
        bands.set_ylabel("weight")
        for axis in axes:
            axis.axhline(0, color=TEXT, linewidth=1, linestyle="--", zorder=1)
        weight_ticks(bands)
    all_axes[-1, 0].set_xlabel("iteration")
    all_axes[-1, 1].set_xlabel("samples (%)")
    all_axes[0, 1].set_title(f"last {LATE[1] - LATE[0]} %", loc="left", color=TEXT, size=10)
    figure.legend(
        handles=[
            Patch(color=TEXT, alpha=0.22, linewidth=0, label="5–95 %"),
            Patch(color=TEXT, alpha=0.5, linewidth=0, label="25–75 %"),
            Line2D([], [], color=TEXT, linewidth=2, label="median"),
        ],
        loc="outside upper left",
        ncols=3,
        frameon=False,
        labelcolor=TEXT,
        fontsize=9,
    )
    return figure


def _weights(run: RunFolder, stage: str, task: str, group: str) -> np.ndarray:
    records = (record for record in run.recording if record.stage == stage)
    return pooled(records, f"{task}_weight", group)
