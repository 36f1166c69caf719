"""Every config key that swn_d2 adds to Detectron2's, its default and its meaning.

``docs/config.md`` is the reference for users; a test holds it to this file.
"""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from detectron2.config import CfgNode, get_cfg

from .errors import UserError
from .files import read_yaml
from .weighting import SAMPLE_WEIGHTER_REGISTRY

__all__ = ["add_swn_config", "flat_config", "load_config", "num_classes", "section_of"]


def add_swn_config(cfg: CfgNode) -> None:
    """Add swn_d2's keys to a config made by :func:`detectron2.config.get_cfg`, in place."""
    cfg.MODEL.SAMPLE_WEIGHTER = CfgNode()
    # How samples are weighted: a name of SAMPLE_WEIGHTER_REGISTRY.
    cfg.MODEL.SAMPLE_WEIGHTER.NAME = "SWN"
    # A factor of the weights of each class's objects, in the order of the data set's classes;
    # empty for none. The background has 1.
    cfg.MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS = []
    # What the detector sees in place of the weights: their mean ("rate"), that of positives and
    # negatives apart ("balance"), the weights of other samples ("shuffle"), or "none" of these.
    cfg.MODEL.SAMPLE_WEIGHTER.CONTROL = "none"
    # The weighters' own keys, which their classes declare.
    for name, weighter in SAMPLE_WEIGHTER_REGISTRY:
        if weighter.KEYS:
            cfg.MODEL.SAMPLE_WEIGHTER[name.upper()] = CfgNode(dict(weighter.KEYS))
    # The configs in the folders of earlier runs have it.
    cfg.register_deprecated_key("MODEL.SAMPLE_WEIGHTER.OBJECTSWN")

    cfg.MODEL.SWN = swn = CfgNode()
    # The tasks whose samples are weighted, out of "cls", "box" and "mask"; a task that the
    # detector does not have is skipped.
    swn.TASKS = ["cls", "box", "mask"]
    # Factors of the regularisers: lambda_1 and lambda_2 of Eq. 9, and one for the mask loss.
    swn.LAMBDA_CLS = 0.5
    swn.LAMBDA_BOX = 0.5
    swn.LAMBDA_MASK = 0.5
    # k in w = exp(-k m).
    swn.EXPONENT = 1.0
    # m is clamped to [-CLAMP, CLAMP].
    swn.CLAMP = 2.0
    # What the network sees of the box loss: its "columns" (one per coordinate) or their "sum".
    swn.BOX_LOSS_FEATURE = "columns"
    # "separate": one MLP per task; "shared": one MLP with an output per task.
    swn.HEADS = "separate"
    # "normal": all layers from N(0, 1e-4^2); "zero_output": PyTorch's own, output layers 0.
    swn.INIT = "zero_output"
    # In classification, give the positives of an object what its class is likely to be right
    # ("per_object"); or average m over positives and negatives apart ("per_group"), over all
    # samples ("all"), or leave every sample its own ("none").
    swn.CLS_AVERAGING = "per_object"
    # What R(m) is divided by: the number of samples in the "group" that it covers, or what the
    # detector divides the "loss" by.
    swn.REGULARIZER_DIVISOR = "group"
    # Weight samples relative to their group, whose total loss stays what it is without weights
    # (not in the paper), or by the network's weights as they are.
    swn.RELATIVE = True
    # a in 1 + a (w - 1), the weight that the detector sees, once it is eased in.
    swn.STRENGTH = 0.5
    # Shares of SOLVER.MAX_ITER at which a starts to rise from 0 and has risen to STRENGTH.
    swn.EASE_IN = [0.5, 0.75]

    # A backbone of timm, for build_timm_fpn_backbone and build_timm_retinanet_fpn_backbone.
    cfg.MODEL.TIMM = CfgNode()
    # timm's name of the model.
    cfg.MODEL.TIMM.NAME = ""
    # Whether timm fetches the model's weights. MODEL.WEIGHTS, if it is set, replaces them.
    cfg.MODEL.TIMM.PRETRAINED = False
    # What becomes of its batch normalisations: "FrozenBN", "BN" or "SyncBN".
    cfg.MODEL.TIMM.NORM = "FrozenBN"

    # What becomes of detections that overlap.
    cfg.MODEL.NMS = nms = CfgNode()
    # "hard", Detectron2's own; "linear" or "gaussian", Soft-NMS; "iou_guided", IoU-Net's.
    nms.METHOD = "hard"
    # Sigma of Gaussian Soft-NMS.
    nms.SIGMA = 0.5
    # Soft-NMS drops what falls to this score. SCORE_THRESH_TEST applies before.
    nms.MIN_SCORE = 0.001
    # Boxes that are kept become means of those that overlap them; needs LOG_VARIANCE below.
    nms.VARIANCE_VOTING = False
    # Sigma_t of the voting.
    nms.VOTING_SIGMA = 0.02

    # One more layer that predicts the log variance of every coordinate of a box.
    cfg.MODEL.ROI_BOX_HEAD.LOG_VARIANCE = False

    # IoU-Net's head, which predicts how well a box is placed.
    cfg.MODEL.IOU_HEAD = iou_head = CfgNode()
    iou_head.ENABLED = False
    # Width of its two hidden layers.
    iou_head.FC_DIM = 1024
    # Boxes that are made of the ground truth to train it.
    iou_head.BOXES_PER_IMAGE = 128
    # Factor of its loss.
    iou_head.LOSS_WEIGHT = 1.0

    # Adam, the weighting network's own optimiser. It follows the detector's schedule.
    cfg.SOLVER.SWN = CfgNode()
    cfg.SOLVER.SWN.BASE_LR = 0.001
    cfg.SOLVER.SWN.WEIGHT_DECAY = 1e-4

    # What a training keeps of its samples, for tools/figures.py and tools/report.py.
    cfg.RECORDING = CfgNode()
    # Iterations between two records; 0 for none at all.
    cfg.RECORDING.PERIOD = 20
    # Positives and negatives, each, in a record.
    cfg.RECORDING.NUM_SAMPLES = 64


