"""The part of a detector's losses and statistics that all detectors have in common."""

from detectron2.modeling import RetinaNet
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ..weighting import SampleLosses, SampleStatistics
from .box_losses import iou_of_predictions, unreduced_box_loss

__all__ = ["gather_samples"]


def gather_samples(
    detector: FastRCNNOutputLayers | RetinaNet,
    *,
    cls_loss: Tensor,
    is_foreground: Tensor,
    foreground: Tensor,
    fg_prob: Tensor,
    fg_deltas: Tensor,
    fg_boxes: Tensor,
    fg_gt_boxes: Tensor,
    normalizer: float,
    box_loss_weight: float = 1.0,
) -> tuple[SampleLosses, SampleStatistics]:
    """The losses and statistics of R samples, F of them positive.

    Args:
        detector: says how boxes are encoded and which box loss is used.
        cls_loss: (R,) classification losses.
        is_foreground: (R,) bool, the positives.
        foreground: (F,) their indices.
        fg_prob: (F,) probability of the true class.
        fg_deltas: (F, 4) predicted deltas.
        fg_boxes, fg_gt_boxes: (F, 4) the boxes that the deltas apply to and their ground truth,
            XYXY in pixels.
        normalizer: what the detector divides both losses by.
        box_loss_weight: the detector's own factor of the box loss.
    """
    fg_box_loss = unreduced_box_loss(
        fg_deltas,
        fg_boxes,
        fg_gt_boxes,
        box2box_transform=detector.box2box_transform,
        loss_type=detector.box_reg_loss_type,
        smooth_l1_beta=detector.smooth_l1_beta,
    )
    fg_iou = iou_of_predictions(
        fg_deltas, fg_boxes, fg_gt_boxes, box2box_transform=detector.box2box_transform
    )

    def scatter(values: Tensor) -> Tensor:
        """Values of the positives (F, ...) -> of all samples (R, ...), 0 for negatives."""
        everyone = values.new_zeros(len(is_foreground), *values.shape[1:])
        return everyone.index_copy(0, foreground, values)

    losses = SampleLosses(
        cls=cls_loss,
        box=scatter(fg_box_loss) * box_loss_weight,
        normalizers={"cls": normalizer, "box": normalizer},
    )
    statistics = SampleStatistics.of(
        losses,
        iou=scatter(fg_iou),
        prob=scatter(fg_prob),
        is_foreground=is_foreground,
        iteration=get_event_storage().iter,
        foreground=foreground,
    )
    return losses, statistics
