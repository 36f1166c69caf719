"""The Fast R-CNN output layers that also tell the loss and the statistics of every region."""

import torch
from detectron2.config import configurable
from detectron2.modeling.roi_heads.fast_rcnn import (
    FastRCNNOutputLayers,
    _log_classification_stats,
)
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from ..weighting import SampleLosses, SampleStatistics
from .samples import gather_samples

__all__ = ["SWNFastRCNNOutputLayers"]


class SWNFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Detectron2's layers, parameters and inference; the losses are also had per region.

    Softmax classification only: a federated or sigmoid loss has no single true class to take
    the probability of.
    """

    @configurable
    def __init__(self, input_shape, **kwargs):
        """Arguments and errors: Detectron2's; UserError for a sigmoid or federated loss."""
        super().__init__(input_shape, **kwargs)
        if getattr(self, "use_sigmoid_ce", False):
            raise UserError(
                "SWNROIHeads needs the softmax classification loss; set "
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE and USE_FED_LOSS to False."
            )

    def sample_losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[SampleLosses, SampleStatistics]:
        """Losses and statistics of the R regions of a batch, in float32. The losses contain
        Detectron2's ``loss_weight``, so that SWN sees what a sample really contributes.

        Args:
            predictions: what :meth:`forward` returns: (R, K + 1) scores and (R, K * 4) deltas,
                or (R, 4) for class-agnostic regression.
            proposals: the sampled proposals with ``proposal_boxes``, ``gt_classes`` and, where
                the image has ground truth, ``gt_boxes``.
        """
        scores, deltas = (prediction.float() for prediction in predictions)
        if proposals:
            gt_classes = torch.cat([p.gt_classes for p in proposals])
            boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
            # An image without ground truth has only negatives, whose box is never looked at.
            gt_boxes = torch.cat(
                [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
            )
        else:
            gt_classes = torch.zeros(0, dtype=torch.long, device=scores.device)
            boxes = gt_boxes = torch.zeros(0, 4, device=scores.device)
        _log_classification_stats(scores.detach(), gt_classes)

        is_foreground = (gt_classes >= 0) & (gt_classes < self.num_classes)
        foreground = is_foreground.nonzero().squeeze(1)
        fg_classes = gt_classes[foreground]
        fg_deltas = deltas[foreground]
        if deltas.shape[1] != 4:  # class-specific regression
            fg_deltas = fg_deltas.view(-1, self.num_classes, 4)[
                torch.arange(len(foreground), device=deltas.device), fg_classes
            ]
        fg_prob = F.softmax(scores.detach()[foreground], dim=1).gather(1, fg_classes[:, None])
        return gather_samples(
            self,
            cls_loss=F.cross_entropy(scores, gt_classes, reduction="none")
            * self.loss_weight.get("loss_cls", 1.0),
            is_foreground=is_foreground,
            foreground=foreground,
            fg_prob=fg_prob.squeeze(1),
            fg_deltas=fg_deltas,
            fg_boxes=boxes[foreground],
            fg_gt_boxes=gt_boxes[foreground],
            normalizer=max(len(gt_classes), 1),  # as in Detectron2, for both losses
            box_loss_weight=self.loss_weight.get("loss_box_reg", 1.0),
        )
