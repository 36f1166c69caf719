"""Whether a COCO-format data set is whole: its file, the entries in it, and the images."""

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode, get_cfg
from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager

from swn_d2.errors import UserError
from swn_d2.files import read_json

from .annotations import check_annotations
from .checked import Checked
from .pictures import check_files_exist, check_picture_size
from .sampling import sample

__all__ = ["check_coco", "check_pictures", "read_coco"]

#: Key of an entry -> what its value must be. Others are checked where they are used.
_TYPES = {
    **dict.fromkeys(("id", "image_id", "category_id"), ((int, float, str), "a number or a text")),
    "file_name": ((str,), "a text"),
    "name": ((str,), "a text"),
}


def check_coco(cfg: CfgNode, metadata: Metadata, *, is_train: bool, is_test: bool) -> Checked:
    """Check a COCO-format data set: its annotation file, the images and the annotations.

    Args:
        cfg: a complete Detectron2 config.
        metadata: of the data set, with ``name``, ``json_file`` and ``image_root``.
        is_train: the data set is trained on.
        is_test: the data set is evaluated on.

    Raises:
        UserError: the first mistake.
    """
    file = metadata.json_file
    if not PathManager.isfile(file):
        raise UserError(_no_file(metadata.name, file))
    with _wrong_types_told(file):
        content = read_json(file)
        _check_sections(file, content, is_train)
        if is_test:
            _check_ids_are_kept(file, content)
        _check_sizes(file, content["images"], are_whole=cfg.MODEL.MASK_ON and is_test)
        check_pictures(file, metadata.image_root, content["images"])
        lacks = {}
        if "annotations" in content:
            _check_annotation_entries(cfg, file, content, is_test)
            lacks = check_annotations(cfg, file, content, is_train=is_train, is_test=is_test)
        classes = [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])]
        return Checked(classes, lacks)


def read_coco(file: str) -> dict:
    """Read an annotation file that is good for training a detector without masks.

    The pictures are not looked at.

    Returns:
        Its content: ``images``, ``categories``, ``annotations`` and what else it has.

    Raises:
        UserError: the first mistake.
    """
    if not PathManager.isfile(file):
        raise UserError(f"There is no annotation file {file}.")
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NAME = "SWNROIHeads"  # a detector that looks at a sample_weight
    with _wrong_types_told(file):
        content = read_json(file)
        _check_sections(file, content, is_train=True)
        _check_sizes(file, content["images"], are_whole=False)
        _check_annotation_entries(cfg, file, content, is_test=False)
        lacks = check_annotations(cfg, file, content, is_train=True, is_test=False)
    if lacks:
        raise UserError(next(iter(lacks.values())))
    return content


@contextmanager
def _wrong_types_told(file: str):
    try:
        yield
    except (TypeError, AttributeError) as error:  # a number for a name, a list for an id
        raise UserError(f"{file} has a value of the wrong type: {error}.") from error


def _no_file(name: str, file: str) -> str:
    remedy = (
        f"Make it with: python tools/make_digit_scenes.py --output {Path(file).parents[1]}"
        if name.startswith("digit_scenes_")
        else "Put it there, or point the environment variable DETECTRON2_DATASETS to the "
        "folder of your data sets."
    )
    return f"Data set {name}: there is no annotation file {file}. {remedy}"


def _check_sections(file: str, content: object, is_train: bool) -> None:
    # A test set may come without annotations: Detectron2 then writes predictions only.
    sections = ["images", "categories"] + (["annotations"] if is_train else [])
    missing = [f'"{s}"' for s in sections if not (isinstance(content, dict) and s in content)]
    if missing:
        raise UserError(
            f"{file} is not in COCO format: it has no {', '.join(missing)}. Export the annotations "
            "as COCO instances."
        )
    _check_entries(file, content, "categories", ("id", "name"))
    _check_entries(file, content, "images", ("id", "file_name", "width", "height"))
    for section in ("categories", "images"):
        if not content[section]:
            raise UserError(f'{file}: "{section}" is empty.')
        _check_unique_ids(file, content, section)


