#!/usr/bin/env python3
"""Write a checkpoint without the sample weighter, for Detectron2 without swn_d2.

What is left is the model alone, ``{"model": ...}``: no optimisers, schedule or iteration, so the
file is good for inference and fine-tuning, not for --resume.
"""

import argparse

import torch

from swn_d2.errors import UserError, add_debug_argument, phase, require_detectron2, user_errors_exit

with user_errors_exit():
    require_detectron2()

from swn_d2.engine import is_sample_weighter_key, read_checkpoint, write_new_checkpoint


def strip(source: str, destination: str) -> tuple[int, int]:
    """Write ``destination``, the model in ``source`` without its sample weighter.

    Returns:
        How many tensors were left out, and how many were kept.

    Raises:
        UserError: one of the files is not as it should be.
    """
    model = read_checkpoint(source).get("model")
    if not isinstance(model, dict):
        raise UserError(f"{source} is not a checkpoint of Detectron2: it has no 'model'.")
    kept = {key: value for key, value in model.items() if not is_sample_weighter_key(str(key))}
    if not any(isinstance(value, torch.Tensor) for value in kept.values()):
        raise UserError(f"{source} is not a checkpoint of a detector: its 'model' has no tensor.")
    write_new_checkpoint({"model": kept}, destination)
    return len(model) - len(kept), len(kept)


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description="Write a checkpoint's model without the sample weighter, to load in Detectron2 "
        "without swn_d2."
    )
    parser.add_argument("source", metavar="SRC", help="a checkpoint, model_final.pth for instance")
    parser.add_argument("destination", metavar="DST", help="the .pth file to write")
    add_debug_argument(parser)
    args = parser.parse_args()
    with user_errors_exit(), phase("stripping the checkpoint"):
        removed, kept = strip(args.source, args.destination)
    print(f"{args.destination}: {kept} tensors; left out {removed} of the sample weighter.")


if __name__ == "__main__":
    main()
