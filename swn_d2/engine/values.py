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
        "MODEL.RPN.POST_NMS_TOPK_TEST TEST.DETECTIONS_PER_IMAGE INPUT.MAX_SIZE_TRAIN "
        "INPUT.MAX_SIZE_TEST",
    ),
    "at least 0": (
        lambda value: 0 <= value,
        "TEST.EVAL_PERIOD RECORDING.PERIOD DATALOADER.NUM_WORKERS SOLVER.WARMUP_ITERS "
        "INPUT.MIN_SIZE_TEST",
    ),
    "at least 0, and finite": (
        lambda value: 0 <= value < math.inf,
        "SOLVER.BASE_LR SOLVER.WEIGHT_DECAY SOLVER.WEIGHT_DECAY_NORM SOLVER.GAMMA "
        "SOLVER.BIAS_LR_FACTOR SOLVER.SWN.BASE_LR SOLVER.SWN.WEIGHT_DECAY "
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
        "DATALOADER.REPEAT_THRESHOLD",
    ),
    "below 2 to the power of 32": (lambda value: value < 2**32, "SEED"),
    "at least 0 and below 1": (lambda value: 0 <= value < 1, "SOLVER.MOMENTUM"),
    "numbers of iterations that rise": (
        lambda steps: list(steps) == sorted(steps) and all(step > 0 for step in steps),
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
    crop = cfg.INPUT.CROP
    if crop.ENABLED and crop.TYPE.startswith("relative"):
        is_share = all(0 < size <= 1 for size in crop.SIZE)
        check("INPUT.CROP.SIZE", crop.SIZE, is_share, f"above 0, up to 1, with {crop.TYPE}")
    _check_device(cfg.MODEL.DEVICE)


def _passes(is_valid: Callable[[Any], bool], value: Any) -> bool:
    try:
        return is_valid(value)
    except TypeError:  # a text among numbers
        return False


def _is_norm(name: str) -> bool:
    try:
        get_norm(name, 32)
    except KeyError:
        return False
    return True


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
