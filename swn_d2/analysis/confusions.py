"""What is taken for what: the confusion matrix, or of many classes the largest of its numbers."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluation.coco import IOU_THRESHOLD
from .run_folder import RunFolder, evaluations_of
from .style import TEXT, color_of, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["confusions", "draw_confusions"]

_MOST_CLASSES = 12  # of a matrix whose numbers can be read
_MOST_BARS = 12  # in a panel


def confusions(run: RunFolder, score_threshold: float = 0.5) -> Counter[tuple[Any, Any]]:
    """How many objects of a class were detected as which, whatever their class.

    Args:
        run: has an evaluation.
        score_threshold: detections with a lower score are left out.

    Returns:
        (category id of the object, that of the detection) -> number. The first is None for
        detections of nothing, or of what another detection has; the second for objects that no
        detection has.
    """
    (evaluation,) = evaluations_of([run])
    by_image = evaluation.results.pairs(score_threshold, by_class=False)
    return Counter(
        (object_ and object_["category_id"], detection and detection["category_id"])
        for pairs in by_image.values()
        for object_, detection in pairs
    )


def draw_confusions(runs: Sequence[RunFolder], *, score_threshold: float = 0.5) -> "Figure":
    """Draw a confusion matrix for each run; of more than 12 classes, bars for those pairs of
    classes, missed classes and false detections that are the most frequent.

    Raises:
        UserError: see :func:`.run_folder.evaluations_of`.
    """
    evaluations = evaluations_of(runs)
    counts = [confusions(run, score_threshold) for run in runs]
    names = evaluations[0].results.class_names
    if len(names) <= _MOST_CLASSES:
        figure = _matrices(runs, counts, names)
    else:
        figure = _bars(runs, counts, names)
    figure.supxlabel(
        f"{evaluations[0].dataset}; detections with a score of {score_threshold:.0%} or more,\n"
        f"of the object with which their IoU is {IOU_THRESHOLD:g} or more, whatever its class",
        **{"color": TEXT, "size": 9, "x": 0, "ha": "left"},
    )
    return figure


def _matrices(runs: Sequence[RunFolder], counts: Sequence[Counter], names: dict) -> "Figure":
    ids = [*names, None]
    width, height = (0.45 * len(ids) + margin for margin in (1.8, 1.4))
    columns = min(len(runs), max(1, int(14 / width)))
    rows = -(-len(runs) // columns)
    figure = new_figure(max(width * columns, 5), height * rows + 0.3)
    all_axes = figure.subplots(rows, columns, squeeze=False)
    for axes in all_axes.flat[len(runs) :]:
        axes.set_axis_off()
    for k, (axes, run, count) in enumerate(zip(all_axes.flat, runs, counts, strict=False)):
        matrix = np.array([[count[i, j] for j in ids] for i in ids])
        shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        for (i, j), share in np.ndenumerate(shares):
            if share:
                axes.fill_between(
                    *([j - 0.5, j + 0.5], i - 0.5, i + 0.5),
                    **{"color": color_of(k), "alpha": 0.08 + 0.6 * share, "linewidth": 0},
                )
                style = {"ha": "center", "va": "center", "size": 8, "color": TEXT}
                axes.text(j, i, f"{matrix[i, j]}", **style)
        axes.set_title(run.name if len(runs) > 1 else "")
        labels = list(names.values())
        axes.set_xticks(range(len(ids)), [*labels, "missed"], rotation=60, ha="right")
        axes.set_yticks(range(len(ids)), [*labels, "background"])
        axes.set(xlim=(-0.5, len(names) + 0.5), ylim=(len(names) + 0.5, -0.5), aspect="equal")
        axes.set_xlabel("detected as")
        axes.set_ylabel("object")
        plain_axes(axes, grid="both")
        axes.grid(visible=False)
        # Apart from the classes stand what was missed, and what is none.
        for line in (axes.axvline, axes.axhline):
            line(len(names) - 0.5, color=TEXT, linewidth=0.8)
    return figure


def _bars(runs: Sequence[RunFolder], counts: Sequence[Counter], names: dict) -> "Figure":
    from matplotlib.patches import Patch

    panels = {
        "one class for another": lambda i, j: None not in (i, j) and i != j,
        "objects missed": lambda i, j: j is None,
        "detected where nothing is": lambda i, j: i is None,
    }
    chosen = {}
    for title, belongs in panels.items():
        total = Counter()
        for count in counts:
            total.update({pair: n for pair, n in count.items() if belongs(*pair)})
        chosen[title] = [pair for pair, _ in total.most_common(_MOST_BARS)]
    height = 0.14 * len(runs) + 0.16  # of the bars of a pair
    num_bars = max(map(len, chosen.values()))
    figure = new_figure(13, height * num_bars + 1.4)
    all_axes = figure.subplots(1, len(panels))
    for axes, (title, pairs) in zip(all_axes, chosen.items(), strict=True):
        _draw_bars(axes, pairs, counts, names)
        axes.set_ylim(num_bars - 0.4, -0.6)  # bars of one height in all panels
        axes.set_title(title)
    if len(runs) > 1:
        figure.legend(
            handles=[Patch(color=color_of(k), label=run.name) for k, run in enumerate(runs)],
            **{"loc": "outside upper left", "ncols": 4, "frameon": False, "labelcolor": TEXT},
        )
    return figure


def _draw_bars(axes: "Axes", pairs: Sequence[tuple], counts: Sequence[Counter], names: dict):
    plain_axes(axes, grid="x")
    if not pairs:
        axes.text(0.03, 0.5, "none", transform=axes.transAxes, color=TEXT, size=9)
        axes.set(xticks=[], yticks=[])
        return
    width = 0.8 / len(counts)
    objects = [Counter() for _ in counts]
    for of_run, count in zip(objects, counts, strict=True):
        for (object_, _), number in count.items():
            of_run[object_] += number
    for k, count in enumerate(counts):
        place = np.arange(len(pairs)) + (k - (len(counts) - 1) / 2) * width
        bars = axes.barh(place, [count[pair] for pair in pairs], width, color=color_of(k))
        texts = []
        for pair in pairs:
            of_all = "" if pair[0] is None else f" ({count[pair] / objects[k][pair[0]]:.0%})"
            texts.append(f"{count[pair]}{of_all}")
        axes.bar_label(bars, texts, padding=3, size=8, color=TEXT)
    labels = [
        f"{names[i]} as {names[j]}" if None not in (i, j) else names[j if i is None else i]
        for i, j in pairs
    ]
    axes.set_yticks(range(len(pairs)), labels)
    axes.margins(x=0.2)
    axes.locator_params(axis="x", nbins=4, integer=True)
