"""The options with which a command line names data sets and code of one's own."""

import argparse
import os

from detectron2.config import CfgNode, get_cfg

from ..config import add_swn_config
from ..data import register_coco, register_voc
from ..data.voc import find_voc_classes, find_voc_listing
from ..errors import UserError
from .imports import import_file

__all__ = ["add_import_argument", "add_own_arguments", "register_own", "take_overrides"]


def add_own_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options ``--register-coco``, ``--register-voc`` and ``--import``, which can all be
    repeated."""
    parser.add_argument(
        "--register-coco",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "ANNOTATIONS.json", "IMAGE_DIR"),
        help="give a COCO-format data set a name to use in DATASETS.TRAIN and DATASETS.TEST; "
        "can be repeated, and a run's folder knows it from then on",
    )
    parser.add_argument(
        "--register-voc",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME FOLDER SPLIT", "CLASS"),
        help="the same for a folder with Annotations, ImageSets and JPEGImages, as Pascal VOC has "
        "them; without classes, VOC's 20 if there are no others, else those that occur",
    )
    add_import_argument(parser)


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--import`` alone."""
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="imports",
        metavar="FILE.py",
        help="run a Python file of your own first, which registers sample weighters or data sets; "
        "can be repeated",
    )


def take_overrides(args: argparse.Namespace) -> None:
    """Give ``KEY VALUE`` that argparse has taken for classes after ``--register-voc`` back to
    ``args.opts``, in place."""
    cfg = get_cfg()
    add_swn_config(cfg)
    for words in args.register_voc:
        for i, word in enumerate(words[3:], start=3):
            section, dot, _ = word.partition(".")
            if section in cfg and isinstance(cfg[section], CfgNode) == bool(dot):
                args.opts[:0] = words[i:]
                del words[i:]
                break


def register_own(args: argparse.Namespace) -> None:
    """Import and register what the options of :func:`add_own_arguments` name; call it in every
    process. Doing so twice does no harm.

    Classes that were looked up are added to ``args``, so that processes that are started with them
    need not look again.

    Raises:
        UserError: a file or a folder is missing, a name is taken, or a Python file fails.
    """
    for file in args.imports:
        import_file(file)
    for name, json_file, image_dir in args.register_coco:
        register_coco(name, json_file, image_dir)
    for words in args.register_voc:
        _register_voc(words)


def _register_voc(words: list[str]) -> None:
    if len(words) < 3 or not words[0]:
        raise UserError(
            f"--register-voc {' '.join(words)}: give a name, a folder and a split, like "
            "--register-voc cells_train cells train."
        )
    name, folder, split, *classes = words
    for word in classes:
        if os.path.isfile(os.path.join(word, "config.yaml")):  # a run, as many tools take
            raise UserError(
                f"--register-voc {name} takes {word} for a class; put it before this option, or -- "
                "between the two."
            )
    find_voc_listing(name, folder, split)
    if not classes:
        classes = find_voc_classes(folder)
        words += classes
        print(
            f"{name}: {len(classes)} classes, found in {folder}: {', '.join(classes)}. To choose "
            "them, and their order, give them after the split.",
            flush=True,
        )
    register_voc(name, folder, split, classes)
