"""Suppression of detections of the same object, other than by discarding the lower score.

Each class is for itself, and all classes advance together: a step picks the best box of every
class at once, so that there are as many steps as the largest class has boxes, not as all have.
"""

import torch
from torch import Tensor
from torchvision.ops import box_iou

__all__ = ["batched_soft_nms", "iou_guided_nms", "variance_voting"]


def batched_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    *,
    method: str = "linear",
    iou_threshold: float = 0.5,
    sigma: float = 0.5,
    min_score: float = 0.001,
    max_detections: int = -1,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS (Bodla et al., ICCV 2017): boxes that overlap a better one lose score.

    Args:
        boxes: (N, 4) XYXY.
        scores: (N,) not negative.
        classes: (N,) integers.
        method: "linear": a score becomes s (1 - IoU) where the IoU is at least ``iou_threshold``;
            "gaussian": it becomes s exp(-IoU^2 / sigma).
        iou_threshold, sigma: as above.
        min_score: boxes whose score falls to this or below are dropped; at least 0.
        max_detections: how many boxes are kept at most, those with the highest new scores;
            negative for all.

    Returns:
        The indices (K,) of the boxes that are kept, and their new scores (K,) in float32, highest
        first. Of equal scores in a class, the first is picked first.

    Raises:
        ValueError: there is no such method.
    """
    if method not in ("linear", "gaussian"):
        raise ValueError(f"method must be 'linear' or 'gaussian', not {method!r}")
    slots = _slots(classes)
    corners = _in_slots(boxes.float().T, slots, padding=0.0)
    remaining = _in_slots(scores.float(), slots, padding=0.0)

    picked = [slots.new_zeros(0)]
    new_scores = [remaining.new_zeros(0)]
    # A class's best score never rises, so none of its boxes can be among the highest once it is
    # not above all of those picked before.
    highest = remaining.new_zeros(max(max_detections, 0))
    for _ in range(slots.shape[1]):
        best, where = remaining.max(dim=1)
        bound = highest.min().clamp(min=min_score) if len(highest) else min_score
        if not (best > bound).any():
            break
        picked.append(slots.gather(1, where[:, None]).squeeze(1))
        new_scores.append(best)
        highest = torch.cat([highest, best]).topk(len(highest)).values
        iou = _iou_with(corners, where)
        if method == "linear":
            remaining *= 1 - torch.where(iou >= iou_threshold, iou, 0.0)
        else:
            remaining *= torch.exp(-iou.square() / sigma)
        remaining.scatter_(1, where[:, None], 0.0)
    return _best_first(
        torch.cat(picked), torch.cat(new_scores), min_score=min_score, limit=max_detections
    )


def iou_guided_nms(
    boxes: Tensor,
    scores: Tensor,
    ious: Tensor,
    classes: Tensor,
    *,
    iou_threshold: float = 0.5,
    max_detections: int = -1,
) -> tuple[Tensor, Tensor]:
    """IoU-guided NMS (Jiang et al., ECCV 2018, Alg. 1): of boxes that overlap, the one that is
    believed to be placed best is kept, with the highest score of them all.

    Args:
        boxes, scores, classes, iou_threshold, max_detections: as for :func:`batched_soft_nms`;
            boxes are discarded if their IoU is above the threshold.
        ious: (N,) what each box's IoU with its object is believed to be, or any other number that
            grows with it.

    Returns:
        As :func:`batched_soft_nms`.
    """
    slots = _slots(classes)
    corners = _in_slots(boxes.float().T, slots, padding=0.0)
    scores = _in_slots(scores.float(), slots, padding=0.0)
    remaining = _in_slots(ious.float(), slots, padding=-torch.inf)

    picked = [slots.new_zeros(0)]
    new_scores = [scores.new_zeros(0)]
    for _ in range(slots.shape[1]):
        best, where = remaining.max(dim=1)
        has_box = best > -torch.inf
        if not has_box.any():
            break
        cluster = _iou_with(corners, where) > iou_threshold
        cluster.scatter_(1, where[:, None], True)
        cluster &= remaining > -torch.inf
        picked.append(slots.gather(1, where[:, None]).squeeze(1))
        # No score is negative, so the -1 of a class that has no box left drops out below.
        new_scores.append(torch.where(cluster, scores, -1.0).amax(dim=1))
        remaining.masked_fill_(cluster, -torch.inf)
    return _best_first(
        torch.cat(picked), torch.cat(new_scores), min_score=-0.5, limit=max_detections
    )


def variance_voting(
    boxes: Tensor, variances: Tensor, classes: Tensor, keep: Tensor, *, sigma: float = 0.02
) -> Tensor:
    """The boxes that are kept, each moved to a weighted mean of those of its class that overlap it
    (He et al., CVPR 2019, Alg. 1): the better a box overlaps and the surer it is of a coordinate,
    the more it counts, with weight exp(-(1 - IoU)^2 / sigma) / variance.

    Args:
        boxes: (N, 4) XYXY, all candidates.
        variances: (N, 4) of each coordinate, greater than 0.
        classes: (N,) integers.
        keep: (K,) indices of the boxes that are kept.
        sigma: how fast the say of a box falls with its overlap.

    Returns:
        (K, 4) XYXY.
    """
    boxes, variances = boxes.float(), variances.float()
    with torch.autocast(boxes.device.type, enabled=False):  # half precision is off by pixels
        iou = box_iou(boxes[keep], boxes)
        may_vote = (iou > 0) & (classes[keep][:, None] == classes)
        weights = torch.where(may_vote, torch.exp(-(1 - iou).square() / sigma), 0.0)
        total = weights @ (1 / variances)
        # A box without area overlaps nothing, not even itself.
        return torch.where(total > 0, weights @ (boxes / variances) / total, boxes[keep])


def _slots(classes: Tensor) -> Tensor:
    """(C, M) the indices of each class's boxes, in their order, filled up with -1."""
    _, row, counts = classes.unique(return_inverse=True, return_counts=True)
    order = row.argsort(stable=True)
    row = row[order]
    column = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    slots = row.new_full((len(counts), int(counts.max()) if len(counts) else 0), -1)
    slots[row, column] = order
    return slots


def _in_slots(values: Tensor, slots: Tensor, *, padding: float) -> Tensor:
    """(..., N) -> (..., C, M)."""
    return torch.where(slots >= 0, values[..., slots], padding)


def _iou_with(corners: Tensor, where: Tensor) -> Tensor:
    """(C, M) IoU of each class's boxes, (4, C, M) XYXY, with the one of them in column ``where``,
    (C,); 0 where neither has an area."""
    x0, y0, x1, y1 = corners
    left, top, right, bottom = corners.gather(2, where.expand(4, -1)[:, :, None])
    width = (torch.minimum(x1, right) - torch.maximum(x0, left)).clamp_(min=0)
    height = (torch.minimum(y1, bottom) - torch.maximum(y0, top)).clamp_(min=0)
    intersection = width.mul_(height)
    union = (x1 - x0).mul_(y1 - y0) + (right - left) * (bottom - top) - intersection
    return intersection / union.clamp_(min=torch.finfo(union.dtype).tiny)


def _best_first(
    indices: Tensor, scores: Tensor, *, min_score: float, limit: int
) -> tuple[Tensor, Tensor]:
    """The indices whose score is above ``min_score``, ``limit`` of them at most, and the scores."""
    above = scores > min_score
    scores, order = scores[above].sort(descending=True, stable=True)
    keep = slice(None, limit if limit >= 0 else None)
    return indices[above][order][keep], scores[keep]
