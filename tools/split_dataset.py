#!/usr/bin/env python3
"""Split a COCO-format data set in two, by the names of its pictures."""

import argparse

from swn_d2.errors import add_debug_argument, phase, require_detectron2, user_errors_exit

with user_errors_exit():
    require_detectron2()

from swn_d2.data.split import split_dataset


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``argv`` defaults to the process's own."""
    parser = argparse.ArgumentParser(
        description="Split an annotation file in COCO's instances format in two. Which part a "
        "picture is in follows from its name, so the same options always give the same files. One "
        "that exists is kept if it is what would be written; if not, that is an error."
    )
    parser.add_argument("source", metavar="SRC", help="the annotation file")
    parser.add_argument("first", metavar="FIRST", help="the first part's annotation file to write")
    parser.add_argument("second", metavar="SECOND", help="the second part's")
    parser.add_argument(
        "--share",
        type=float,
        default=0.5,
        help="about which share of the pictures is in the first part, above 0 and below 1 "
        "(default: 0.5)",
    )
    add_debug_argument(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Run the tool."""
    args = parse_args()
    with user_errors_exit(), phase("splitting the data set"):
        numbers = split_dataset(args.source, args.first, args.second, share=args.share)
    print(f"{numbers[0]} pictures are in {args.first}, {numbers[1]} in {args.second}.")


if __name__ == "__main__":
    main()
