"""A COCO-format data set in two parts that follow from the names of its pictures."""

import hashlib
import json
import math
import os
from collections import Counter
from pathlib import Path

from swn_d2.errors import UserError
from swn_d2.files import check_outputs, write_new

from .checks.coco import read_coco
from .checks.pictures import picture_fault
from .voc_folder import read_voc_folder

__all__ = ["part_of", "split_dataset", "split_pictures"]


def part_of(file_name: str, *, with_folder: bool = False) -> float:
    """A number in [0, 1), in steps of 0.001, that follows from the name of a picture, without its
    folder unless that is asked for, and from nothing else."""
    path = Path(file_name)
    name = path.as_posix() if with_folder else path.name
    digest = int(hashlib.sha256(name.encode()).hexdigest(), 16)
    # Not the last three digits, which tell the parts of make_voc_subset: those can be split, too.
    return digest // 1000 % 1000 / 1000


def split_dataset(
    source: str | os.PathLike,
    first: str | os.PathLike,
    second: str | os.PathLike,
    *,
    share: float = 0.5,
) -> tuple[int, int]:
    """Split an annotation file in two: which pictures are in which part follows from their names.

    The pictures of the first part with a small share are in it with a larger share, too. The same
    request gives the same files, byte for byte; files that hold it already are kept.

    Args:
        source: an annotation file in COCO's instances format.
        first: gets the pictures whose :func:`part_of` is below ``share``, their annotations, and
            all else that ``source`` has. A picture's name is that of its file without the folder,
            so that a folder may be moved; with it only if another one is called alike.
        second: gets the others.
        share: in (0, 1), about the share of the pictures that are in the first part.

    Returns:
        How many pictures are in the first part, and how many in the second.

    Raises:
        UserError: the share is out of range, ``source`` can't be trained on, a part would have no
            picture, or a file can't be written, or exists and is not, byte for byte, what would be
            written. No file is written then.
    """
    files = _outputs(source, first, second, share)
    return _write_parts(source, read_coco(str(source)), files, share)


def split_pictures(
    source: str | os.PathLike,
    images: str | os.PathLike,
    first: str | os.PathLike,
    second: str | os.PathLike,
    *,
    share: float = 0.8,
) -> dict[str, str]:
    """As :func:`split_dataset`, of the pictures that can be read, and also of annotations in Pascal
    VOC's format. Where an annotation has no ``area`` or ``iscrowd``, which COCO's evaluation needs,
    it gets that of its box, and 0.

    Args:
        source: an annotation file in COCO's instances format, or a folder of Pascal VOC's XML
            files.
        images: the folder of the pictures.

    Returns:
        Picture that can't be read -> why. It is in neither part.

    Raises:
        UserError: as there; or no picture can be read.
    """
    files = _outputs(source, first, second, share)
    if os.path.isdir(source):
        content = read_voc_folder(Path(source), Path(images))
    else:
        content = read_coco(str(source))
    # Which COCO's evaluation of the second part needs, and few tools leave out.
    content["annotations"] = [
        {**annotation, "area": annotation.get("area", math.prod(annotation["bbox"][2:]))}
        | {"iscrowd": annotation.get("iscrowd", 0)}
        for annotation in content["annotations"]
    ]
    faults = {}
    for image in content["images"]:
        if fault := picture_fault(os.path.join(images, image["file_name"])):
            faults[image["file_name"]] = fault
    usable = [image for image in content["images"] if image["file_name"] not in faults]
    if not usable:
        picture, fault = next(iter(faults.items()))
        raise UserError(
            f"None of the {len(content['images'])} pictures that {source} names can be read in the "
            f"folder {images}; the first is {picture}: {fault}."
        )
    _write_parts(source, _part(content, usable), files, share)
    return faults


def _outputs(source, first, second, share) -> list[Path]:
    if not 0 < share < 1:  # NaN, too
        raise UserError(f"The share must be above 0 and below 1, not {share}.")
    files = [Path(first), Path(second)]
    check_outputs(Path(source), files)
    return files


def _write_parts(source, content: dict, files: list[Path], share: float) -> tuple[int, int]:
    parts = ([], [])
    number = Counter(Path(image["file_name"]).name for image in content["images"])
    for image in content["images"]:
        name = image["file_name"]
        with_folder = number[Path(name).name] > 1
        parts[part_of(name, with_folder=with_folder) >= share].append(image)
    for name, images, remedy in zip(("first", "second"), parts, ("larger", "smaller"), strict=True):
        if not images:
            raise UserError(
                f"With the share {share}, none of the {len(content['images'])} pictures of "
                f"{source} is in the {name} part; give a {remedy} share."
            )
    texts = [json.dumps(_part(content, images)) for images in parts]
    write_new(dict(zip(files, texts, strict=True)))
    return len(parts[0]), len(parts[1])


def _part(content: dict, images: list[dict]) -> dict:
    ids = {image["id"] for image in images}
    annotations = [a for a in content["annotations"] if a["image_id"] in ids]
    return {**content, "images": images, "annotations": annotations}