def load_config(config_file: str = "", opts: Sequence[str] = ()) -> CfgNode:
    """Detectron2's defaults and swn_d2's, then a config file, then ``KEY VALUE`` overrides.

    Only plain YAML is read, since YAML with Python objects in it can run code.

    Raises:
        UserError: the file can't be read, a key does not exist, or a value has the wrong type.
    """
    cfg = get_cfg()
    add_swn_config(cfg)
    if config_file:
        if "://" in config_file:  # which Detectron2 can read as a _BASE_ only
            raise UserError(f"the config file {config_file} is a URL; give the path of a file.")
        _check_file(config_file, cfg)
        with _explained(cfg, f"in {config_file}"):
            cfg.merge_from_file(config_file, allow_unsafe=False)
    _check_pairs(opts)
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        with _explained(cfg, "on the command line", key):
            cfg.merge_from_list([key, _in_tuple(key, value)])
    if cfg.MODEL.SAMPLE_WEIGHTER.NAME == "ObjectSWN":  # of earlier runs, what this is now
        cfg.MODEL.SAMPLE_WEIGHTER.NAME = "SWN"
        cfg.MODEL.SWN.TASKS, cfg.MODEL.SWN.CLS_AVERAGING = ["cls"], "per_object"
    return cfg


def flat_config(cfg: CfgNode) -> dict[str, Any]:
    """A config as one level of plain values, with lists for tuples, as its file has them:
    {"SOLVER.MAX_ITER": 900, "SOLVER.STEPS": [600, 800], ...}."""
    return dict(_flatten(cfg, ""))


def _flatten(section: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _listed(value)


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, (list, tuple)) else value


def section_of(weighter: str) -> str:
    """What the config keys begin with that are a sample weighter's own."""
    return "MODEL.SWN." if weighter == "SWN" else f"MODEL.SAMPLE_WEIGHTER.{weighter.upper()}."


def num_classes(cfg: CfgNode) -> tuple[str, int]:
    """The config key of the number of classes that the detector knows, and the number."""
    if "RetinaNet" in cfg.MODEL.META_ARCHITECTURE:
        return "MODEL.RETINANET.NUM_CLASSES", cfg.MODEL.RETINANET.NUM_CLASSES
    return "MODEL.ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES


def _in_tuple(key: str, value: Any) -> Any:
    """The name of one data set may stand where a tuple of names is wanted."""
    is_name = isinstance(value, str) and re.fullmatch(r"(?![\d.]+$)[\w.-]+", value)
    return repr((value,)) if key in ("DATASETS.TRAIN", "DATASETS.TEST") and is_name else value


