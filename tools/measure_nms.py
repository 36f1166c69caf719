#!/usr/bin/env python3
"""Time the suppressions of overlapping detections against torchvision's batched NMS.

    python tools/measure_nms.py

1,000 boxes around 20 objects, as the R-CNN of an image with 80 classes has them before its NMS:
every box with a score for each class. Two ways of reading that:

    all      every score is a candidate, 80,000 in all: no score threshold
    softmax  the scores are a softmax over the classes and the background, and candidates those
             above 0.05, Detectron2's threshold

For each method the median over the rounds of its time divided by that of torchvision's NMS in the
same round. "limit 100" knows beforehand that no more than 100 detections are wanted.
"""

import argparse

from swn_d2.errors import UserError, add_debug_argument, phase, require_detectron2, user_errors_exit

with user_errors_exit():
    require_detectron2()

import torch

from swn_d2.checks.suppression import candidates, methods, time_methods


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boxes", type=int, default=1000, help="default: 1000")
    parser.add_argument("--classes", type=int, default=80, help="default: 80")
    parser.add_argument("--rounds", type=int, default=10, help="default: 10")
    add_debug_argument(parser)
    return parser


def main() -> None:
    args = argument_parser().parse_args()
    if min(args.boxes, args.classes, args.rounds) < 1:
        raise UserError("--boxes, --classes and --rounds must be at least 1.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for reading, chosen in candidates(args.boxes, args.classes, device).items():
        functions = methods(*chosen)
        print(f"{reading}: {len(chosen[0])} candidates on {device}, {args.rounds} rounds")
        for name, (duration, share) in time_methods(functions, device, rounds=args.rounds).items():
            print(
                f"  {name:20} kept {len(functions[name]()):6}, "
                f"{1000 * duration:8.2f} ms, ratio {share:6.2f}"
            )


if __name__ == "__main__":
    with user_errors_exit(), phase("measuring"):
        main()
