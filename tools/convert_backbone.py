#!/usr/bin/env python3
"""Convert the weights of a classifier to those of a detector's backbone.

A ResNeXt of timm or torchvision, which use the same names, becomes a ResNet of Detectron2; with
--timm, the weights of any model that timm has, too, become those of a TimmBackbone. Either computes
the same features from the converted weights, with the config keys that this tool prints.
"""

import argparse
import re
from itertools import zip_longest
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from swn_d2.errors import UserError, add_debug_argument, phase, require_detectron2, user_errors_exit

with user_errors_exit():
    require_detectron2()

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone

from swn_d2.engine import read_checkpoint, write_new_checkpoint
from swn_d2.modeling import TimmBackbone
from swn_d2.modeling.timm_backbone import check_timm_model

# Blocks in each of the four stages.
DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}


def read_state_dict(path: str) -> dict[str, Tensor]:
    """The state dict in a file of torch.save or safetensors, or in a training checkpoint.

    Raises:
        UserError: the file can't be read, or safetensors is needed and not installed.
    """
    if not path.endswith(".safetensors"):
        data = read_checkpoint(path)
        # timm's and torchvision's training scripts store it beside the optimiser's state.
        data = data.get("state_dict", data.get("model", data))
        if not isinstance(data, dict) or not any(isinstance(v, Tensor) for v in data.values()):
            raise UserError(f"{path} holds no state dict: there is no tensor in it.")
        return data
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(
            f"cannot read {path} without the package safetensors; install it with: "
            "pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or 'no such file'}.") from error
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file, or is damaged.") from error


def resnext_settings(state_dict: dict[str, Tensor]) -> dict[str, Any]:
    """The config keys, nested as in a YAML file, that go with a ResNeXt's weights.

    Raises:
        UserError: these are not the weights of a ResNeXt that Detectron2 can build.
    """
    grouped = state_dict.get("layer1.0.conv2.weight")  # (width, width / groups, 3, 3)
    if grouped is None or "layer1.0.conv3.weight" not in state_dict:
        raise UserError(
            "these are not the weights of a ResNeXt of timm or torchvision: they have no "
            "layer1.0.conv2.weight and layer1.0.conv3.weight; for another model, give --timm with "
            "timm's name of it."
        )
    width, width_per_group = grouped.shape[:2]
    if width == width_per_group:
        raise UserError("these are the weights of a ResNet, not of a ResNeXt: it has no groups.")
    stages = [re.match(r"layer([1-4])\.\d+\.conv2\.", key) for key in state_dict]
    numbers = [match[1] for match in stages if match]
    blocks = tuple(numbers.count(stage) for stage in "1234")
    if blocks not in DEPTHS:
        raise UserError(
            f"Detectron2 has no ResNeXt with {blocks} blocks in its stages; it has those with "
            f"{', '.join(map(str, DEPTHS))}."
        )
    return {
        "MODEL": {
            # The mean and standard deviation of ImageNet, with which both libraries train, for
            # pixels from 0 to 255.
            "PIXEL_MEAN": [123.675, 116.28, 103.53],
            "PIXEL_STD": [58.395, 57.12, 57.375],
            "RESNETS": {
                "DEPTH": DEPTHS[blocks],
                "NUM_GROUPS": width // width_per_group,
                "WIDTH_PER_GROUP": width_per_group,
                "STRIDE_IN_1X1": False,
            },
        },
        "INPUT": {"FORMAT": "RGB"},
    }


