"""Which object a positive sample belongs to, and what the data say that it counts."""

from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from torch import Tensor

from ..errors import UserError

__all__ = ["class_weights_tensor", "match_objects", "object_weights"]


def match_objects(
    image: Tensor, gt_classes: Tensor, gt_boxes: Tensor, targets: Sequence[Instances]
) -> Tensor:
    """(F,) the index of every positive's object among all objects of the batch.

    Detectron2 hands on the class and the box of the object that a sample was matched with, but
    not which one it was. Of objects that share image, class and box the first is taken.

    Args:
        image, gt_classes: (F,) the image and class of each positive.
        gt_boxes: (F, 4) the boxes of their objects.
        targets: the objects of each image.
    """
    boxes = torch.cat([t.gt_boxes.tensor for t in targets])
    classes = torch.cat([t.gt_classes for t in targets])
    images = torch.cat([torch.full_like(t.gt_classes, i) for i, t in enumerate(targets)])
    if len(boxes) == 0:  # nothing to be matched with, so no positives either
        return torch.zeros_like(gt_classes)
    same = (gt_boxes[:, None] == boxes).all(dim=2)
    same &= (gt_classes[:, None] == classes) & (image[:, None] == images)
    return same.int().argmax(dim=1)


def object_weights(targets: Sequence[Instances], class_weights: Tensor) -> Tensor | None:
    """The weights that the data give the objects of a batch: each one's own times its class's.

    Args:
        targets: the objects of each image; some images may have a ``gt_sample_weight``.
        class_weights: (K,) a weight per class, or (0,) if there are none.

    Returns:
        (G,), or None if neither the data nor the config give any.
    """
    if not len(class_weights) and not any(t.has("gt_sample_weight") for t in targets):
        return None
    weights = []
    for target in targets:
        weight = torch.ones_like(target.gt_classes, dtype=torch.float32)
        if target.has("gt_sample_weight"):
            weight = weight * target.gt_sample_weight
        if len(class_weights):
            weight = weight * class_weights[target.gt_classes]
        weights.append(weight)
    return torch.cat(weights)


def class_weights_tensor(class_weights: Sequence[float], num_classes: int) -> Tensor:
    """(K,) float32, or (0,) if there are no weights.

    Raises:
        UserError: there are some, but not one for each class.
    """
    if len(class_weights) not in (0, num_classes):
        raise UserError(
            f"MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS has {len(class_weights)} weights, but the "
            f"detector has {num_classes} classes; give one for each class, or none."
        )
    return torch.tensor(class_weights, dtype=torch.float32)
