"""torchvision's detectors, small enough to build and step in a moment, and batches for them."""

import copy

import torch
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from swn_d2.torchvision import weight_samples
from swn_d2.weighting import SWN

NUM_CLASSES = 4  # with the background, as torchvision counts
CHANNELS = 32  # the fewest that FCOS's normalisation takes
SIZE = (64, 96)


class Pyramid(nn.Module):
    """Strides 8, 16 and 32."""

    out_channels = CHANNELS

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 8, stride=8), nn.BatchNorm2d(CHANNELS), nn.ReLU()
        )
        self.next = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1)

    def forward(self, x):
        levels = [self.stem(x)]
        for _ in range(2):
            levels.append(self.next(levels[-1]))
        return {str(i): level for i, level in enumerate(levels)}


def _rcnn(kind, **kwargs):
    return kind(
        Pyramid(),
        rpn_anchor_generator=AnchorGenerator([[12], [24], [48]], [[0.5, 1.0, 2.0]] * 3),
        rpn_pre_nms_top_n_train=100,
        rpn_post_nms_top_n_train=50,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_test=50,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 4, 2),
        box_head=TwoMLPHead(CHANNELS * 16, 32),
        box_predictor=FastRCNNPredictor(32, NUM_CLASSES),
        **{
            "box_batch_size_per_image": 32,
            "box_score_thresh": 0.0,
            "min_size": SIZE[0],
            "max_size": SIZE[1],
            **kwargs,
        },
    )


def _mask_rcnn(**kwargs):
    return _rcnn(
        MaskRCNN,
        mask_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 7, 2),
        mask_head=MaskRCNNHeads(CHANNELS, [8], 1),
        mask_predictor=MaskRCNNPredictor(8, 8, NUM_CLASSES),
        **kwargs,
    )


def _dense(kind, **kwargs):
    sizes = {"anchor_generator": AnchorGenerator([[16], [28], [40]], [[0.5, 1.0, 2.0]] * 3)}
    if kind is FCOS:
        sizes = {"anchor_generator": AnchorGenerator([[8], [16], [32]], [[1.0]] * 3)}
    size = {"min_size": SIZE[0], "max_size": SIZE[1]}
    return kind(Pyramid(), NUM_CLASSES, score_thresh=0.0, **sizes, **size, **kwargs)


DETECTORS = {
    "faster_rcnn": lambda **kwargs: _rcnn(FasterRCNN, **kwargs),
    "mask_rcnn": _mask_rcnn,
    "retinanet": lambda **kwargs: _dense(RetinaNet, **kwargs),
    "fcos": lambda **kwargs: _dense(FCOS, **kwargs),
}


def keypoint_rcnn():
    return _rcnn(KeypointRCNN, num_keypoints=2)


def tiny_model(detector, seed=0, box_loss="smooth_l1", **kwargs):
    torch.manual_seed(seed)
    model = DETECTORS[detector](**kwargs)
    if detector == "retinanet":
        model.head.regression_head._loss_type = box_loss
    return model


def tiny_swn(detector, box_loss="smooth_l1", **kwargs):
    is_iou = detector == "fcos" or box_loss in ("giou", "diou", "ciou")
    return SWN(has_mask=detector == "mask_rcnn", box_loss_dim=1 if is_iou else 4, **kwargs)


def plain_and_weighted(detector, box_loss="smooth_l1", **kwargs):
    """Two models with the same detector parameters, the second with SWN."""
    plain = tiny_model(detector, box_loss=box_loss)
    return plain, weight_samples(copy.deepcopy(plain), tiny_swn(detector, box_loss, **kwargs))


def target(boxes):
    """Objects of the labels 1, 2, 3, 1, ..., their masks the left halves of their boxes."""
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1 : (x1 + x2) // 2] = 1
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": boxes,
        "labels": torch.arange(len(boxes)) % 3 + 1,
        "masks": masks,
        "keypoints": torch.cat([boxes.view(-1, 2, 2), torch.ones(len(boxes), 2, 1)], dim=2),
    }


def _images(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *SIZE, generator=generator) for _ in range(2)]


def batch(seed=0):
    return _images(seed), [target([[8, 8, 40, 44], [50, 20, 90, 60]]), target([[20, 10, 60, 50]])]


def batch_with_empty_image(seed=0):
    return _images(seed), [target([[8, 8, 40, 44]]), target([])]


def empty_batch(seed=0):
    return _images(seed), [target([]), target([])]


def training_losses(model, inputs, seed=0):
    """The losses of one training step's forward pass, with the sampling of regions fixed."""
    torch.manual_seed(seed)
    return model.train()(*inputs)
