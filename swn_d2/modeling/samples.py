"""What all of Detectron2's detectors have in common on the way to losses and statistics."""

from collections.abc import Callable, Mapping, Sequence

import torch
from detectron2.modeling import RetinaNet
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from .. import weighting
from ..errors import UserError
from ..weighting import Classification, SampleLosses, SampleStatistics
from .box_losses import iou_of_predictions, unreduced_box_loss
from .objects import match_objects, object_weights

__all__ = ["gather_samples"]

_NO_ANNOTATIONS = (
    "the sample weighter has to know which annotation of the training set an object is, but the "
    "annotations have no numbers. Train with swn_d2.SWNTrainer, which numbers them; a "
    "build_train_loader of its subclass must load the dataset that it is given, with "
    "swn_d2.data.NamingDatasetMapper."
)


def gather_samples(
    detector: FastRCNNOutputLayers | RetinaNet,
    classification: Classification,
    *,
    images: Callable[[], Tensor],
    fg_deltas: Tensor,
    fg_boxes: Tensor,
    fg_gt_boxes: Tensor,
    normalizer: float,
    targets: Sequence[Instances] | None,
    class_weights: Tensor,
    details: Mapping[str, Callable[[], Tensor]],
    cls_loss_weight: float = 1.0,
    box_loss_weight: float = 1.0,
) -> tuple[SampleLosses, SampleStatistics]:
    """:func:`swn_d2.weighting.gather_samples` of R samples, F of them positive.

    Args:
        detector: says how boxes are encoded and which box loss is used.
        classification: of the samples.
        images: computes (R,) the image in the batch that each sample is of.
        fg_deltas: (F, 4) predicted deltas.
        fg_boxes, fg_gt_boxes: (F, 4) the boxes that the deltas apply to and their ground truth,
            XYXY in pixels.
        normalizer: what the detector divides both losses by.
        targets: the objects of each image, if they are known.
        class_weights: (K,) what positives of each class count, or (0,).
        details: what the detector adds to :meth:`SampleStatistics.detail`.
        cls_loss_weight, box_loss_weight: the detector's own factors of its losses.
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
    gt_classes, foreground = classification.gt_classes, classification.foreground
    details = {"image": images, **details}
    given = None
    if targets is not None:

        def objects() -> Tensor:
            of_positives = match_objects(
                images()[foreground], gt_classes[foreground], fg_gt_boxes, targets
            )
            return torch.full_like(gt_classes, -1).index_copy(0, foreground, of_positives)

        def annotations() -> Tensor:
            if not all(t.has("gt_annotation") for t in targets if len(t)):
                raise UserError(_NO_ANNOTATIONS)
            numbers = [t.gt_annotation for t in targets if len(t)]
            # One more, which the -1 of negatives picks.
            return torch.cat([*numbers, gt_classes.new_full((1,), -1)])[objects()]

        details["object"] = objects
        details["annotation"] = annotations
        of_objects = object_weights(targets, class_weights)
        if of_objects is not None:
            given = of_objects.of_samples(objects())
    return weighting.gather_samples(
        classification,
        fg_box_loss=fg_box_loss,
        fg_iou=fg_iou,
        normalizers={"cls": normalizer, "box": normalizer},
        iteration=get_event_storage().iter,
        cls_factor=cls_loss_weight,
        box_factor=box_loss_weight,
        details=details,
        given=given,
    )