def _check_annotation_entries(cfg: CfgNode, file: str, content: dict, is_test: bool) -> None:
    needed = ["id", "image_id", "category_id", "bbox"]
    needed += ["segmentation"] if cfg.MODEL.MASK_ON else []
    # The COCO evaluation stops without these.
    needed += ["area", "iscrowd"] if is_test else []
    needed += ["num_keypoints"] if is_test and cfg.MODEL.KEYPOINT_ON else []
    _check_entries(file, content, "annotations", needed)
    if "minival" not in os.path.basename(file):  # of COCO 2014, known to repeat some ids
        _check_unique_ids(file, content, "annotations")


def _check_entries(file: str, content: dict, section: str, needed: Iterable[str]) -> None:
    """The section must be a list of objects that have the ``needed`` keys."""
    entries = content[section]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f'{file} is not in COCO format: "{section}" is not a list of objects.')
    for key in needed:
        types, wanted = _TYPES.get(key, ((object,), ""))
        lacking = [i for i, entry in enumerate(entries) if key not in entry]
        what = f'no "{key}"'
        if not lacking:
            lacking = [i for i, entry in enumerate(entries) if not isinstance(entry[key], types)]
            what = f'a "{key}" that is not {wanted}'
        if lacking:
            first = entries[lacking[0]]
            which = f"number {lacking[0] + 1} in the list"
            if "id" in first and key != "id":
                which = f"id {first['id']}"
            raise UserError(
                f'{file}: {len(lacking)} of {len(entries)} entries in "{section}" have {what}; the '
                f"first is {which}."
            )


def _check_unique_ids(file: str, content: dict, section: str) -> None:
    counts = Counter(entry["id"] for entry in content[section])
    repeated = [entry_id for entry_id, count in counts.items() if count > 1]
    if repeated:
        raise UserError(
            f'{file}: {len(repeated)} ids occur more than once in "{section}"; the first is '
            f"{repeated[0]}."
        )


def _check_ids_are_kept(file: str, content: dict) -> None:
    """The evaluation has ids sorted by numpy, which rounds whole numbers of other sizes than an
    int64 has where they are mixed with smaller ones; nothing is found then of what has them."""
    for section in ("images", "categories"):
        ids = [entry["id"] for entry in content[section]]
        kept = set(np.unique(ids).tolist())
        lost = [entry_id for entry_id in ids if entry_id not in kept]
        if lost:
            raise UserError(
                f'{file}: {len(lost)} ids in "{section}" are not kept by COCO\'s evaluation, which '
                f"would find nothing there; the first is {lost[0]!r}. Give whole numbers below "
                "2^63, or texts, throughout."
            )


def _check_sizes(file: str, images: list[dict], *, are_whole: bool) -> None:
    """A mask of what is detected is made with as many pixels as a picture has, by these numbers."""
    types, what = (int, "whole numbers") if are_whole else ((int, float), "numbers")
    for image in images:
        size = image["width"], image["height"]
        if not all(isinstance(side, types) and side > 0 for side in size):
            raise UserError(
                f"{file}: image {image['id']} has width {size[0]!r} and height {size[1]!r}; "
                f"both must be positive {what} of pixels."
            )


def check_pictures(
    file: str, image_root: str, images: list[dict], *, open_all: bool = False
) -> None:
    """Check that every picture exists, and those that are opened have the size that ``file`` says.

    Args:
        file: the annotation file, for messages.
        image_root: the folder of the pictures.
        images: the entries of that file.
        open_all: and not only some of them, evenly spread.

    Raises:
        UserError: how many are missing, or the first that is not as it should be.
    """
    paths = [os.path.join(image_root, image["file_name"]) for image in images]
    check_files_exist(file, paths)
    entries = list(zip(paths, images, strict=True))
    for path, image in entries if open_all else sample(entries):
        size = image["width"], image["height"]
        check_picture_size(path, size, f"image {image['id']} of {file}")
