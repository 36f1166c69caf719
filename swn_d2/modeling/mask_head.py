"""The mask loss of every region."""

import torch
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead, mask_rcnn_loss
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["has_sample_losses", "sample_mask_losses"]


def has_sample_losses(mask_head: nn.Module) -> bool:
    """Whether the loss of the head is Mask R-CNN's, a mean over regions and pixels.

    That of a head with a ``forward`` of its own, like PointRend's, is not known here.
    """
    return (
        isinstance(mask_head, BaseMaskRCNNHead)
        and type(mask_head).forward is BaseMaskRCNNHead.forward
    )


def sample_mask_losses(
    mask_head: BaseMaskRCNNHead, features: Tensor, instances: list[Instances]
) -> Tensor:
    """Mean binary cross-entropy over the pixels of the true class's mask, in float32.

    Args:
        mask_head: one for which :func:`has_sample_losses`; it runs once.
        features: (F, C, H, W) pooled features of the F positive regions of the batch.
        instances: the positive regions, image by image, with ``proposal_boxes``, ``gt_classes``
            and, polygons or bitmaps, ``gt_masks``.

    Returns:
        (F,) losses, times the head's ``loss_weight``. Their mean is Detectron2's ``loss_mask``.
    """
    logits = mask_head.layers(features)
    if mask_head.vis_period > 0 and get_event_storage().iter % mask_head.vis_period == 0:
        mask_rcnn_loss(logits.detach(), instances, mask_head.vis_period)  # Detectron2's pictures

    side = logits.shape[-1]
    targets = [torch.zeros(0, side, side, device=logits.device)]
    classes = [torch.zeros(0, dtype=torch.long, device=logits.device)]
    for of_image in instances:
        if len(of_image) > 0:  # an image without ground truth has no gt_masks
            masks = of_image.gt_masks.crop_and_resize(of_image.proposal_boxes.tensor, side)
            targets.append(masks.to(logits.device))
            classes.append(of_image.gt_classes)
    if logits.shape[1] == 1:  # class-agnostic
        of_true_class = logits[:, 0]
    else:
        of_true_class = logits[torch.arange(len(logits), device=logits.device), torch.cat(classes)]
    target = torch.cat(targets).float()
    _log_accuracy(of_true_class.detach() > 0, target > 0.5)
    losses = F.binary_cross_entropy_with_logits(of_true_class.float(), target, reduction="none")
    return losses.mean(dim=(1, 2)) * mask_head.loss_weight


def _log_accuracy(predicted: Tensor, target: Tensor) -> None:
    """Detectron2's scalars on the pixels, both (F, S, S) bool."""
    wrong = predicted != target
    counts = torch.stack([wrong.sum(), (wrong & target).sum(), target.sum()]).tolist()
    num_wrong, num_missed, num_true = counts
    if wrong.numel() > 0:
        storage = get_event_storage()
        storage.put_scalar("mask_rcnn/accuracy", 1 - num_wrong / wrong.numel())
        storage.put_scalar(
            "mask_rcnn/false_positive",
            (num_wrong - num_missed) / max(wrong.numel() - num_true, 1),
        )
        storage.put_scalar("mask_rcnn/false_negative", num_missed / max(num_true, 1))
