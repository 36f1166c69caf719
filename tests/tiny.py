"""Detectors small enough to build and step in a moment, and batches for it."""

from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from detectron2.utils.events import EventStorage

from swn_d2 import load_config
from swn_d2.weighting import SampleWeighter

CONFIGS = Path(__file__).parents[1] / "configs"
NUM_CLASSES = 3
#: The ways in which SWN can be set up: the default, each sample by itself in all tasks, and the
#: paper's.
READINGS = ("by object", "relative", "paper", "authors")


#: detector -> its overrides, and the config key and the two values that switch SWN off and on.
DETECTORS = {
    "faster_rcnn": ([], "MODEL.ROI_HEADS.NAME", "StandardROIHeads", "SWNROIHeads"),
    "mask_rcnn": (
        [
            *("MODEL.MASK_ON", True),
            *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
            *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1),
            *("MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
            *("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 7),
        ],
        *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "SWNROIHeads"),
    ),
    "cascade_rcnn": (
        ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True],
        *("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "SWNCascadeROIHeads"),
    ),
    "retinanet": (
        [
            *("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"),
            *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
            *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
            *("MODEL.ANCHOR_GENERATOR.SIZES", [[s, s * 1.5] for s in (16, 32, 64, 128, 256)]),
            *("MODEL.RETINANET.NUM_CLASSES", NUM_CLASSES),
            *("MODEL.RETINANET.NUM_CONVS", 1),
            *("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", 0.11),
            *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
        ],
        *("MODEL.META_ARCHITECTURE", "RetinaNet", "SWNRetinaNet"),
    ),
}
DETECTORS["cascade_mask_rcnn"] = (
    DETECTORS["mask_rcnn"][0] + DETECTORS["cascade_rcnn"][0],
    *DETECTORS["cascade_rcnn"][1:],
)


def tiny_config(*opts, detector="faster_rcnn", stock=False, reading="by object"):
    """The config, with ``KEY VALUE`` overrides. Relative weights are not eased in.

    Args:
        detector: a key of DETECTORS.
        stock: without SWN, as Detectron2 has it.
        reading: one of READINGS.
    """
    overrides, switch, off, on = DETECTORS[detector]
    if reading == "relative":
        opts = ("MODEL.SWN.CLS_AVERAGING", "none", *opts)
    base = ""
    if reading in ("paper", "authors"):
        suffix = "-RetinaNet" if (detector, reading) == ("retinanet", "authors") else ""
        base = str(CONFIGS / f"Base-SWN-{reading}{suffix}.yaml")
    return load_config(
        base,
        opts=[
            *("MODEL.SWN.EASE_IN", [0.0, 0.0]),
            *("MODEL.DEVICE", "cpu"),
            *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
            *("MODEL.BACKBONE.FREEZE_AT", 0),
            *("MODEL.RESNETS.DEPTH", 50),
            *("MODEL.RESNETS.NORM", "BN"),  # else an untrained network explodes
            *("MODEL.RESNETS.WIDTH_PER_GROUP", 4),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
            *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
            *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.FPN.OUT_CHANNELS", 16),
            *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]]),
            *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
            *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 100),
            *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 50),
            *("MODEL.RPN.PRE_NMS_TOPK_TEST", 100),
            *("MODEL.RPN.POST_NMS_TOPK_TEST", 50),
            *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
            *("MODEL.ROI_HEADS.NUM_CLASSES", NUM_CLASSES),
            *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 32),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
            *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
            *("MODEL.ROI_BOX_HEAD.NUM_FC", 1),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", 32),
            *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 4),
            *("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 1.0),
            *("SOLVER.MAX_ITER", 100),
            *overrides,
            *(switch, off if stock else on),
            *opts,
        ],
    )


def tiny_model(cfg, seed=0):
    torch.manual_seed(seed)
    return build_model(cfg)


def weighters(model):
    """The sample weighters of a model: one, or one per stage of a cascade."""
    return [module for module in model.modules() if isinstance(module, SampleWeighter)]


def image_input(boxes, *, seed=0, size=(64, 96), polygons=False):
    """One image of noise with ground-truth ``boxes`` (XYXY), classes 0, 1, 2, 0, ..., and an
    ellipse in every box as its mask, a bitmap or a polygon."""
    generator = torch.Generator().manual_seed(seed)
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % NUM_CLASSES
    if boxes:
        instances.gt_masks = (
            PolygonMasks([[ellipse(box)] for box in boxes])
            if polygons
            else BitMasks(
                torch.stack(
                    [torch.from_numpy(polygons_to_bitmask([ellipse(b)], *size)) for b in boxes]
                )
            )
        )
    return {
        "image": torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8),
        "instances": instances,
        "height": size[0],
        "width": size[1],
    }


def ellipse(box, corners=16):
    """The ellipse in a box (XYXY) as a polygon x, y, x, y, ..."""
    x0, y0, x1, y1 = box
    angles = np.arange(corners) * 2 * np.pi / corners
    x, y = (x0 + x1 + (x1 - x0) * np.cos(angles)) / 2, (y0 + y1 + (y1 - y0) * np.sin(angles)) / 2
    return np.stack([x, y], axis=1).flatten()


def batch(seed=0, **kwargs):
    """Two images with objects."""
    return [
        image_input([[8, 8, 40, 44], [50, 20, 90, 60]], seed=seed, **kwargs),
        image_input([[20, 10, 60, 50]], seed=seed + 1, **kwargs),
    ]


def batch_with_empty_image(seed=0):
    return [image_input([[8, 8, 40, 44]], seed=seed), image_input([], seed=seed + 1)]


def empty_batch(seed=0):
    return [image_input([], seed=seed), image_input([], seed=seed + 1)]


def training_losses(model, inputs, *, seed=0, start_iter=0):
    """The loss dict of one training step's forward pass, with the sampling of regions fixed."""
    torch.manual_seed(seed)
    with EventStorage(start_iter):
        return model.train()(inputs)
