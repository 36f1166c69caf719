"""Faster and Mask R-CNN: regions as samples."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import roi_heads
from torchvision.models.detection.roi_heads import RoIHeads

from ..weighting import (
    SampleLosses,
    SampleStatistics,
    gather_samples,
    paired_iou,
    softmax_classification,
    with_mask_losses,
)
from .weighted import WeightedHead, object_offsets

__all__ = ["WeightedRoIHeads"]

_BETA = 1 / 9  # of torchvision's smooth-L1, which is written into its loss


class WeightedRoIHeads(WeightedHead, RoIHeads):
    """torchvision's RoI heads with a sample weighter between the heads and their losses.

    The samples are the sampled regions, and both losses are divided by their number. The losses of
    the region proposal network and of keypoints are left alone.
    torchvision's own losses are computed as well, and replaced: its forward pass leaves no place
    between them and the heads.
    """

    LOSS_NAMES = {"cls": "loss_classifier", "box": "loss_box_reg", "mask": "loss_mask"}
    RELIES_ON = {
        "roi_heads.fastrcnn_loss": "class_logits box_regression labels regression_targets",
        "roi_heads.maskrcnn_loss": "mask_logits proposals gt_masks gt_labels mask_matched_idxs",
        "roi_heads.project_masks_on_boxes": "gt_masks boxes matched_idxs M",
        "roi_heads.RoIHeads.forward": "self features proposals image_shapes targets",
        "roi_heads.RoIHeads.select_training_samples": "self proposals targets",
    }
    IS_DENSE = False

    @staticmethod
    def box_loss_dim(head: RoIHeads) -> int:
        return 4

    @staticmethod
    def has_sample_masks(head: RoIHeads) -> bool:
        return head.has_mask()

    def select_training_samples(self, proposals, targets):
        # torchvision does not hand the boxes of the objects on to the losses.
        selected = super().select_training_samples(proposals, targets)
        self._selected = (*selected, targets)
        return selected

    def forward(self, features, proposals, image_shapes, targets=None):
        """Arguments and results as RoIHeads', with weighted losses and regularisers in training."""
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets)
        with _outputs(self.box_predictor) as box, _outputs(self.mask_predictor) as mask:
            result, losses = super().forward(features, proposals, image_shapes, targets)
        selected, self._selected = self._selected, None
        samples = self.sample_losses(*box, *selected, *mask)
        return result, {**losses, **self.weighted(*samples)}

    def sample_losses(
        self,
        predictions: tuple[Tensor, Tensor],
        proposals: list[Tensor],
        matched_idxs: list[Tensor],
        labels: list[Tensor],
        regression_targets: tuple[Tensor, ...],
        targets: list[dict[str, Tensor]],
        mask_logits: Tensor | None = None,
    ) -> tuple[SampleLosses, SampleStatistics]:
        """Losses and statistics of the R sampled regions of a batch, in float32.

        Args:
            predictions: (R, K + 1) logits, the background's first, and (R, (K + 1) * 4) deltas.
            proposals, matched_idxs, labels, regression_targets: per image, what
                :meth:`select_training_samples` gives.
            targets: the objects of each image.
            mask_logits: (F, K + 1, S, S) of the positives, in a Mask R-CNN.
        """
        logits, deltas = (prediction.float() for prediction in predictions)
        labels = torch.cat(labels)
        num_regions, num_labels = logits.shape
        # Here classes are counted from 0 and the background comes last, with its logits.
        classification = softmax_classification(logits.roll(-1, dims=1), (labels - 1) % num_labels)
        foreground = classification.foreground
        boxes = torch.cat(proposals).float()
        deltas = deltas.view(num_regions, -1, 4)
        fg_deltas = deltas[foreground, labels[foreground]]
        fg_box_loss = F.smooth_l1_loss(
            fg_deltas, torch.cat(regression_targets)[foreground], beta=_BETA, reduction="none"
        )

        images = torch.cat([torch.full_like(m, i) for i, m in enumerate(matched_idxs)])
        offsets = torch.tensor(object_offsets(targets), device=labels.device)
        fg_objects = (torch.cat(matched_idxs) + offsets[images])[foreground]
        gt_boxes = torch.cat([target["boxes"] for target in targets]).float()

        def pred_boxes() -> Tensor:
            likeliest = classification.details["class_probs"]().argmax(dim=1) + 1
            of_label = torch.where(classification.is_foreground, labels, likeliest)
            of_label = deltas.detach()[torch.arange(num_regions, device=labels.device), of_label]
            return self.box_coder.decode_single(of_label, boxes)

        predicted = self.box_coder.decode_single(
            torch.nan_to_num(fg_deltas.detach()), boxes[foreground]
        )
        normalizer = max(num_regions, 1)
        samples = gather_samples(
            classification,
            fg_box_loss=fg_box_loss,
            fg_iou=paired_iou(predicted, gt_boxes[fg_objects]),
            normalizers={"cls": normalizer, "box": normalizer},
            iteration=self.sample_weighter_counter.next(),
            details={
                "image": lambda: images,
                "object": lambda: torch.full_like(labels, -1).index_copy(0, foreground, fg_objects),
                "pred_boxes": pred_boxes,
            },
        )
        if mask_logits is None:
            return samples
        sizes = [len(of_image) for of_image in proposals]
        masks = []
        for target, of_image, matched, is_fg in zip(
            targets,
            proposals,
            matched_idxs,
            classification.is_foreground.split(sizes),
            strict=True,
        ):
            # torchvision's function: the masks of the objects, cropped to the regions.
            cropped = roi_heads.project_masks_on_boxes(
                target["masks"], of_image[is_fg], matched[is_fg], mask_logits.shape[-1]
            )
            masks.append(cropped)
        of_label = mask_logits[torch.arange(len(foreground)), labels[foreground]]
        fg_mask_loss = F.binary_cross_entropy_with_logits(
            of_label.float(), torch.cat(masks).float(), reduction="none"
        )
        return with_mask_losses(*samples, fg_mask_loss.mean(dim=(1, 2)))


@contextmanager
def _outputs(module: nn.Module | None):
    """The outputs that a module, if there is one, gives inside the block."""
    outputs = []
    if module is None:
        yield outputs
        return
    with module.register_forward_hook(lambda _, inputs, output: outputs.append(output)):
        yield outputs
