"""The Fast R-CNN output layers that also tell the loss and the statistics of every region."""

from collections.abc import Sequence

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
from .objects import class_weights_tensor
from .samples import gather_samples

__all__ = ["SWNFastRCNNOutputLayers"]


class SWNFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Detectron2's layers, parameters and inference; the losses are also had per region.

    Softmax classification only: a federated or sigmoid loss has no single true class to take
    the probability of.
    """

    @configurable
    def __init__(self, input_shape, *, class_weights: Sequence[float] = (), **kwargs):
        """
        Args:
            class_weights: what regions of each class count, beside what the weighter says.
            input_shape, kwargs: FastRCNNOutputLayers' arguments.

        Raises:
            UserError: the loss is sigmoid or federated, or the number of ``class_weights`` wrong.
        """
        super().__init__(input_shape, **kwargs)
        if getattr(self, "use_sigmoid_ce", False):
            raise UserError(
                "SWNROIHeads needs the softmax classification loss; set "
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE and USE_FED_LOSS to False."
            )

        self.register_buffer(
            "class_weights", class_weights_tensor(class_weights, self.num_classes), persistent=False
        )

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        ret["class_weights"] = cfg.MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS
        return ret

    def sample_losses(
        self,
        predictions: tuple[Tensor, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[SampleLosses, SampleStatistics]:
        """Losses and statistics of the R regions of a batch, in float32. The losses contain
        Detectron2's ``loss_weight``, so that SWN sees what a sample really contributes.

        Args:
            predictions: what :meth:`forward` returns: (R, K + 1) scores and (R, K * 4) deltas,
                or (R, 4) for class-agnostic regression.
            proposals: the sampled proposals with ``proposal_boxes``, ``gt_classes`` and, where
                the image has ground truth, ``gt_boxes``.
            targets: the objects of each image, for what has to do with single objects: weights
                from the data, and some weighters.
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
        cross_entropy = F.cross_entropy(scores, gt_classes, reduction="none")
        class_probs = F.softmax(scores.detach(), dim=1)[:, : self.num_classes]
        fg_prob = class_probs[foreground].gather(1, fg_classes[:, None])

        def likeliest_boxes() -> Tensor:
            classes = torch.where(is_foreground, gt_classes, class_probs.argmax(dim=1))
            of_classes = self._deltas_of(deltas.detach(), classes)
            return self.box2box_transform.apply_deltas(of_classes, boxes)

        return gather_samples(
            self,
            cls_loss=cross_entropy * self.loss_weight.get("loss_cls", 1.0),
            gt_classes=gt_classes,
            images=lambda: torch.cat(
                [torch.full_like(p.gt_classes, i) for i, p in enumerate(proposals)]
            ),
            is_foreground=is_foreground,
            foreground=foreground,
            fg_prob=fg_prob.squeeze(1),
            fg_deltas=self._deltas_of(deltas[foreground], fg_classes),
            fg_boxes=boxes[foreground],
            fg_gt_boxes=gt_boxes[foreground],
            normalizer=max(len(gt_classes), 1),  # as in Detectron2, for both losses
            targets=targets,
            class_weights=self.class_weights,
            details={
                "true_prob": lambda: torch.exp(-cross_entropy),
                "pred_boxes": likeliest_boxes,
                "pred_score": lambda: class_probs.amax(dim=1),
            },
            box_loss_weight=self.loss_weight.get("loss_box_reg", 1.0),
        )

    def _deltas_of(self, deltas: Tensor, classes: Tensor) -> Tensor:
        """(R, 4) of the (R, K * 4) deltas those of each region's class."""
        if deltas.shape[1] == 4:  # class-agnostic regression
            return deltas
        of_class = deltas.view(len(deltas), self.num_classes, 4)
        return of_class[torch.arange(len(deltas), device=deltas.device), classes]
