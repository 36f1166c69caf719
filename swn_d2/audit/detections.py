"""What a detector finds in a picture that it sees more than once."""

from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data.transforms import ResizeTransform
from detectron2.engine import DefaultPredictor
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

__all__ = ["Detections", "detect", "look", "merge", "mirror"]

_ENLARGED = (1.0, 1.5)  # times the size of a test, each as it is and mirrored
_LOWEST_SCORE = 0.05  # of a merged detection
_SAME = 0.5  # IoU from which two detections of a class are of one object


class Detections(NamedTuple):
    """M detections.

    Attributes:
        boxes: (M, 4) float32, XYXY in pixels of the picture.
        classes: (M,) int64.
        scores: (M,) float32.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


def detect(judge: DefaultPredictor, pixels: np.ndarray) -> Detections:
    """What is found in a picture and in its mirror image, at the size of a test and enlarged.

    Args:
        judge: whose score threshold is well below the 0.05 that is the lowest here.
        pixels: (H, W, 3) of the picture, as the detector takes them.
    """
    seen = [
        look(judge, pixels, enlarged=enlarged, mirrored=mirrored)
        for enlarged, mirrored in product(_ENLARGED, (False, True))
    ]
    merged = merge(seen)
    kept = merged.scores >= _LOWEST_SCORE
    return Detections(*(column[kept] for column in merged))


def merge(seen: list[Detections]) -> Detections:
    """One detection for each object, from what was found in several looks at one picture.

    As in non-maximum suppression, a detection takes those of its class with a smaller score and an
    IoU of 0.5 or more. The box is the mean of theirs, weighted by their scores, and the score the
    mean over all looks of the best one, 0 where there is none (much as weighted boxes fusion,
    Solovyev et al. 2021).
    """
    columns = [np.concatenate(column) for column in zip(*seen, strict=True)]
    order = np.argsort(-columns[2], kind="stable")
    boxes, classes, scores = (column[order] for column in columns)
    from_look = np.repeat(np.arange(len(seen)), [len(found.scores) for found in seen])[order]
    corners = Boxes(torch.from_numpy(boxes))
    is_same = pairwise_iou(corners, corners).numpy() >= _SAME
    is_same &= classes[:, None] == classes
    np.fill_diagonal(is_same, True)  # a box without an area has an IoU of 0 with itself
    is_left, merged = np.ones(len(boxes), dtype=bool), []
    for i in range(len(boxes)):
        if not is_left[i]:
            continue
        group = np.flatnonzero(is_left & is_same[i])
        is_left[group] = False
        best = np.zeros(len(seen), np.float32)
        np.maximum.at(best, from_look[group], scores[group])
        mean = np.average(boxes[group], axis=0, weights=scores[group])
        merged.append((mean, classes[i], best.mean()))
    box, class_, score = zip(*merged, strict=True) if merged else ((), (), ())
    return Detections(
        np.array(box, np.float32).reshape(-1, 4),
        np.array(class_, np.int64),
        np.array(score, np.float32),
    )


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Boxes (..., 4) in the mirror image of a picture."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([width - x1, y0, width - x0, y1], dim=-1)


@torch.no_grad()
def look(
    judge: DefaultPredictor, pixels: np.ndarray, *, enlarged: float, mirrored: bool
) -> Detections:
    """What is found in a picture, (H, W, 3), that is shown so many times as large as in a test."""
    height, width = pixels.shape[:2]
    sides = judge.aug.get_transform(pixels).apply_image(pixels).shape[:2]
    resize = ResizeTransform(height, width, *(round(enlarged * side) for side in sides))
    image = resize.apply_image(pixels)
    shown = np.ascontiguousarray(image[:, ::-1] if mirrored else image)
    tensor = torch.as_tensor(shown.astype("float32").transpose(2, 0, 1))
    inputs = {"image": tensor, "height": height, "width": width}
    found = judge.model([inputs])[0]["instances"].to("cpu")
    boxes = found.pred_boxes.tensor
    return Detections(
        (mirror(boxes, width) if mirrored else boxes).numpy(),
        found.pred_classes.numpy(),
        found.scores.numpy(),
    )
