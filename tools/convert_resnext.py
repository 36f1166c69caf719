#!/usr/bin/env python3
"""Convert a ResNeXt of timm or torchvision to a backbone for Detectron2.

The two libraries use the same names. Detectron2's ResNet computes the same features from the
converted weights, with the config keys that this tool prints.
"""

import argparse
import re
from typing import Any

import torch
import yaml
from torch import Tensor

from swn_d2.errors import UserError, require_detectron2, user_errors_exit

with user_errors_exit():
    require_detectron2()

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone

from swn_d2.engine import read_checkpoint, write_new_checkpoint

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
        return data.get("state_dict", data.get("model", data))
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


def detectron2_settings(state_dict: dict[str, Tensor]) -> dict[str, Any]:
    """The config keys, nested as in a YAML file, that go with a ResNeXt's weights.

    Raises:
        UserError: these are not the weights of a ResNeXt that Detectron2 can build.
    """
    grouped = state_dict.get("layer1.0.conv2.weight")  # (width, width / groups, 3, 3)
    if grouped is None or "layer1.0.conv3.weight" not in state_dict:
        raise UserError(
            "these are not the weights of a ResNeXt of timm or torchvision: they have no "
            "layer1.0.conv2.weight and layer1.0.conv3.weight."
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


def convert(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names that Detectron2's ResNet has for them, without the classifier.

    Raises:
        UserError: weights are missing, left over, or of an unexpected shape.
    """
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(detectron2_settings(state_dict)))
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


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description="Convert a ResNeXt of timm (resnext101_32x4d, ...) or torchvision "
        "(resnext50_32x4d, resnext101_32x8d, ...) to a backbone for Detectron2, and print the "
        "config keys that go with it."
    )
    parser.add_argument("source", metavar="SRC", help="its state dict: .pth, .bin or .safetensors")
    parser.add_argument("destination", metavar="DST", help="the .pth file to write")
    args = parser.parse_args()
    with user_errors_exit():
        state_dict = read_state_dict(args.source)
        # The names are those of the backbone alone; Detectron2 finds their place in any detector.
        write_new_checkpoint(
            {"model": convert(state_dict), "matching_heuristics": True}, args.destination
        )
        settings = detectron2_settings(state_dict)
    settings["MODEL"] = {"WEIGHTS": args.destination, **settings["MODEL"]}
    print(yaml.safe_dump(settings, sort_keys=False, default_flow_style=None), end="")


if __name__ == "__main__":
    main()
