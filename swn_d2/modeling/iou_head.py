"""IoU-Net's head (Jiang et al., ECCV 2018): how well a box is placed, seen from its features."""

from collections.abc import Callable, Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn
from torch.nn import functional as F

from ..weighting import GivenWeights
from ..weighting.checks import check
from .box_losses import matched_pairwise_iou

__all__ = ["IoUHead", "boxes_of_iou"]

#: Boxes are trained on from here on; below, a detector has no use for the difference.
SMALLEST_IOU = 0.5


class IoUHead(nn.Module):
    """Predicts the IoU of a box with its object, for each class, from the box's pooled features.

    It is trained on boxes made of the ground truth, not on proposals. The paper's Precise RoI
    Pooling is replaced by the detector's ROIAlign, and its refinement of boxes by the gradient of
    the predicted IoU, which needs that pooling, is left out.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        fc_dim: int = 1024,
        boxes_per_image: int = 128,
        loss_weight: float = 1.0,
    ):
        """
        Args:
            input_shape: of the pooled features of a box.
            num_classes: K, without the background.
            fc_dim: width of the two hidden layers.
            boxes_per_image: how many boxes are made for training.
            loss_weight: factor of the loss.

        Raises:
            UserError: one of the last three is out of its range.
        """
        super().__init__()
        check("MODEL.IOU_HEAD.FC_DIM", fc_dim, fc_dim > 0, "greater than 0")
        check("MODEL.IOU_HEAD.BOXES_PER_IMAGE", boxes_per_image, boxes_per_image > 0, "at least 1")
        check("MODEL.IOU_HEAD.LOSS_WEIGHT", loss_weight, loss_weight >= 0, "at least 0")
        self.boxes_per_image = boxes_per_image
        self.loss_weight = loss_weight
        inputs = input_shape.channels * input_shape.height * input_shape.width
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs, fc_dim),
            nn.ReLU(inplace=True),
            nn.Linear(fc_dim, fc_dim),
            nn.ReLU(inplace=True),
            nn.Linear(fc_dim, num_classes),
        )
        c2_xavier_fill(self.layers[1])
        c2_xavier_fill(self.layers[3])
        nn.init.normal_(self.layers[5].weight, std=0.001)
        nn.init.zeros_(self.layers[5].bias)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        side = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        channels = input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
        return {
            "input_shape": ShapeSpec(channels=channels, height=side, width=side),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "fc_dim": cfg.MODEL.IOU_HEAD.FC_DIM,
            "boxes_per_image": cfg.MODEL.IOU_HEAD.BOXES_PER_IMAGE,
            "loss_weight": cfg.MODEL.IOU_HEAD.LOSS_WEIGHT,
        }

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        """(N,) the predicted IoU, normalised as by :func:`normalized`, of N boxes with pooled
        ``features`` (N, C, H, W) and ``classes`` (N,)."""
        return self.layers(features).gather(1, classes[:, None]).squeeze(1)

    def losses(
        self,
        pool: Callable[[list[Boxes]], Tensor],
        targets: Sequence[Instances],
        given: GivenWeights | None = None,
    ) -> dict[str, Tensor]:
        """``loss_iou``: mean smooth-L1 loss of the predicted, normalised IoUs.

        Args:
            pool: gives the features of the boxes of each image.
            targets: the objects of each image, with ``gt_boxes`` and ``gt_classes``.
            given: the weights that the data give the objects: a box made of one counts as much as
                the object and its box do.
        """
        device = next(self.parameters()).device
        boxes, ious, classes, made_of = [], [], [], []
        first = 0  # of the image's objects, among those of the batch
        # The detector goes on to draw the random numbers, and thereby the regions, that it would
        # draw without this head.
        cuda_devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda_devices):
            for objects in targets:
                count = self.boxes_per_image if len(objects) else 0
                which = torch.randint(max(len(objects), 1), (count,), device=device)
                drawn = SMALLEST_IOU + (1 - SMALLEST_IOU) * torch.rand(count, device=device)
                of_objects = objects.gt_boxes[which]
                made = Boxes(boxes_of_iou(of_objects.tensor, drawn))
                made.clip(objects.image_size)  # as detections are; the IoU can only rise
                boxes.append(made)
                ious.append(matched_pairwise_iou(made, of_objects))
                classes.append(objects.gt_classes[which])
                made_of.append(first + which)
                first += len(objects)
        predicted = self(pool(boxes), torch.cat(classes)).float()
        losses = F.smooth_l1_loss(predicted, normalized(torch.cat(ious)), reduction="none")
        for weights in (given.sample, given.box) if given is not None else ():
            if weights is not None:
                losses = losses * weights[torch.cat(made_of)]
        return {"loss_iou": self.loss_weight * losses.sum() / max(len(predicted), 1)}

    def rate(self, pool: Callable[[list[Boxes]], Tensor], candidates: Sequence[Instances]) -> None:
        """Give the candidates of each image, with ``pred_boxes`` and ``pred_classes``, their
        ``predicted_iou``."""
        features = pool([c.pred_boxes for c in candidates])
        predicted = self(features, torch.cat([c.pred_classes for c in candidates]))
        per_image = predicted.split([len(c) for c in candidates])
        for of_image, predicted_iou in zip(candidates, per_image, strict=True):
            of_image.predicted_iou = predicted_iou


def normalized(iou: Tensor) -> Tensor:
    """IoUs from ``SMALLEST_IOU`` to 1, as numbers from -1 to 1."""
    return 2 * (iou - SMALLEST_IOU) / (1 - SMALLEST_IOU) - 1


def boxes_of_iou(boxes: Tensor, ious: Tensor) -> Tensor:
    """For each box a random one that has the given IoU with it.

    A random direction in which centre and size change is drawn, and how far to go in it is found
    by bisection. The paper draws changes and then boxes, such that their IoUs are uniform; here
    the IoUs are given, and uniform if these are.

    Args:
        boxes: (N, 4) XYXY.
        ious: (N,) from 0.5 to 1.

    Returns:
        (N, 4) XYXY.
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    size = boxes[:, 2:] - boxes[:, :2]
    direction = 2 * torch.rand(len(boxes), 4, device=boxes.device) - 1
    direction = direction / direction.abs().amax(dim=1, keepdim=True)

    def moved(step: Tensor) -> Tensor:
        change = step[:, None] * direction
        new_centre = centre + size * change[:, :2]
        half = size * change[:, 2:].exp() / 2
        return torch.cat([new_centre - half, new_centre + half], dim=1)

    # After a step of 2 the IoU is below 1/2 in every direction: the sizes differ by a factor of
    # more than 2, or the centres by more than the boxes can bridge.
    near, far = torch.zeros_like(ious), torch.full_like(ious, 2.0)
    for _ in range(24):  # to float32's precision
        middle = (near + far) / 2
        too_far = matched_pairwise_iou(Boxes(moved(middle)), Boxes(boxes)) < ious
        near, far = torch.where(too_far, near, middle), torch.where(too_far, middle, far)
    return moved(near)
