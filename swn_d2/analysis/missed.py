"""Figure 4 of the paper: the same images for each run, with what the run missed."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from ..evaluation.coco import IOU_THRESHOLD, Pair
from ..evaluation.pictures import read_dataset, read_pixels
from .run_folder import RunFolder, evaluations_of
from .style import TEXT, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_missed", "most"]

_WIDTH = 13  # of the figure, in inches
_LEAST_WIDTH = 4.2  # of a picture, in which some 30 boxes can still be told apart


def most(values: Sequence[int], number: int) -> list[int]:
    """The indices of the ``number`` largest values, the largest first.

    Of those that are as large as the last, some that are spread evenly.
    """
    values = np.asarray(values)
    number = min(number, len(values))
    if number == 0:
        return []
    last = np.sort(values)[-number]
    above, tied = np.flatnonzero(values > last), np.flatnonzero(values == last)
    above = above[np.argsort(-values[above], kind="stable")]
    needed = number - len(above)
    return [*above.tolist(), *tied[np.arange(needed) * len(tied) // needed].tolist()]


def draw_missed(
    runs: Sequence[RunFolder], num_images: int = 4, *, score_threshold: float = 0.5
) -> "Figure":
    """Draw the images in which the runs differ most, a row for each image and the runs side by
    side; of a single run, those in which it has most missed objects and false positives.

    Runs differ in an object that some of them find and others miss. Crowds, and VOC's difficult
    objects, do not count.

    Args:
        runs: they have detections, which an evaluation leaves in ``inference/``, of the same data.
        num_images: how many images.
        score_threshold: detections with a lower score are left out.

    Raises:
        UserError: a run has no detections, they are of different data, or the data can't be read.
    """
    evaluations = evaluations_of(runs)
    dataset = evaluations[0].dataset
    images = read_dataset(dataset)
    by_image = [e.results.pairs(score_threshold, by_class=True) for e in evaluations]
    of_images = [[of_run.get(image["image_id"], []) for of_run in by_image] for image in images]
    if len(runs) > 1:
        counts = [_difference(of_runs) for of_runs in of_images]
        rule = "Images with the most objects that some of the runs find and others miss"
    else:
        counts = [sum(None in pair for pair in pairs) for (pairs,) in of_images]
        rule = "Images with the most missed objects and false positives"
    chosen = most(counts, num_images)
    if not chosen:
        raise UserError(f"the data set {dataset} has no images to draw.")

    columns = len(runs) if len(runs) > 1 else min(2, len(chosen))
    pictures = [(images[i], k, pairs) for i in chosen for k, pairs in enumerate(of_images[i])]
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    width = max(_WIDTH, _LEAST_WIDTH * columns) / columns
    heights = [
        width * max(image["height"] / image["width"] for image, *_ in row) + 0.3 for row in rows
    ]
    figure = new_figure(columns * width, sum(heights) + 0.25 * len(runs) + 0.7)
    all_axes = figure.subplots(
        len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axes in all_axes.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.patch.set_alpha(0)
    for axes, (image, _, pairs) in zip(all_axes.flat, pictures, strict=False):
        axes.imshow(read_pixels(image["file_name"]))
        _draw(axes, pairs, evaluations[0].results.class_names)
    if len(runs) > 1:
        for axes, run in zip(all_axes[0], runs, strict=True):
            axes.set_title(run.name, color=TEXT, size=10)
    sums = [
        f"{run.name}: {_counts(pair for of_runs in of_images for pair in of_runs[k])}"
        for k, run in enumerate(runs)
    ]
    figure.suptitle(
        "\n".join(
            [
                f"All {len(images):,} images of {dataset}, detections with a score of "
                f"{score_threshold:.0%} or more, IoU {IOU_THRESHOLD:g}:",
                *sums,
                f"{rule}. Thin blue: found. Dashed orange: missed. Dotted pink: false positive.",
            ]
        ),
        **{"x": 0, "ha": "left", "color": TEXT, "size": 10},
    )
    return figure


def _difference(of_runs: Sequence[list[Pair]]) -> int:
    """How many objects of an image some of the runs find and others miss."""
    found = [{o["id"] for o, detection in pairs if o and detection} for pairs in of_runs]
    return len(set.union(*found) - set.intersection(*found))


def _counts(pairs: Iterable[Pair]) -> str:
    pairs = list(pairs)
    found = sum(None not in pair for pair in pairs)
    missed = sum(detection is None for _, detection in pairs)
    false = sum(object_ is None for object_, _ in pairs)
    return f"found {found:,}, missed {missed:,}, false positives {false:,}"


def _draw(axes: "Axes", pairs: Sequence[Pair], class_names: dict[Any, str]) -> None:
    from ..evaluation.drawing import DETECTION, FALSE, MISSED, draw_box

    # What is wrong is drawn last, and alone has labels.
    for object_, detection in sorted(pairs, key=lambda pair: None in pair):
        shown = detection or object_
        x, y, w, h = shown["bbox"]
        label = class_names[shown["category_id"]]
        if object_ and detection:
            color, style, label = DETECTION, {"line_width": 0.9}, ""
        elif detection:
            color, style = FALSE, {"line_width": 1.2, "line_style": (0, (1, 1))}
            label += f"  {detection['score']:.0%}"
        else:
            color, style = MISSED, {"line_width": 1.2, "line_style": (0, (4, 2))}
        draw_box(
            axes, (x, y, x + w, y + h), label, color, font_size=6.5, only_if_it_fits=True, **style
        )
    axes.set_xlabel(_counts(pairs), color=TEXT, size=9)
