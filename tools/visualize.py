#!/usr/bin/env python3
"""Draw what a trained detector finds in one's own pictures. See docs/analysis.md."""

import argparse
import os
import sys
import time
from pathlib import Path

from swn_d2.errors import (
    UserError,
    add_debug_argument,
    phase,
    require_detectron2,
    require_matplotlib,
    user_errors_exit,
)

with user_errors_exit():
    require_detectron2()
    require_matplotlib()

from swn_d2.analysis.predictions import (
    build_predictor,
    class_names,
    draw_predictions,
    find_pictures,
    load_run_config,
    output_files,
    save_picture,
)
from swn_d2.evaluation.pictures import read_pixels
from swn_d2.own import add_own_arguments, register_own


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``argv`` defaults to the process's own."""
    parser = argparse.ArgumentParser(
        description="Draw what a trained detector finds in pictures: boxes, classes, scores and, "
        "if it predicts them, masks.",
        epilog='Example: python tools/visualize.py output/demo "pictures/*.jpg"',
    )
    parser.add_argument(
        "run", help="the folder of a training, whose last checkpoint is taken, or a config file"
    )
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURE", help="a file, a folder or a glob in quotes"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where to write (default: the folder predictions in that of the training)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="leave out detections with a lower score (default: 0.5)",
    )
    parser.add_argument("--weights", metavar="FILE", help="another checkpoint")
    add_own_arguments(parser)
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="overrides of the config; the last option",
    )
    add_debug_argument(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Run the tool."""
    args = parse_args()
    with user_errors_exit(), phase("drawing what is found"):
        if not 0 <= args.threshold <= 1:
            raise UserError(f"--threshold is {args.threshold}, but it must be from 0 to 1.")
        register_own(args)
        pictures = find_pictures(args.pictures)
        weights = ["MODEL.WEIGHTS", args.weights] if args.weights else []
        cfg = load_run_config(args.run, [*args.opts, *weights])
        files = output_files(pictures, args.output or Path(cfg.OUTPUT_DIR) / "predictions")
        # In the run's folder they are of this tool.
        if args.output and (there := [file for file in files if os.path.exists(file)]):
            raise UserError(f"{there[0]} exists already; remove it, or give another --output.")
        predictor = build_predictor(cfg, score_threshold=args.threshold)
        try:
            names = class_names(cfg)
        except UserError as error:
            print(f"warning: the classes have numbers for names: {error}", file=sys.stderr)
            names = []

        unreadable = 0
        for picture, file in zip(pictures, files, strict=True):
            try:
                pixels = read_pixels(picture, "BGR")
                resized = predictor.aug.get_transform(pixels)
                if min(getattr(resized, "new_h", 1), getattr(resized, "new_w", 1)) < 1:
                    raise UserError(
                        f"{picture} is so long and thin that nothing is left of it when it is "
                        "resized for the detector."
                    )
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                unreadable += 1
                continue
            start = time.perf_counter()
            with phase(f"looking at {picture}"):
                instances = predictor(pixels)["instances"].to("cpu")
            seconds = time.perf_counter() - start
            instances = instances[instances.scores >= args.threshold]
            save_picture(draw_predictions(pixels[..., ::-1], instances, names), file)
            objects = "1 object" if len(instances) == 1 else f"{len(instances)} objects"
            print(f"{picture}: {objects}, {seconds:.2f} s -> {file}", flush=True)
        if unreadable:
            raise UserError(f"{unreadable} of {len(pictures)} pictures could not be looked at.")


if __name__ == "__main__":
    main()
