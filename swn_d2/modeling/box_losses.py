"""Box losses per sample: what Detectron2 computes, before it sums."""

from collections.abc import Callable

import detectron2.layers
import fvcore.nn
import torch
from detectron2.structures import Boxes
from torch import Tensor

try:
    from detectron2.structures.boxes import matched_pairwise_iou
except ImportError:  # its name until Detectron2 0.5
    from detectron2.structures.boxes import matched_boxlist_iou as matched_pairwise_iou

from ..errors import UserError

__all__ = [
    "box_loss_dim",
    "iou_of_predictions",
    "matched_pairwise_iou",  # Detectron2's, of any version
    "unreduced_box_loss",
]


def box_loss_dim(loss_type: str) -> int:
    """Columns of :func:`unreduced_box_loss`: 4 for "smooth_l1", 1 for the IoU losses.

    Raises:
        UserError: the installed Detectron2 has no such loss.
    """
    if loss_type == "smooth_l1":
        return 4
    if _iou_loss(loss_type) is None:
        raise UserError(
            f"the installed Detectron2 has no box loss {loss_type!r} (BBOX_REG_LOSS_TYPE); use "
            "smooth_l1 or giou or, since Detectron2 0.6, diou or ciou."
        )
    return 1


def _iou_loss(loss_type: str) -> Callable | None:
    """The loss of that name, from where the installed Detectron2 takes it, or None."""
    for module in (fvcore.nn, detectron2.layers):
        if hasattr(module, f"{loss_type}_loss"):
            return getattr(module, f"{loss_type}_loss")
    return None


def unreduced_box_loss(
    deltas: Tensor,
    boxes: Tensor,
    gt_boxes: Tensor,
    *,
    box2box_transform,
    loss_type: str,
    smooth_l1_beta: float,
) -> Tensor:
    """The box loss of every positive sample.

    Args:
        deltas: (F, 4) predicted deltas.
        boxes: (F, 4) the proposals or anchors that the deltas apply to, XYXY in pixels.
        gt_boxes: (F, 4) their ground truth.
        box2box_transform: the detector's, between deltas and boxes.
        loss_type: "smooth_l1", on the deltas, or the name of an IoU loss ("giou", and "diou" and
            "ciou" since Detectron2 0.6), on the decoded boxes.
        smooth_l1_beta: where smooth-L1 turns from quadratic to linear; 0 is L1.

    Returns:
        (F, 4) loss per coordinate, or (F, 1).
    """
    if loss_type == "smooth_l1":
        gt_deltas = box2box_transform.get_deltas(boxes, gt_boxes)
        return fvcore.nn.smooth_l1_loss(deltas, gt_deltas, smooth_l1_beta, reduction="none")
    decoded = box2box_transform.apply_deltas(deltas, boxes)
    return _iou_loss(loss_type)(decoded, gt_boxes, reduction="none")[:, None]


@torch.no_grad()
def iou_of_predictions(
    deltas: Tensor, boxes: Tensor, gt_boxes: Tensor, *, box2box_transform
) -> Tensor:
    """(F,) IoU of the decoded predictions with their ground truth, in [0, 1], or NaN where a
    prediction is infinite. Not clipped to the image, since the loss is not. Arguments as for
    :func:`unreduced_box_loss`."""
    decoded = box2box_transform.apply_deltas(torch.nan_to_num(deltas.float()), boxes)
    return matched_pairwise_iou(Boxes(decoded), Boxes(gt_boxes))
