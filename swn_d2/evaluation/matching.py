"""Which detections are of which objects of an image, by COCO's rule."""

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou

from .pictures import Objects

__all__ = ["match_detections"]


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
