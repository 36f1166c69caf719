"""Which object a positive sample belongs to, and what the data say that it counts."""

from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from torch import Tensor

from ..errors import UserError
from ..weighting import GivenWeights

__all__ = ["class_weights_tensor", "match_objects", "object_weights"]

_MOST_PAIRS = 2**22  # of a positive and an object, compared at once


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
    found = []
    size = max(_MOST_PAIRS // len(boxes), 1)  # of dense detectors there are many positives
    for of_box, of_class, of_image in zip(
        gt_boxes.split(size), gt_classes.split(size), image.split(size), strict=True
    ):
        same = (of_box[:, None] == boxes).all(dim=2)
        same &= (of_class[:, None] == classes) & (of_image[:, None] == images)
        found.append(same.int().argmax(dim=1))
    return torch.cat(found)


def object_weights(targets: Sequence[Instances], class_weights: Tensor) -> GivenWeights | None:
    """The weights that the data give the objects of a batch; an object's own ``sample`` weight is
    multiplied with that of its class.

    Args:
        targets: the objects of each image; some images may have a ``gt_sample_weight``,
            ``gt_label_weight``, ``gt_box_weight`` or ``gt_mask_weight``.
        class_weights: (K,) a weight per class, or (0,) if there are none.

    Returns:
        Those of G objects, or None if neither the data nor the config give any.
    """
    given = GivenWeights(*(_given(targets, f"gt_{name}_weight") for name in GivenWeights._fields))
    if len(class_weights):
        of_classes = class_weights[torch.cat([t.gt_classes for t in targets])]
        sample = of_classes if given.sample is None else given.sample * of_classes
        given = given._replace(sample=sample)
    return None if all(weight is None for weight in given) else given


def _given(targets: Sequence[Instances], field: str) -> Tensor | None:
    """(G,) float32, 1 in images without the field; None if none has it."""
    if not any(t.has(field) for t in targets):
        return None
    return torch.cat(
        [
            t.get(field) if t.has(field) else torch.ones_like(t.gt_classes, dtype=torch.float32)
            for t in targets
        ]
    )


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