def convert_resnext(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names that Detectron2's ResNet has for them, without the classifier.

    Raises:
        UserError: weights are missing, left over, or of an unexpected shape.
    """
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(resnext_settings(state_dict)))
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    with torch.device("meta"):  # the names and shapes are all that is needed
        expected = build_backbone(cfg).state_dict()

    converted = {}
    for key, tensor in state_dict.items():
        if key.startswith("fc.") or key.endswith(".num_batches_tracked"):
            continue
        name = _detectron2_name(key)
        if name not in expected:
            raise UserError(
                f"{key} has no place in Detectron2's ResNeXt; variants with another stem or with "
                "attention (resnext50d, seresnext, ...) can't be converted."
            )
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{key} has the shape {tuple(tensor.shape)}, but it must be "
                f"{tuple(expected[name].shape)} in this ResNeXt."
            )
        converted[name] = tensor
    missing = sorted(set(expected) - set(converted))
    if missing:
        raise UserError(
            f"the weights are incomplete: nothing for {len(missing)} tensors of Detectron2's "
            f"ResNeXt, {missing[0]} for instance."
        )
    return converted


def _detectron2_name(key: str) -> str:
    key = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", key)
    key = re.sub(r"^layer([1-4])\.", lambda match: f"res{int(match[1]) + 1}.", key)
    key = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", key)
    return key.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")


def timm_settings(name: str) -> dict[str, Any]:
    """The config keys, nested as in a YAML file, that go with a backbone of timm.

    Raises:
        UserError: timm is missing, or has no model ``name``.
    """
    trained_with = _whole_model(name).pretrained_cfg
    return {
        "MODEL": {
            "BACKBONE": {"NAME": "build_timm_fpn_backbone"},
            "TIMM": {"NAME": name},
            # timm's are for pixels from 0 to 1.
            "PIXEL_MEAN": [round(255 * mean, 3) for mean in trained_with["mean"]],
            "PIXEL_STD": [round(255 * std, 3) for std in trained_with["std"]],
        },
        "INPUT": {"FORMAT": "RGB"},
    }


def convert_timm(state_dict: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights under the names that ``TimmBackbone`` has for them, without the classifier.

    They may have the names of timm's model. If they have others, as torchvision's do, the first of
    them must be the model's one by one, each a tensor of the same kind (weight, bias,
    running_mean, ...) and of the same shape. That the two libraries compute the same is not seen
    from names and shapes: torchvision's MobileNetV3 has another eps in its normalisations.

    Raises:
        UserError: timm is missing, has no model ``name`` or no features of it, or these are the
            weights of another model.
    """
    with torch.device("meta"):  # the names and shapes are all that is needed
        expected = TimmBackbone(name).state_dict()
    source = {
        key: tensor
        for key, tensor in state_dict.items()
        if isinstance(tensor, Tensor) and not key.endswith(".num_batches_tracked")
    }
    named = {_flat(key): key for key in source}
    keys = [named.get(_flat(key)) for key in expected]
    if None in keys:
        keys = list(source)[: len(expected)]
    else:
        # A deeper model of the same family has all names of this one, and more.
        known = {_flat(key) for key in _whole_model(name).state_dict()}
        unknown = next((key for key in source if _flat(key) not in known), None)
        if unknown is not None:
            raise UserError(
                f"these are not the weights of timm's {name}: it has no counterpart of {unknown}, "
                f"of the shape {tuple(source[unknown].shape)}."
            )
    converted = {}
    for target, key in zip_longest(expected, keys):
        if (
            key is None
            # A file whose tensors are in alphabetical order can have the shapes, but not the kinds.
            or key.rpartition(".")[2] != target.rpartition(".")[2]
            or source[key].shape != expected[target].shape
        ):
            found = f"has {key}, of the shape {tuple(source[key].shape)}" if key else "has no more"
            raise UserError(
                f"these are not the weights of timm's {name}: its {target.removeprefix('net.')}, "
                f"of the shape {tuple(expected[target].shape)}, has no counterpart; the file "
                f"{found} in its place."
            )
        converted[target] = source[key]
    return converted


def _whole_model(name: str) -> nn.Module:
    """timm's model with its classifier, without memory for its tensors."""
    check_timm_model(name)
    import timm

    with torch.device("meta"):
        return timm.create_model(name)


def _flat(key: str) -> str:
    """A name that is the same in timm's model and in its features, which ``TimmBackbone`` wraps."""
    return key.removeprefix("net.").removeprefix("model.").replace(".", "_")


def write_backbone(weights: dict[str, Tensor], path: str) -> None:
    """Write converted weights as a file for ``MODEL.WEIGHTS``.

    Raises:
        UserError: the file exists already, has no ``.pth`` ending, or can't be written.
    """
    # The names are those of the backbone alone; Detectron2 finds their place in any detector.
    write_new_checkpoint({"model": weights, "matching_heuristics": True}, path)


def print_settings(settings: dict[str, Any], path: str) -> None:
    """Print the config keys that go with the weights in ``path``, as YAML."""
    settings = {**settings, "MODEL": {"WEIGHTS": path, **settings["MODEL"]}}
    print(yaml.safe_dump(settings, sort_keys=False, default_flow_style=None), end="")
    if "TIMM" in settings["MODEL"]:
        print("# For RetinaNet, MODEL.BACKBONE.NAME is build_timm_retinanet_fpn_backbone.")


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description="Convert the weights of a classifier to those of a detector's backbone, and "
        "print the config keys that go with it: a ResNeXt of timm (resnext101_32x4d, ...) or "
        "torchvision (resnext50_32x4d, resnext101_32x8d, ...) for Detectron2's ResNet, or with "
        "--timm any model of timm."
    )
    parser.add_argument("source", metavar="SRC", help="its state dict: .pth, .bin or .safetensors")
    parser.add_argument("destination", metavar="DST", help="the .pth file to write")
    parser.add_argument(
        "--timm",
        metavar="NAME",
        help="timm's name of the model, such as mobilenetv2_100, whose weights may be timm's or, "
        "if they are in the same order, another library's",
    )
    add_debug_argument(parser)
    args = parser.parse_args()
    with user_errors_exit(), phase("converting the weights"):
        state_dict = read_state_dict(args.source)
        if args.timm is None:
            weights, settings = convert_resnext(state_dict), resnext_settings(state_dict)
        else:
            weights, settings = convert_timm(state_dict, args.timm), timm_settings(args.timm)
        write_backbone(weights, args.destination)
    print_settings(settings, args.destination)


if __name__ == "__main__":
    main()
