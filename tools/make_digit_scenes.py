#!/usr/bin/env python3
"""Write DigitScenes, the embedded data set, to disk in COCO format."""

import argparse

from swn_d2.errors import add_debug_argument, phase, require_detectron2, user_errors_exit

with user_errors_exit():
    require_detectron2()

from swn_d2.data import digit_scenes_root, make_digit_scenes


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``argv`` defaults to the process's own."""
    parser = argparse.ArgumentParser(
        description="Write DigitScenes, real handwritten digits on real photographs with boxes and "
        "masks, in COCO format. The same options always give the same files; a folder that "
        "already holds them is kept.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", default=str(digit_scenes_root()), help="folder to write")
    parser.add_argument("--train", type=int, default=2000, help="number of training images")
    parser.add_argument("--val", type=int, default=300, help="number of validation images")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        default=(192, 160),
        metavar=("W", "H"),
        help="width and height of the images in pixels, at least 64 each",
    )
    parser.add_argument(
        "--box-noise-share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the training boxes that is jittered, 0 to 1",
    )
    parser.add_argument(
        "--box-noise-amount",
        type=float,
        default=0.2,
        metavar="AMOUNT",
        help="how far each side of a jittered box may move, as a share of the box size, below 0.5",
    )
    parser.add_argument(
        "--class-noise-share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the training objects that is annotated as another digit, 0 to 1",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other images")
    add_debug_argument(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Run the tool."""
    args = parse_args()
    with user_errors_exit(), phase("making DigitScenes"):
        root = make_digit_scenes(
            args.output,
            num_train=args.train,
            num_val=args.val,
            image_size=tuple(args.image_size),
            box_noise_share=args.box_noise_share,
            box_noise_amount=args.box_noise_amount,
            class_noise_share=args.class_noise_share,
            seed=args.seed,
        )
    print(f"DigitScenes is in {root}: {args.train} training and {args.val} validation images.")


if __name__ == "__main__":
    main()
