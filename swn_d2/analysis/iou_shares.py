"""Figure 5 of the paper: which boxes the loss of the positives comes from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..recording import Record
from .pooling import (
    EARLY,
    LATE,
    LOSS_NAMES,
    WEIGHTS_OF,
    able,
    part,
    pooled,
    recording_of,
    row_title,
    stage_name,
    stages_of,
)
from .run_folder import RunFolder
from .style import TEXT, color_of, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BINS", "draw_iou_shares", "iou_shares"]

#: Edges of the bins of IoU. The paper's begin at 0.5, which a predicted box can fall short of.
BINS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_BIN_NAMES = ("< 0.5", "0.5–0.6", "0.6–0.7", "0.7–0.8", "0.8–0.9", "0.9–1")


def iou_shares(records: Sequence[Record], task: str, *, weighted: bool = True) -> np.ndarray:
    """Where the total loss of the positives lies, by the IoU of their predicted boxes.

    A record that has some of its iteration's positives stands for all of them.

    Args:
        task: "cls", "box" or "mask".
        weighted: whether losses are multiplied by their weights, as the detector does.

    Returns:
        (6,) the shares of the :data:`BINS` in percent; zeros if there is no loss.
    """
    totals = np.zeros(len(BINS) - 1)
    edges = np.array(BINS, dtype=np.float32)  # 0.7 as it is recorded
    for record in records:
        samples = record.positives
        loss = samples[f"{task}_loss"].astype(np.float64)
        if weighted:
            if task == "cls" and "label_loss" in samples:
                loss = loss - (1 - samples["label_weight"]) * samples["label_loss"]
            loss = loss * samples[f"{task}_weight"]
        iou = np.clip(samples["iou"], BINS[0], BINS[-1])
        all_for_some = record.num_positives / max(len(iou), 1)
        totals += all_for_some * np.histogram(iou, edges, weights=loss)[0]
    return 100 * totals / (totals.sum() or 1.0)


def draw_iou_shares(runs: Sequence[RunFolder]) -> "Figure":
    """Draw the shares of each run, early and late in the training: a row for each loss.

    Raises:
        UserError: no run has a recording with positives.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shown = able(runs, _rows)
    rows = sorted({row for _, rows in shown for row in rows}, key=_order)
    figure = new_figure(10, 2.6 * len(rows) + 0.5)
    axes = figure.subplots(len(rows), 2, squeeze=False, sharey="row")
    places = np.arange(len(BINS) - 1)
    for row, (stage, task) in enumerate(rows):
        having = [run for run, rows_of_run in shown if (stage, task) in rows_of_run]
        width = 0.8 / len(having)
        for axis, span, when in zip(axes[row], (EARLY, LATE), ("early", "late"), strict=True):
            plain_axes(axis)
            title = row_title(stage_name(stage), f"{LOSS_NAMES[task]} loss", when)
            title += f": {span[0]}–{span[1]} % of the recording"
            axis.set_title(title, loc="left", color=TEXT, size=10)
            for i, run in enumerate(having):
                records = part(run.recording, stage, span)
                x = places + (i - (len(having) - 1) / 2) * width
                color = color_of(runs.index(run))
                axis.bar(x, iou_shares(records, task), 0.9 * width, color=color)
                weights = (pooled(records, f"{name}_weight") for name in WEIGHTS_OF[task])
                if any((weight != 1).any() for weight in weights):
                    plain = iou_shares(records, task, weighted=False)
                    axis.hlines(plain, x - 0.45 * width, x + 0.45 * width, TEXT, linewidth=2)
            axis.set_xticks(places, _BIN_NAMES)
        axes[row, 0].set_ylabel("share of the loss (%)")
    for axis in axes[-1]:
        axis.set_xlabel("IoU of the predicted box with its object")
    names = {run.name: color_of(runs.index(run)) for run, _ in shown}
    figure.legend(
        handles=[
            *(Patch(color=color, label=name) for name, color in names.items()),
            Line2D([], [], color=TEXT, linewidth=2, label="the same samples without weights"),
        ],
        loc="outside upper left",
        ncols=4,
        frameon=False,
        labelcolor=TEXT,
        fontsize=9,
    )
    return figure


def _rows(run: RunFolder) -> list[tuple[str, str]]:
    """The (stage, task) of the losses that a run can show early and late."""
    records = recording_of(run)
    rows = []
    for stage in stages_of(records):
        parts = [part(records, stage, span) for span in (EARLY, LATE)]
        for task in WEIGHTS_OF:
            if all(pooled(records, f"{task}_loss").any() for records in parts):
                rows.append((stage, task))
    if not rows:
        raise UserError(
            f"the recording of {run.name} has no positives early or late in the training, whose "
            "losses could be compared."
        )
    return rows


def _order(row: tuple[str, str]) -> tuple[str, int]:
    stage, task = row
    return stage, list(WEIGHTS_OF).index(task)
