"""Config values that Detectron2 or torch would refuse only later, in other words, or not at all."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import get_norm

from ..config import load_config
from ..errors import UserError
from ..weighting.checks import check, check_choice

__all__ = ["check_values"]

#: What values must be -> the test, and the keys. A NaN passes none of the tests.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "at least 1": (
        lambda value: 1 <= value,
        "SOLVER.MAX_ITER SOLVER.IMS_PER_BATCH SOLVER.CHECKPOINT_PERIOD RECORDING.NUM_SAMPLES "
        "MODEL.ROI_HEADS.NUM_CLASSES MODEL.RETINANET.NUM_CLASSES "
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE MODEL.RPN.BATCH_SIZE_PER_IMAGE "
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN MODEL.RPN.POST_NMS_TOPK_TRAIN MODEL.RPN.PRE_NMS_TOPK_TEST "
        "MODEL.RPN.POST_NMS_TOPK_TEST MODEL.RETINANET.TOPK_CANDIDATES_TEST "
        "TEST.DETECTIONS_PER_IMAGE TEST.PRECISE_BN.NUM_ITER INPUT.MAX_SIZE_TRAIN "
        "INPUT.MAX_SIZE_TEST MODEL.FPN.OUT_CHANNELS MODEL.RESNETS.NUM_GROUPS "
        "MODEL.RESNETS.WIDTH_PER_GROUP MODEL.RESNETS.STEM_OUT_CHANNELS "
        "MODEL.RESNETS.RES2_OUT_CHANNELS MODEL.ROI_BOX_HEAD.FC_DIM MODEL.ROI_BOX_HEAD.CONV_DIM "
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION MODEL.ROI_MASK_HEAD.CONV_DIM "
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION",
    ),
    "at least 0": (
        lambda value: 0 <= value,
        "TEST.EVAL_PERIOD RECORDING.PERIOD DATALOADER.NUM_WORKERS SOLVER.WARMUP_ITERS "
        "SOLVER.REFERENCE_WORLD_SIZE INPUT.MIN_SIZE_TEST VIS_PERIOD MODEL.BACKBONE.FREEZE_AT "
        "MODEL.ROI_BOX_HEAD.NUM_FC MODEL.ROI_BOX_HEAD.NUM_CONV MODEL.ROI_MASK_HEAD.NUM_CONV "
        "MODEL.RETINANET.NUM_CONVS",
    ),
    "at least 0, and finite": (
        lambda value: 0 <= value < math.inf,
        "SOLVER.BASE_LR SOLVER.WEIGHT_DECAY SOLVER.WEIGHT_DECAY_NORM SOLVER.WEIGHT_DECAY_BIAS "
        "SOLVER.GAMMA SOLVER.BIAS_LR_FACTOR SOLVER.SWN.BASE_LR SOLVER.SWN.WEIGHT_DECAY "
        "MODEL.RPN.LOSS_WEIGHT MODEL.RPN.BBOX_REG_LOSS_WEIGHT "
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT MODEL.RETINANET.FOCAL_LOSS_GAMMA "
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA MODEL.RPN.SMOOTH_L1_BETA "
        "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",
    ),
    "greater than 0": (
        lambda value: value > 0,
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE SOLVER.CLIP_GRADIENTS.NORM_TYPE",
    ),
    "from 0 to 1": (
        lambda value: 0 <= value <= 1,
        "SOLVER.WARMUP_FACTOR MODEL.ROI_HEADS.POSITIVE_FRACTION MODEL.RPN.POSITIVE_FRACTION "
        "MODEL.ROI_HEADS.NMS_THRESH_TEST MODEL.RETINANET.NMS_THRESH_TEST MODEL.RPN.NMS_THRESH "
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST MODEL.RETINANET.SCORE_THRESH_TEST "
        "DATALOADER.REPEAT_THRESHOLD",
    ),
    "above 0 and below 1": (lambda value: 0 < value < 1, "MODEL.RETINANET.PRIOR_PROB"),
    "below 2 to the power of 32": (lambda value: value < 2**32, "SEED"),
    "at least 0 and below 1": (lambda value: 0 <= value < 1, "SOLVER.MOMENTUM"),
    "whole numbers of iterations that rise": (
        lambda steps: list(steps) == sorted(steps) and all(map(_is_count, steps)),
        "SOLVER.STEPS",
    ),
    "one or more numbers of pixels": (
        lambda sizes: len(sizes) > 0 and all(size > 0 for size in sizes),
        "INPUT.MIN_SIZE_TRAIN",
    ),
    "finite numbers other than 0": (
        lambda values: all(math.isfinite(value) and value != 0 for value in values),
        "MODEL.PIXEL_STD",
    ),
    "lists of task, metric, value and tolerance": (
        lambda results: all(len(result) == 4 for result in results),
        "TEST.EXPECTED_RESULTS",
    ),
    # Of a flat list Detectron2 makes one for each level of the features.
    "one or more lists of numbers above 0": (
        lambda lists: (
            len(lists) > 0
            and all(
                len(of_level) > 0 and _are_positive(of_level) for of_level in map(_listed, lists)
            )
        ),
        "MODEL.ANCHOR_GENERATOR.SIZES MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    ),
    "four numbers above 0": (
        lambda values: len(values) == 4 and _are_positive(values),
        "MODEL.RPN.BBOX_REG_WEIGHTS MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS "
        "MODEL.RETINANET.BBOX_REG_WEIGHTS",
    ),
    "numbers from 0 to 1": (
        lambda values: len(values) > 0 and all(0 <= value <= 1 for value in values),
        "MODEL.RPN.IOU_THRESHOLDS MODEL.ROI_HEADS.IOU_THRESHOLDS MODEL.RETINANET.IOU_THRESHOLDS "
        "MODEL.ROI_BOX_CASCADE_HEAD.IOUS",
    ),
    "finite numbers": (lambda values: all(map(math.isfinite, values)), "MODEL.PIXEL_MEAN"),
}

#: Key -> what it can be, on all versions of Detectron2 together.
_CHOICES = {
    "SOLVER.LR_SCHEDULER_NAME": (
        *("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    ),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": ("smooth_l1", "giou", "diou", "ciou"),
    "DATALOADER.SAMPLER_TRAIN": (
        *("TrainingSampler", "RandomSubsetTrainingSampler", "RepeatFactorTrainingSampler"),
    ),
    "INPUT.FORMAT": ("BGR", "RGB", "L", "YUV-BT.601"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.CROP.TYPE": ("relative_range", "relative", "absolute", "absolute_range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
}

_RESNET_DEPTHS = (18, 34, 50, 101, 152)


def check_values(cfg: CfgNode) -> None:
    """Raise a :class:`UserError` for the first value that no run can use, with its key."""
    values = dict(_flat(cfg))
    for key, default in _flat(load_config()):
        if values.get(key, default) is None and default is not None:
            raise UserError(f"{key} has no value; its default is {default!r}.")
    for rule, (is_valid, keys) in _RANGES.items():
        # Not every version of Detectron2 has all of them.
        for key in values.keys() & keys.split():
            if values[key] is not None:  # the default of some keys
                check(key, values[key], _passes(is_valid, values[key]), rule)
    for key in values.keys() & _CHOICES.keys():
        check_choice(key, values[key], _CHOICES[key])
    for key, value in values.items():
        if isinstance(value, float):
            check(key, value, not math.isnan(value), "a number")
        if key.endswith(".NORM") and isinstance(value, str):
            check(key, repr(value), _is_norm(value), 'BN, FrozenBN, SyncBN, GN or ""')
    if "resnet" in cfg.MODEL.BACKBONE.NAME:
        depth = cfg.MODEL.RESNETS.DEPTH
        check("MODEL.RESNETS.DEPTH", depth, depth in _RESNET_DEPTHS, f"one of {_RESNET_DEPTHS}")
    _check_sizes(cfg)
    _check_device(cfg.MODEL.DEVICE)


def _passes(is_valid: Callable[[Any], bool], value: Any) -> bool:
    try:
        return is_valid(value)
    except TypeError:  # a text among numbers
        return False


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _are_positive(values: Any) -> bool:
    return all(0 < value < math.inf for value in values)


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _is_norm(name: str) -> bool:
    try:
        get_norm(name, 32)
    except KeyError:
        return False
    return True


def _check_sizes(cfg: CfgNode) -> None:
    """What would else be blamed on a picture."""
    sizes, crop = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        is_range = len(sizes) == 2 and sizes[0] <= sizes[1]
        rule = "two numbers that rise, with INPUT.MIN_SIZE_TRAIN_SAMPLING range"
        check("INPUT.MIN_SIZE_TRAIN", sizes, is_range, rule)
    if crop.ENABLED:
        rule, is_valid = "whole numbers of pixels", _is_count
        if crop.TYPE.startswith("relative"):
            rule, is_valid = "shares above 0, up to 1", lambda size: _passes(_is_share, size)
        right = len(crop.SIZE) == 2 and all(map(is_valid, crop.SIZE))
        check("INPUT.CROP.SIZE", crop.SIZE, right, f"two {rule}, with {crop.TYPE}")


def _is_share(value: Any) -> bool:
    return 0 < value <= 1


def _check_device(device: str) -> None:
    number = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    check("MODEL.DEVICE", repr(device), bool(number), "cuda, cuda:0, ... or cpu")
    available = torch.cuda.device_count()
    if number[1] and int(number[1]) >= available:
        raise UserError(f"MODEL.DEVICE is {device}, but this machine has {available} GPUs.")


def _flat(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of every key with a value, like ("SOLVER.BASE_LR", 0.02)."""
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
