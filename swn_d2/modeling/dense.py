"""What detectors that weight every anchor or location have in common."""

from functools import partial

import torch
from detectron2.structures import Boxes, Instances
from fvcore.nn import sigmoid_focal_loss_jit
from torch import Tensor

from ..weighting import SampleLosses, SampleStatistics, sigmoid_classification
from .samples import gather_samples

__all__ = ["DenseSamples"]


class DenseSamples:
    """What RetinaNet and FCOS need for the losses and statistics of their anchors. It comes before
    Detectron2's class, in which a class that derives from both has the same attributes.
    """

    num_classes: int
    focal_loss_alpha: float
    focal_loss_gamma: float
    box_reg_loss_type: str
    smooth_l1_beta: float
    class_weights: Tensor
    _targets: list[Instances] | None = None  # the objects of the batch in training

    def _update_normalizer(self, num_positives: int, num_images: int) -> float:
        """Detectron2's moving average of the positives in a batch, brought up to date."""
        raise NotImplementedError

    def label_anchors(self, anchors, gt_instances):
        # Detectron2 does not hand the objects on to the losses.
        self._targets = gt_instances
        return super().label_anchors(anchors, gt_instances)

    def sample_losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> tuple[SampleLosses, SampleStatistics]:
        """Losses and statistics of the R anchors of a batch that are not ignored, in float32.

        Args:
            anchors: per level, ``A = sum(A_l)`` in all.
            pred_logits, pred_anchor_deltas: per level, (N, A_l, K) and (N, A_l, 4).
            gt_labels: per image, (A,): a class, K for background, -1 to ignore the anchor.
            gt_boxes: per image, (A, 4); what is said of anchors without a class is not used.
        """
        targets, self._targets = self._targets, None
        # All images after one another: N * A anchors, of which those are samples.
        labels = torch.cat(gt_labels)
        samples = (labels >= 0).nonzero().squeeze(1)
        logits = torch.cat(pred_logits, dim=1).flatten(0, 1)[samples]
        deltas = torch.cat(pred_anchor_deltas, dim=1).flatten(0, 1)
        anchors = Boxes.cat(anchors).tensor
        classification = sigmoid_classification(
            logits,
            labels[samples],
            partial(
                sigmoid_focal_loss_jit,
                alpha=self.focal_loss_alpha,
                gamma=self.focal_loss_gamma,
                reduction="none",
            ),
        )
        positives = samples[classification.foreground]

        def pred_boxes() -> Tensor:
            return self.box2box_transform.apply_deltas(
                deltas.detach()[samples].float(), anchors[samples % len(anchors)]
            )

        return gather_samples(
            self,
            classification,
            images=lambda: samples // len(anchors),
            fg_deltas=deltas[positives].float(),
            fg_boxes=anchors[positives % len(anchors)],
            fg_gt_boxes=torch.cat(gt_boxes)[positives],
            normalizer=self._update_normalizer(len(positives), len(gt_labels)),
            targets=targets,
            class_weights=self.class_weights,
            details={"pred_boxes": pred_boxes},
        )