def _check_file(file: str, cfg: CfgNode, included_by: tuple[str, ...] = ()) -> None:
    """Check what Detectron2 takes for granted of a config file, and of those it is based on."""
    whose = f" It is the _BASE_ of {included_by[-1]}." if included_by else ""
    if file in included_by:
        raise UserError(
            f"the config file {file} includes itself: {' <- '.join((*included_by, file))} "
            "(_BASE_ leads from each to the next)."
        )
    try:
        content = read_yaml(file)
    except UserError as error:
        raise UserError(f"config file: {error}{whose}") from error
    if not isinstance(content, dict):
        what = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise UserError(
            f"the config file {file} {what}, but a config has sections with keys, such as "
            f"SOLVER: {{BASE_LR: 0.01}}.{whose}"
        )
    if isinstance(content.get("model"), dict) and "MODEL" not in content:
        raise UserError(
            f"the config file {file} is one of Detectron2's LazyConfig, from which the classes of "
            "swn_d2 can be trained, but train_net.py and the tools need one with sections such as "
            f"MODEL and SOLVER.{whose}"
        )
    bases = content.pop("_BASE_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise UserError(f"_BASE_ in {file} is {base!r}, but it must be the path of a config.")
        base = os.path.expanduser(base)
        if "://" not in base:
            base = os.path.normpath(os.path.join(os.path.dirname(file), base))
        _check_file(base, cfg, (*included_by, file))
    _check_sections(content, cfg, file)


def _check_sections(content: dict, cfg: CfgNode, file: str, prefix: str = "") -> None:
    """What is a section in the defaults must be one, and nothing else."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if not isinstance(name, str):
            raise UserError(f"{key} in {file} is no config key: it is not a text.")
        is_section = isinstance(cfg.get(name), CfgNode)
        if is_section and not isinstance(value, dict):
            what = "nothing" if value is None else repr(value)
            raise UserError(f"{key} in {file} is a section of keys, but {what} stands there.")
        if is_section:
            _check_sections(value, cfg[name], file, f"{key}.")
        elif name in cfg and isinstance(value, dict):
            raise UserError(f"{key} in {file} is a key with a value, but a section stands there.")


def _check_pairs(opts: Sequence[str]) -> None:
    for text in map(str, opts):
        if text.startswith("--"):
            raise UserError(
                f"{text} stands behind {opts[0]}, where it is no option any more; give it before "
                f"the first KEY VALUE: {text} ... {' '.join(map(str, opts[:2]))}"
            )
    for key in map(str, opts[::2]):
        if "=" in key:
            raise UserError(f"{key}: give KEY VALUE with a space between, {key.replace('=', ' ')}.")
    if len(opts) % 2:
        raise UserError(
            f"the overrides are no pairs of KEY VALUE, on the command line: "
            f"{' '.join(map(str, opts))}"
        )


#: What yacs says of a value of another type than the default's.
_MISMATCH = re.compile(
    r"Type mismatch \(<class '([\w.]+)'> vs\. .*?\) with values \((.*) vs\. (.*)\) "
    r"for config key: ([\w.]+)",
    re.DOTALL,
)
_TYPES = {
    "bool": "True or False",
    "float": "a number like 1.0",
    "int": "a whole number",
    "list": "a list like [1, 2]",
    "str": "a text",
    "tuple": "a tuple like ('a', 'b'), or ('a',) for one",
}


@contextmanager
def _explained(cfg: CfgNode, where: str, key: str = ""):
    """Say what yacs and fvcore report, each mistake in another way, in words of ours.

    Args:
        where: the config comes from.
        key: that is merged, if it is only one.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
    else:
        return
    if mismatch := _MISMATCH.search(reason):
        kind, default, value, key = mismatch.groups()
        wanted = f"{_TYPES[kind]}; its default is {default}" if kind in _TYPES else "a section"
        raise UserError(
            f"the config {where} is not valid: {key} is {value}, but it must be {wanted}."
        )
    unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", reason)
    if not unknown and (not key or key in _keys(cfg)):
        raise UserError(f"the config {where} is not valid: {f'{key}: ' if key else ''}{reason}.")
    key = unknown[1] if unknown else key
    # Compare the whole key, so that a key in the wrong section is found as well.
    similar = difflib.get_close_matches(key, list(_keys(cfg)), n=1, cutoff=0.6)
    hint = f" Did you mean {similar[0]}?" if similar else ""
    if key.startswith("MODEL.SAMPLE_WEIGHTER."):
        hint += " A weighter of your own has its keys when --import FILE.py names its file."
    raise UserError(f"there is no config key {key} ({where}).{hint}")


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")
