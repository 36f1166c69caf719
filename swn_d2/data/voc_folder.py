"""A folder of Pascal VOC's annotation files, as content in COCO's format.

That is how such annotations mostly come along: one XML file for each picture, without the lists of
splits that VOC's own layout has, and in folders of any name.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath

from PIL import Image

from swn_d2.errors import UserError

from .voc import VOCObject, read_voc_annotation

__all__ = ["read_voc_folder"]


def read_voc_folder(annotations: Path, images: Path) -> dict:
    """Read all XML files of a folder.

    An XML file is of the picture that has its name, whatever the ending. Where there is none, or
    more than one, it is of the picture that it names, whether that exists or not.

    Args:
        annotations: the folder of the XML files.
        images: the folder of the pictures, which may be the same.

    Returns:
        ``images``, ``annotations`` and ``categories``. Ids count from 1, in the order of the files'
        names; the categories are the classes that occur, sorted. Difficult objects have
        ``iscrowd`` 1.

    Raises:
        UserError: there is no such folder, no XML file or no object; or one can't be used.
    """
    if not images.is_dir():
        raise UserError(f"There is no image folder {images}.")
    files = sorted(annotations.glob("*.xml"))
    if not files:
        raise UserError(
            f"There is no XML file in the folder {annotations}; give the folder that has them, or "
            "an annotation file in COCO's format."
        )
    pictures = _pictures_by_name(images)
    read = [read_voc_annotation(str(file), None) for file in files]
    classes = sorted({its_object.name for annotation in read for its_object in annotation.objects})
    if not classes:
        raise UserError(f"None of the {len(files)} XML files in {annotations} has an object.")
    content = {"images": [], "annotations": [], "categories": []}
    for image_id, (file, annotation) in enumerate(zip(files, read, strict=True), start=1):
        content["images"].append(
            {
                "id": image_id,
                "file_name": _picture_of(file, annotation.file_name, pictures),
                "width": annotation.width,
                "height": annotation.height,
            }
        )
        for its_object in annotation.objects:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": classes.index(its_object.name) + 1,
                    **_box_and_area(its_object),
                    "iscrowd": int(its_object.is_difficult),
                }
            )
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    return content


def _pictures_by_name(images: Path) -> Mapping[str, list[str]]:
    """Name without ending -> the names of the pictures."""
    endings = Image.registered_extensions()
    pictures = defaultdict(list)
    for file in images.iterdir():
        if file.suffix.lower() in endings:
            pictures[file.stem].append(file.name)
    return pictures


def _picture_of(file: Path, named: str | None, pictures: Mapping[str, list[str]]) -> str:
    found = pictures.get(file.stem, [])
    # Some tools write a path, of either kind of system.
    named = PureWindowsPath(named or "").name or f"{file.stem}.jpg"
    return found[0] if len(found) == 1 else named


def _box_and_area(its_object: VOCObject) -> dict:
    """COCO's ``bbox`` and ``area``, whose pixels count from 0."""
    xmin, ymin, xmax, ymax = its_object.box
    x, y = max(xmin - 1, 0), max(ymin - 1, 0)  # some tools count from 0 in VOC's format, too
    return {"bbox": [x, y, xmax - x, ymax - y], "area": (xmax - x) * (ymax - y)}
