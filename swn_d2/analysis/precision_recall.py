"""Precision over recall of the last evaluation: of all classes together, and of each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..evaluation.coco import IOU_THRESHOLD
from .run_folder import RunFolder, evaluations_of
from .style import TEXT, color_of, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_precision_recall", "precision_recall"]

_COLUMNS = 5
_MOST_CLASSES = 5 * _COLUMNS - 1  # beside the panel of all


def precision_recall(runs: Sequence[RunFolder]) -> dict[str, np.ndarray]:
    """Precision over recall at an IoU of 0.5, as COCO's evaluation has it, whose AP50 is the mean.

    Returns:
        Class -> (runs, 101) precision at the recalls 0, 0.01, ... 1, from 0 to 1: of several runs,
        first the class in which the second gains most AP50 on the first; of one, that of the
        highest AP50.

    Raises:
        UserError: see :func:`.run_folder.evaluations_of`; or there is no object.
    """
    evaluations = evaluations_of(runs)
    of_runs = [evaluation.results.precisions() for evaluation in evaluations]
    names = evaluations[0].results.class_names
    curves = {
        names[k]: np.stack([of_run[k] for of_run in of_runs])
        for k in of_runs[0]  # which classes have objects does not depend on the run
    }
    if not curves:
        raise UserError(f"{evaluations[0].dataset} has no object to be detected.")
    return dict(sorted(curves.items(), key=lambda item: -_gain(item[1])))


def _gain(curves: np.ndarray) -> float:
    ap = curves.mean(axis=1)
    return ap[0] if len(ap) == 1 else ap[1] - ap[0]


def draw_precision_recall(runs: Sequence[RunFolder]) -> "Figure":
    """Draw a panel for the mean over the classes, and one for each class.

    Of very many classes, those are drawn in which the runs differ most; of a single run, those with
    the lowest AP50.

    Raises:
        UserError: see :func:`precision_recall`.
    """
    curves = precision_recall(runs)
    drawn, what = list(curves), ""
    if len(curves) > _MOST_CLASSES:
        if len(runs) > 1:
            drawn.sort(key=lambda name: -np.ptp(curves[name].mean(axis=1)))
            what = f"the {_MOST_CLASSES} of {len(curves)} classes in which the runs differ most"
        else:
            drawn.reverse()
            what = f"the {_MOST_CLASSES} of {len(curves)} classes with the lowest AP50"
        drawn = sorted(drawn[:_MOST_CLASSES], key=list(curves).index)
    panels = {"mean of all classes": np.mean(list(curves.values()), axis=0)}
    panels |= {name: curves[name] for name in drawn}

    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(2.4 * columns, 1.95 * rows + 0.5)
    all_axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, (name, of_runs) in zip(all_axes.flat, panels.items(), strict=False):
        _draw(axes, name, of_runs)
    for axes in all_axes.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in all_axes[:, 0]:
        axes.set_ylabel("precision (%)")
    for i in range(columns):  # the lowest panel of each column
        lowest = all_axes[(len(panels) - 1 - i) // columns, i]
        lowest.set_xlabel("recall (%)")
        lowest.tick_params(labelbottom=True)
    if len(runs) > 1:
        handles = [
            all_axes[0, 0].plot([], [], color=color_of(i), label=run.name)[0]
            for i, run in enumerate(runs)
        ]
        figure.legend(
            handles=handles, loc="outside upper left", ncols=4, frameon=False, labelcolor=TEXT
        )
    dataset = runs[0].evaluation.dataset
    title = f"{dataset}, IoU {IOU_THRESHOLD:g}; numbers: AP50"
    figure.supxlabel(f"{title}; {what}" if what else title, color=TEXT, size=9, x=0, ha="left")
    return figure


def _draw(axes: "Axes", name: str, of_runs: np.ndarray) -> None:
    recall = np.linspace(0, 100, of_runs.shape[1])
    for i, precision in enumerate(100 * of_runs):
        axes.plot(recall, precision, color=color_of(i), linewidth=1.5)
        axes.text(
            *(0.97, 0.95 - 0.12 * i, f"{precision.mean():.1f}"),
            **{"transform": axes.transAxes, "ha": "right", "va": "top"},
            **{"color": color_of(i), "size": 9},
        )
    axes.set_title(name)
    axes.set(xlim=(0, 100), ylim=(0, 103), xticks=[0, 50, 100], yticks=[0, 50, 100])
    plain_axes(axes, grid="both")
