#!/usr/bin/env python3
"""Write the pictures of the experiments: VOC 2007's test set, made small, in three parts."""

import argparse

from swn_d2.errors import add_debug_argument, phase, require_detectron2, user_errors_exit

with user_errors_exit():
    require_detectron2()

from swn_d2.data.voc_subset import make_voc_subset


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``argv`` defaults to the process's own."""
    parser = argparse.ArgumentParser(
        description="Write the pictures of Pascal VOC 2007's test set with a shorter side of 320 "
        "pixels, and their annotations in COCO format: train.json, val.json and held_out.json. "
        "Which of them a picture is in follows from its name."
    )
    parser.add_argument("source", metavar="VOC2007", help="the official folder")
    parser.add_argument("output", metavar="OUT", help="the folder to write")
    add_debug_argument(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Run the tool."""
    args = parse_args()
    with user_errors_exit(), phase("making the pictures"):
        numbers = make_voc_subset(args.source, args.output)
    parts = ", ".join(f"{part} {number}" for part, number in numbers.items())
    print(f"Pictures: {parts}. They are in {args.output}.")


if __name__ == "__main__":
    main()
