"""FCOS with a weight for every location. Only the main branch of Detectron2 has FCOS."""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from ..weighting import SampleWeighter
from .dense import DenseSamples
from .objects import class_weights_tensor
from .weighted_losses import weighted_losses

try:
    from detectron2.modeling.meta_arch.fcos import FCOS
except ImportError as error:
    raise UserError(
        "the installed Detectron2 has no FCOS; SWNFCOS needs its main branch (0.6 or later)."
    ) from error

__all__ = ["SWNFCOS"]


class SWNFCOS(DenseSamples, FCOS):
    """Detectron2's FCOS with a sample weighter between its head and its losses.

    The samples are the locations, of which none is ignored. The losses are divided by Detectron2's
    moving average of the number of positives; that of the centre-ness is left alone, and so is
    inference. As Detectron2's, it is built by LazyConfig.
    """

    box_reg_loss_type = "giou"
    smooth_l1_beta = 0.0  # without a meaning for GIoU
    _LOSS_NAMES = {"cls": "loss_fcos_cls", "box": "loss_fcos_loc"}

    def __init__(
        self, *, sample_weighter: SampleWeighter, class_weights: Sequence[float] = (), **kwargs
    ):
        """
        Args:
            sample_weighter: gives the weights.
            class_weights: what locations of each class count, beside what the weighter says.
            kwargs: FCOS's arguments.

        Raises:
            UserError: the weighter is not for dense detectors with GIoU, or the number of
                ``class_weights`` is wrong.
        """
        super().__init__(**kwargs)
        sample_weighter.check_detector(is_dense=True, box_loss_dim=1, has_mask=False)
        self.sample_weighter = sample_weighter
        self.register_buffer(
            "class_weights", class_weights_tensor(class_weights, self.num_classes), persistent=False
        )

    def losses(
        self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes, pred_centerness
    ):
        """Arguments and keys as FCOS's, and the weighter's regularisers."""
        losses, statistics = self.sample_losses(
            anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes
        )
        weighted = weighted_losses(self.sample_weighter, losses, statistics, self._LOSS_NAMES)
        centerness = self._centerness_loss(anchors, gt_labels, gt_boxes, pred_centerness)
        return {**weighted, "loss_fcos_ctr": centerness / losses.normalizers["box"]}

    def _centerness_loss(
        self,
        anchors: list[Boxes],
        gt_labels: list[Tensor],
        gt_boxes: list[Tensor],
        pred_centerness: list[Tensor],
    ) -> Tensor:
        """The sum over the positives, as in FCOS."""
        is_foreground = torch.stack(gt_labels) != self.num_classes
        targets = self.compute_ctrness_targets(anchors, gt_boxes)[is_foreground]
        predicted = torch.cat(pred_centerness, dim=1).squeeze(dim=2)[is_foreground]
        return F.binary_cross_entropy_with_logits(predicted, targets, reduction="sum")

    def _update_normalizer(self, num_positives: int, num_images: int) -> float:
        get_event_storage().put_scalar("num_pos_anchors", num_positives / num_images)
        return self._ema_update("loss_normalizer", max(num_positives, 1), 300)
