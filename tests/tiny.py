"""A Faster R-CNN small enough to build and step in a moment, and batches for it."""

from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from swn_d2 import load_config

CONFIGS = Path(__file__).parents[1] / "configs"
NUM_CLASSES = 3
#: The ways in which SWN can be set up: the default, the same with classification, and the paper.
READINGS = ("relative", "relative with cls", "paper", "authors")


def tiny_config(*opts, roi_heads="SWNROIHeads", reading="relative"):
    """The config, with ``KEY VALUE`` overrides. Relative weights are not eased in."""
    is_relative = reading.startswith("relative")
    if reading == "relative with cls":
        opts = ("MODEL.SWN.TASKS", ["cls", "box", "mask"], *opts)
    cfg = load_config(
        "" if is_relative else str(CONFIGS / f"Base-SWN-{reading}.yaml"),
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
            *("MODEL.ROI_HEADS.NAME", roi_heads),
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
            *opts,
        ],
    )
    return cfg


def tiny_model(cfg, seed=0):
    torch.manual_seed(seed)
    return build_model(cfg)


def image_input(boxes, *, seed=0, size=(64, 96)):
    """One image of noise with ground-truth ``boxes`` (XYXY), classes 0, 1, 2, 0, ..."""
    generator = torch.Generator().manual_seed(seed)
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % NUM_CLASSES
    return {
        "image": torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8),
        "instances": instances,
        "height": size[0],
        "width": size[1],
    }


def batch(seed=0):
    """Two images with objects."""
    return [
        image_input([[8, 8, 40, 44], [50, 20, 90, 60]], seed=seed),
        image_input([[20, 10, 60, 50]], seed=seed + 1),
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
