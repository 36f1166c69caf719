"""RetinaNet and FCOS: anchors and locations as samples."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from ..weighting import (
    SampleLosses,
    SampleStatistics,
    gather_samples,
    paired_iou,
    sigmoid_classification,
)
from .weighted import WeightedHead, object_offsets

__all__ = ["WeightedFCOSHead", "WeightedRetinaNetHead"]

_IOU_LOSSES = {
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}


class _WeightedDenseHead(WeightedHead):
    """The common part: a focal loss for classification, and boxes for the positives."""

    LOSS_NAMES = {"cls": "classification", "box": "bbox_regression"}
    IS_DENSE = True

    def compute_loss(self, targets, head_outputs, anchors, matched_idxs):
        """Arguments and keys as torchvision's, and the weighter's regularisers."""
        samples = self.sample_losses(targets, head_outputs, anchors, matched_idxs)
        return self.weighted(*samples)

    def sample_losses(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> tuple[SampleLosses, SampleStatistics]:
        """Losses and statistics of the R samples of a batch of N images, in float32.

        Args:
            targets: the objects of each image.
            head_outputs: ``cls_logits`` (N, A, K), ``bbox_regression`` (N, A, 4).
            anchors: per image, (A, 4) XYXY in pixels.
            matched_idxs: per image, (A,) the object that each is matched with, or a negative
                number: -1 for background, another one to ignore it.
        """
        matched = torch.cat(matched_idxs)
        samples = (matched >= -1).nonzero().squeeze(1)  # of all N * A
        matched = matched[samples]
        images = samples // len(matched_idxs[0])
        offsets = torch.tensor(object_offsets(targets), device=matched.device)
        objects = torch.where(matched >= 0, matched + offsets[images], -1)

        logits = head_outputs["cls_logits"].flatten(0, 1)[samples]
        deltas = head_outputs["bbox_regression"].flatten(0, 1)
        boxes = torch.cat(anchors)
        num_classes = logits.shape[1]
        # One more, which the -1 of negatives picks.
        labels = torch.cat([*(t["labels"] for t in targets), objects.new_full((1,), num_classes)])
        classification = sigmoid_classification(logits, labels[objects], sigmoid_focal_loss)
        foreground = classification.foreground
        positives = samples[foreground]
        gt_boxes = torch.cat([target["boxes"] for target in targets])[objects[foreground]].float()
        fg_deltas, fg_boxes = deltas[positives].float(), boxes[positives].float()
        predicted = self._decode(torch.nan_to_num(fg_deltas.detach()), fg_boxes)
        factor, normalizer = self._normalization(
            torch.bincount(images[foreground], minlength=len(targets))
        )
        cls_factor, box_factor = factor, factor
        if isinstance(factor, Tensor):
            cls_factor, box_factor = factor[images], factor[images][:, None]
        return gather_samples(
            classification,
            fg_box_loss=self._box_loss(fg_deltas, fg_boxes, gt_boxes),
            fg_iou=paired_iou(predicted, gt_boxes),
            normalizers={"cls": normalizer, "box": normalizer},
            iteration=self.sample_weighter_counter.next(),
            cls_factor=cls_factor,
            box_factor=box_factor,
            details={
                "image": lambda: images,
                "object": lambda: objects,
                "pred_boxes": lambda: self._decode(
                    deltas.detach()[samples].float(), boxes[samples].float()
                ),
            },
        )

    def _normalization(self, positives: Tensor) -> tuple[float | Tensor, Tensor]:
        """A factor of all losses, or (N,) of each image's, and what their sum is divided by.

        Args:
            positives: (N,) how many each image has.
        """
        raise NotImplementedError

    def _decode(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        raise NotImplementedError

    def _box_loss(self, deltas: Tensor, boxes: Tensor, gt_boxes: Tensor) -> Tensor:
        """(F, D), of (F, 4) each."""
        raise NotImplementedError


class WeightedRetinaNetHead(_WeightedDenseHead, RetinaNetHead):
    """torchvision's RetinaNet head with a sample weighter before its losses.

    The samples are the anchors that are not ignored. torchvision divides the losses of each image
    by its positives, and takes the mean over the images. To the weighter that is a factor of each
    image's samples, and one normaliser for all.
    """

    RELIES_ON = {
        "retinanet.RetinaNet.compute_loss": "self targets head_outputs anchors",
        "retinanet.RetinaNetHead.compute_loss": "self targets head_outputs anchors matched_idxs",
        "retinanet.RetinaNetClassificationHead.compute_loss": (
            "self targets head_outputs matched_idxs"
        ),
        "retinanet.RetinaNetRegressionHead.compute_loss": (
            "self targets head_outputs anchors matched_idxs"
        ),
        "_utils._box_loss": (
            "type box_coder anchors_per_image matched_gt_boxes_per_image "
            "bbox_regression_per_image cnf"
        ),
    }

    @staticmethod
    def box_loss_dim(head: RetinaNetHead) -> int:
        return 1 if head.regression_head._loss_type in _IOU_LOSSES else 4

    def _normalization(self, positives: Tensor) -> tuple[Tensor, Tensor]:
        positives = positives.clamp(min=1)
        return positives.float().mean() / positives, positives.sum()

    def _decode(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        return self.regression_head.box_coder.decode_single(deltas, boxes)

    def _box_loss(self, deltas: Tensor, boxes: Tensor, gt_boxes: Tensor) -> Tensor:
        loss_type = self.regression_head._loss_type
        if loss_type in _IOU_LOSSES:
            return _IOU_LOSSES[loss_type](self._decode(deltas, boxes), gt_boxes)[:, None]
        gt_deltas = self.regression_head.box_coder.encode_single(gt_boxes, boxes)
        loss = F.l1_loss if loss_type == "l1" else F.smooth_l1_loss
        return loss(deltas, gt_deltas, reduction="none")


class WeightedFCOSHead(_WeightedDenseHead, FCOSHead):
    """torchvision's FCOS head with a sample weighter before its losses.

    The samples are the locations, none of which is ignored; the loss of boxes is GIoU. All losses
    are divided by the number of positives. That of the centre-ness is left alone.
    """

    RELIES_ON = {
        "fcos.FCOS.compute_loss": "self targets head_outputs anchors num_anchors_per_level",
        "fcos.FCOSHead.compute_loss": "self targets head_outputs anchors matched_idxs",
    }

    @staticmethod
    def box_loss_dim(head: FCOSHead) -> int:
        return 1

    def compute_loss(self, targets, head_outputs, anchors, matched_idxs):
        losses = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        return {
            **losses,
            "bbox_ctrness": self._centerness(targets, head_outputs, anchors, matched_idxs),
        }

    def _centerness(self, targets, head_outputs, anchors, matched_idxs) -> Tensor:
        """torchvision's loss, which only positives have: asked for with them as one image, it need
        not go through all locations again."""
        positives = [matched >= 0 for matched in matched_idxs]
        objects = [matched[is_fg] for matched, is_fg in zip(matched_idxs, positives, strict=True)]
        merged = {
            key: torch.cat([t[key][i] for t, i in zip(targets, objects, strict=True)])
            for key in ("labels", "boxes")
        }
        of_positives = {
            name: output[torch.stack(positives)][None] for name, output in head_outputs.items()
        }
        boxes = torch.cat(anchors)[torch.cat(positives)]
        matched = torch.arange(len(boxes), device=boxes.device)
        losses = FCOSHead.compute_loss(self, [merged], of_positives, [boxes], [matched])
        return losses["bbox_ctrness"]

    def _normalization(self, positives: Tensor) -> tuple[float, Tensor]:
        return 1.0, positives.sum().clamp(min=1)

    def _decode(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        return self.box_coder.decode(deltas, boxes)

    def _box_loss(self, deltas: Tensor, boxes: Tensor, gt_boxes: Tensor) -> Tensor:
        return generalized_box_iou_loss(self._decode(deltas, boxes), gt_boxes)[:, None]
