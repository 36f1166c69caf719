"""Figure 4 of the paper: the same images, a row for each run, with what the run missed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, pairwise_iou

from ..config import load_config
from ..engine.start import EVALUATION_CONFIG
from ..errors import UserError
from ..evaluation.pictures import Objects, read_dataset, read_detections, read_pixels
from .run_folder import RunFolder
from .style import TEXT, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_missed", "find_objects", "match_detections", "most"]


def match_detections(
    truth: Objects, detections: Objects, *, iou_threshold: float = 0.5
) -> np.ndarray:
    """Which true object of an image each detection is of, by COCO's rule.

    The detections choose in the order of their scores. Each takes the object of its class that it
    overlaps most, out of those that are not taken yet, if their IoU is ``iou_threshold`` or more.

    Returns:
        (number of detections,) int64, -1 for those that take none.
    """
    iou = pairwise_iou(*(Boxes(torch.from_numpy(o.boxes)) for o in (detections, truth))).numpy()
    iou[detections.classes[:, None] != truth.classes] = -1
    matches = np.full(len(detections.classes), -1)
    for i in np.argsort(-detections.scores, kind="stable"):
        if iou[i].max(initial=-1) >= iou_threshold:
            matches[i] = iou[i].argmax()
            iou[:, matches[i]] = -1
    return matches


def find_objects(truth: Objects, detections: Objects, *, iou_threshold: float = 0.5) -> np.ndarray:
    """(number of true objects,) bool: which of them were detected, see :func:`match_detections`."""
    matches = match_detections(truth, detections, iou_threshold=iou_threshold)
    return np.isin(np.arange(len(truth.classes)), matches)


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


@dataclass(frozen=True)
class _Run:
    """What a run detected in a data set: for each image the detections, and which objects were
    found."""

    name: str
    detections: list[Objects]
    found: list[np.ndarray]

    @property
    def summary(self) -> str:
        missed = sum(int((~found).sum()) for found in self.found)
        objects = sum(len(found) for found in self.found)
        return f"{self.name}\nmissed {missed:,} of all {objects:,}"


def draw_missed(
    runs: Sequence[RunFolder], num_images: int = 4, *, score_threshold: float = 0.5
) -> "Figure":
    """Draw the images in which the runs differ most, a row for each run; of a single run, those in
    which it missed most.

    Runs differ in an object that some of them find and others miss. Crowds, and VOC's difficult
    objects, do not count.

    Args:
        runs: they have detections, which an evaluation leaves in ``inference/``, of the same data.
        num_images: how many images.
        score_threshold: detections with a lower score are left out.

    Raises:
        UserError: a run has no detections, they are of different data, or the data can't be read.
    """
    dataset_name = _evaluated_on(runs)
    images = read_dataset(dataset_name)
    truths = [Objects.from_annotations(image) for image in images]
    evaluated = []
    for run in runs:
        file = run.path / "inference" / "coco_instances_results.json"
        by_image = read_detections(file, dataset_name, score_threshold)
        detections = [by_image[image["image_id"]] for image in images]
        found = [find_objects(*pair) for pair in zip(truths, detections, strict=True)]
        evaluated.append(_Run(run.name, detections, found))
    if len(runs) > 1:
        founds = (np.stack(found) for found in zip(*(run.found for run in evaluated), strict=True))
        counts = [int((found.any(0) & ~found.all(0)).sum()) for found in founds]
        rule = "Images with the most objects that some of the runs find and others miss"
    else:
        counts = [int((~found).sum()) for found in evaluated[0].found]
        rule = "Images with the most missed objects"

    chosen = most(counts, num_images)
    if not chosen:
        raise UserError(f"the data set {dataset_name} has no images to draw.")
    class_names = MetadataCatalog.get(dataset_name).get("thing_classes", [])
    # Pictures of the same height in a row, whatever their shapes.
    ratios = [images[i]["width"] / images[i]["height"] for i in chosen]
    figure = new_figure(12, len(runs) * (11.3 / sum(ratios) + 0.35) + 0.5)
    rows = figure.subplots(
        len(runs), len(chosen), squeeze=False, gridspec_kw={"width_ratios": ratios}
    )
    pixels = [read_pixels(images[i]["file_name"]) for i in chosen]
    for row, run in zip(rows, evaluated, strict=True):
        for axes, i, picture in zip(row, chosen, pixels, strict=True):
            axes.imshow(picture)
            _draw(axes, truths[i], run.detections[i], run.found[i], class_names)
        row[0].set_ylabel(run.summary, color=TEXT, size=10)
    figure.suptitle(
        f"{rule}, out of {dataset_name}.\nBlue: detections with a score of {score_threshold:.0%} "
        "or more. Dashed: missed, since none of them has its class and overlaps it by half.",
        x=0,
        ha="left",
        color=TEXT,
        size=10,
    )
    return figure


def _evaluated_on(runs: Sequence[RunFolder]) -> str:
    """The data set whose detections an evaluation leaves: it is the last of DATASETS.TEST."""
    if not runs:
        raise UserError("there is no run to draw; give the folder of at least one.")
    names = []
    for run in runs:
        file = run.path / EVALUATION_CONFIG
        cfg = load_config(str(file)) if file.is_file() else run.cfg
        if cfg is None or not cfg.DATASETS.TEST:
            raise UserError(
                f"{run.path} does not say what it was evaluated on: it needs a config.yaml with "
                "DATASETS.TEST."
            )
        names.append(cfg.DATASETS.TEST[-1])
        if names[-1] != names[0]:
            raise UserError(
                f"{runs[0].name} was evaluated on {names[0]} and {run.name} on {names[-1]}; to be "
                "compared, they must be evaluated on the same data."
            )
    return names[0]


def _draw(
    axes: "Axes",
    truth: Objects,
    detections: Objects,
    found: np.ndarray,
    class_names: Sequence[str],
) -> None:
    from ..evaluation.drawing import DETECTION, MISSED, draw_box

    names = truth.names(class_names)
    for i in np.flatnonzero(~found):
        style = {"line_width": 2.2, "line_style": (0, (2, 1))}
        draw_box(axes, truth.boxes[i], f"{names[i]} missed", MISSED, **style)
    for box, label in zip(detections.boxes, detections.labels(class_names), strict=True):
        draw_box(axes, box, label, DETECTION)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_xlabel(f"missed {(~found).sum()} of {len(found)}", color=TEXT, size=10)
