#!/usr/bin/env python3
"""Write a config for data of your own: it looks at them, and chooses what fits."""

import argparse
import logging
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from swn_d2.errors import (
    UserError,
    add_debug_argument,
    phase,
    require_detectron2,
    user_errors_exit,
)

with user_errors_exit():
    require_detectron2()

import torch
from detectron2.data import DatasetCatalog

from swn_d2.data.split import split_pictures
from swn_d2.files import write_new
from swn_d2.own import add_own_arguments, register_own
from swn_d2.recipe import plan_project
from swn_d2.recipe.project import DETECTORS
from swn_d2.recipe.text import BACKBONE, WEIGHTS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``argv`` defaults to the process's own."""
    parser = argparse.ArgumentParser(
        description="Look at your data, and write a config to train a detector on them: schedule, "
        "picture sizes, anchors, classes, with the reasons in comments. Name one data set with "
        "--split, or register two: the first is trained on, the second tested on. Where there is "
        "a GPU, the detector is larger.",
    )
    parser.add_argument(
        "--split",
        nargs=3,
        metavar=("NAME", "ANNOTATIONS", "IMAGE_DIR"),
        help="make NAME_train and NAME_val of one data set, by the names of its pictures, and "
        "write their annotation files beside the config. ANNOTATIONS is a file in COCO's "
        "instances format or a folder of Pascal VOC's XML files",
    )
    parser.add_argument(
        "--share",
        type=float,
        default=0.8,
        help="with --split, about which share of the pictures to train on (default: 0.8)",
    )
    add_own_arguments(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the config to write"
    )
    parser.add_argument(
        "--detector",
        choices=DETECTORS,
        default="faster_rcnn",
        help="mask_rcnn also learns the masks of the annotations (default: faster_rcnn)",
    )
    add_debug_argument(parser)
    return parser.parse_args(argv)


@contextmanager
def split_own(args: argparse.Namespace) -> Iterator[None]:
    """Do what ``--split`` asks for, and have ``args`` register the parts. If what is done in this
    context fails, the files are not kept: they would be in the way of the next try."""
    if args.split is None:
        yield
        return
    name, annotations, images = args.split
    if name != Path(name).name:
        raise UserError(
            f"--split names the data set {name!r}; give a name without a folder: the files are "
            "made beside the config."
        )
    files = [args.output.with_name(f"{name}_{part}.json") for part in ("train", "val")]
    new = [file for file in files if not file.exists()]
    left_out = split_pictures(annotations, images, *files, share=args.share)
    args.register_coco += [[file.stem, str(file), images] for file in files]
    try:
        if left_out:
            print(in_words(left_out), end="\n\n")
        yield
    except BaseException as error:
        for file in new:
            file.unlink()
        if not isinstance(error, UserError):
            raise
        what = str(error)
        for file in new:  # which nobody could mend
            what = what.replace(str(file), annotations)
        raise UserError(what) from error


def in_words(left_out: Mapping[str, str]) -> str:
    """Which pictures were left out, and why."""
    some = "; ".join(f"{picture}: {fault}" for picture, fault in list(left_out.items())[:3])
    more = f"; and {len(left_out) - 3} others" if len(left_out) > 3 else ""
    return f"Left out, since they can't be read ({len(left_out)} in all): {some}{more}"


def next_commands(args: argparse.Namespace, folder: str) -> list[str]:
    """What there is to do with the config, to be pasted."""
    tools = Path(os.path.relpath(Path(__file__).parent))
    registered = [
        text
        for option, sets in vars(args).items()
        if option.startswith("register_")
        for data_set in sets
        for text in ("--" + option.replace("_", "-"), *data_set)
    ]
    train_net = str(tools.parent / "train_net.py")
    commands = [
        ["python", train_net, "--config-file", str(args.output), *registered],
        ["python", str(tools / "report.py"), folder],
    ]
    if not os.path.exists(WEIGHTS):
        commands.insert(0, ["python", str(tools / "get_backbone.py"), BACKBONE])
    return [shlex.join(command) for command in commands]


def main() -> None:
    """Run the tool."""
    args = parse_args()
    # It warns of category ids that are no 1, 2, 3, which does no harm.
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    folder = f"output/{args.output.stem}"
    with user_errors_exit(), phase("looking at the data"), split_own(args):
        before = set(DatasetCatalog.list())
        register_own(args)
        names = [name for name in DatasetCatalog.list() if name not in before]
        project = plan_project(
            names, detector=args.detector, has_gpu=torch.cuda.is_available(), output=folder
        )
        write_new({args.output: project.config})
    print(project.train.in_words())
    print(project.test.in_words())
    print(f"\n{args.output} is a config for them. Next:\n")
    for command in next_commands(args, folder):
        print(f"  {command}")


if __name__ == "__main__":
    main()
