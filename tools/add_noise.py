#!/usr/bin/env python3
"""Write a noisy copy of any COCO-format annotation file, and the truth beside it."""

import argparse

from swn_d2.errors import add_debug_argument, phase, require_detectron2, user_errors_exit

with user_errors_exit():
    require_detectron2()

from swn_d2.data.noise import JITTERED_BOX, MISSING_OBJECT, WRONG_CLASS, add_noise


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``argv`` defaults to the process's own."""
    parser = argparse.ArgumentParser(
        description="Write a noisy copy of an annotation file in COCO's instances format, and the "
        "truth beside it. Crowd regions are never touched. The same options always give the same "
        "files. One that exists is kept if it is what would be written; if not, that is an error."
    )
    parser.add_argument("source", metavar="SRC", help="the annotation file")
    parser.add_argument("destination", metavar="DST", help="the noisy annotation file to write")
    shares = parser.add_argument_group("noise, at least one kind, 0 to 1")
    shares.add_argument(
        "--wrong-classes",
        type=float,
        metavar="SHARE",
        help="share of the objects that get another of the categories",
    )
    shares.add_argument(
        "--jittered-boxes",
        type=float,
        metavar="SHARE",
        help="share of the objects whose box is jittered",
    )
    shares.add_argument(
        "--missing-objects",
        type=float,
        metavar="SHARE",
        help="share of the objects whose annotation is taken out",
    )
    parser.add_argument(
        "--amount",
        type=float,
        default=0.2,
        help="how far each side of a jittered box may move, as a share of the box size, below 0.5 "
        "(default: 0.2)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other noise")
    parser.add_argument(
        "--truth",
        metavar="FILE",
        help="where the truth goes: all annotations as they were, with the noise that each has "
        "(default: DST with the ending .truth.json)",
    )
    parser.add_argument(
        "--left-out",
        metavar="FILE",
        help="write the noisy annotations also with a sample_weight of 0 for the noisy objects",
    )
    add_debug_argument(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Run the tool."""
    args = parse_args()
    asked = {
        WRONG_CLASS: args.wrong_classes,
        JITTERED_BOX: args.jittered_boxes,
        MISSING_OBJECT: args.missing_objects,
    }
    with user_errors_exit(), phase("adding noise"):
        added = add_noise(
            args.source,
            args.destination,
            shares={kind: share for kind, share in asked.items() if share is not None},
            amount=args.amount,
            seed=args.seed,
            truth=args.truth,
            left_out=args.left_out,
        )
    numbers = ", ".join(f"{kind} {n}" for kind, n in added.num_changed.items())
    files = ", ".join(map(str, added.files))
    print(f"Of {added.num_objects} objects: {numbers}. Files: {files}")


if __name__ == "__main__":
    main()
