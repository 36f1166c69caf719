#!/usr/bin/env python3
"""Write a checkpoint without the sample weighter, for Detectron2 without swn_d2.

What is left is the model alone, ``{"model": ...}``: no optimisers, schedule or iteration, so the
file is good for inference and fine-tuning, not for --resume.
"""

import argparse
import contextlib
import os
from typing import Any, Dict, Tuple

import torch

from swn_d2.errors import UserError, require_detectron2, user_errors_exit

with user_errors_exit():
    require_detectron2()

from swn_d2.engine import is_sample_weighter_key


def read_checkpoint(path: str) -> Dict[str, Any]:
    """The dictionary in a file of torch.save. No code in the file is run.

    Raises:
        UserError: the file can't be read, or does not hold a dictionary.
    """
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    except Exception as error:  # a file of another kind can raise nearly everything
        raise UserError(
            f"{path} is not a PyTorch checkpoint, is damaged, or holds more than tensors and plain "
            "Python values; save the state dict of a model with torch.save."
        ) from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, not the state dict of a model.")
    return data


def write_checkpoint(data: Dict[str, Any], path: str) -> None:
    """Write a new file with torch.save. It appears whole or not at all.

    Raises:
        UserError: the file exists already, has no ``.pth`` ending, or can't be written.
    """
    if not path.endswith(".pth"):
        # The ending tells Detectron2 how to read a file.
        raise UserError(f"cannot write {path}: the name must end with .pth.")
    if os.path.exists(path):
        raise UserError(f"{path} exists already; remove it, or give another name.")
    partial = path + ".partial"
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        torch.save(data, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise UserError(f"cannot write {path}: {error}") from error


def strip(source: str, destination: str) -> Tuple[int, int]:
    """Write ``destination``, the model in ``source`` without its sample weighter.

    Returns:
        How many tensors were left out, and how many were kept.

    Raises:
        UserError: one of the files is not as it should be.
    """
    model = read_checkpoint(source).get("model")
    if not isinstance(model, dict):
        raise UserError(f"{source} is not a checkpoint of Detectron2: it has no 'model'.")
    kept = {key: value for key, value in model.items() if not is_sample_weighter_key(key)}
    write_checkpoint({"model": kept}, destination)
    return len(model) - len(kept), len(kept)


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description="Write a checkpoint's model without the sample weighter, to load in Detectron2 "
        "without swn_d2."
    )
    parser.add_argument("source", metavar="SRC", help="a checkpoint, model_final.pth for instance")
    parser.add_argument("destination", metavar="DST", help="the .pth file to write")
    args = parser.parse_args()
    with user_errors_exit():
        removed, kept = strip(args.source, args.destination)
    print(f"{args.destination}: {kept} tensors; left out {removed} of the sample weighter.")


if __name__ == "__main__":
    main()
