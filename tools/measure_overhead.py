#!/usr/bin/env python3
"""What sample weighting costs: the time and the memory of a training step, with it and without.

Both detectors of a pair of configs run the forward and backward pass on the same random image,
in turn, so that what slows the machine down slows both. At the end the median of the ratios, and
the memory that a step needs beyond what is there before it (the parameters of both detectors are).
"""

import argparse
from functools import partial
from statistics import median

from swn_d2.errors import UserError, add_debug_argument, phase, require_detectron2, user_errors_exit

with user_errors_exit():
    require_detectron2()

import torch
from torch import nn

from swn_d2 import load_config
from swn_d2.checks.clock import alternate, ratio
from swn_d2.checks.detectors import build_detector, random_picture
from swn_d2.checks.precision import forward
from swn_d2.own import add_import_argument, import_file


def step(model: nn.Module, image: dict, iteration: int) -> None:
    """A forward and backward pass; the same random regions in both detectors."""
    sum(forward(model, [image], iteration, "float32").values()).backward()


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--baseline", required=True, metavar="FILE", help="config without SWN")
    parser.add_argument("--swn", required=True, metavar="FILE", help="config with SWN")
    parser.add_argument("--pairs", type=int, default=10, help="alternating pairs (default: 10)")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(800, 1333),
        metavar=("HEIGHT", "WIDTH"),
        help="of the image, in pixels (default: 800 1333)",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of both configs"
    )
    add_import_argument(parser)
    add_debug_argument(parser)
    return parser


def main() -> None:
    args = argument_parser().parse_args()
    for file in args.imports:
        import_file(file)
    if args.pairs < 1 or min(args.size) < 64:
        raise UserError("--pairs must be at least 1, --size at least 64 64.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models, num_classes = [], []
    for file in (args.baseline, args.swn):
        # Random weights need normalisation that adapts to them.
        opts = ["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", "MODEL.RESNETS.NORM", "BN"]
        cfg = load_config(file, [*opts, *args.opts])
        models.append(build_detector(cfg))
        num_classes += [cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CLASSES]
    image = random_picture(*args.size, min(num_classes))

    def clear() -> None:
        for model in models:
            model.zero_grad(set_to_none=True)

    steps = [partial(step, model, image) for model in models]
    pairs = []
    for pair in alternate(*steps, device, pairs=args.pairs, after=clear):
        pairs.append(pair)
        without, with_swn = pair.seconds
        print(
            f"pair {len(pairs)}: {without:.3f} s without, {with_swn:.3f} s with, "
            f"ratio {with_swn / without:.4f}",
            flush=True,
        )
    middle, low, high = ratio(pairs)
    print(
        f"time of forward and backward, with / without: median {middle:.4f} "
        f"({low:.4f} to {high:.4f}, {len(pairs)} pairs)"
    )
    without, with_swn = (median(pair.mebibytes[which] for pair in pairs) for which in (0, 1))
    print(
        f"memory that a step needs: {without:.0f} MiB without, {with_swn:.0f} MiB with, "
        f"ratio {with_swn / without:.4f}"
    )


if __name__ == "__main__":
    with user_errors_exit(), phase("measuring"):
        main()
