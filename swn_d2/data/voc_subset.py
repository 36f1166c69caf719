"""The pictures of the experiments: small ones of Pascal VOC 2007, as COCO files, in three parts."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

from detectron2.config import get_cfg
from detectron2.data import Metadata
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from PIL import Image

from swn_d2.errors import UserError
from swn_d2.files import write_text

from .checks.pictures import check_picture_size
from .checks.voc import check_voc
from .voc import VOC_EVALUATOR_TYPE, load_voc

__all__ = ["make_voc_subset", "voc_part_of"]

SPLIT = "test"  # the official one, which is there to be split
SHORTER_SIDE = 320  # pixels
QUALITY = 85  # of the JPEG files
#: Part -> where it ends in the numbers 0 to 999 that the names of the pictures give.
PARTS = {"train": 450, "val": 690, "held_out": 1000}


def voc_part_of(file_name: str) -> str:
    """The part, a key of ``PARTS``, in which a picture is: it follows from its name, such as
    ``000001.jpg``, and from nothing else."""
    number = int(hashlib.sha256(file_name.encode()).hexdigest(), 16) % 1000
    return next(part for part, end in PARTS.items() if number < end)


def make_voc_subset(source: str | os.PathLike, output: str | os.PathLike) -> dict[str, int]:
    """Write the pictures of VOC 2007's test set, made small, and their annotations.

    Every picture gets a shorter side of 320 pixels, and so do the few whose shorter side is
    smaller. Boxes are scaled with them, to hundredths of a pixel. Difficult objects have
    ``iscrowd`` 1. The ids of images are the numbers in their names, those of annotations count
    all objects of the test set, in the order of its list.

    Args:
        source: the official folder ``VOC2007``, with ``Annotations``, ``ImageSets`` and
            ``JPEGImages``.
        output: the new folder, which gets ``train.json``, ``val.json``, ``held_out.json`` and
            ``images``. It appears when it is complete.

    Returns:
        Part -> how many pictures it has.

    Raises:
        UserError: ``output`` exists or can't be written; ``source`` is not in VOC's layout, or a
            picture or an annotation file is missing or can't be read.
    """
    source, output = Path(source), Path(output)
    if os.path.lexists(output):
        raise UserError(f"{output} exists already; remove it, or give another name.")
    records = _read(source)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{output.name}-unfinished-"
        with tempfile.TemporaryDirectory(prefix=prefix, dir=output.parent) as folder:
            unfinished = Path(folder, output.name)
            numbers = _write(records, unfinished)
            unfinished.rename(output)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}.") from error
    return numbers


def _read(source: Path) -> list[dict]:
    """The dataset dicts of the test set, checked as before an evaluation."""
    listing = Path("ImageSets", "Main", f"{SPLIT}.txt")
    for path in ("Annotations", "JPEGImages", listing):
        if not (source / path).exists():
            raise UserError(
                f"{source} is not the folder VOC2007 with the official test set: it has no {path}; "
                "unpack the archive of the test set, and give the folder VOC2007 in it."
            )
    metadata = Metadata(
        name="VOC2007",
        dirname=str(source),
        split=SPLIT,
        thing_classes=CLASS_NAMES,
        evaluator_type=VOC_EVALUATOR_TYPE,
    )
    check_voc(get_cfg(), metadata, is_train=False, is_test=False)
    records = load_voc(str(source), SPLIT, CLASS_NAMES)
    for record in records:
        if not (record["image_id"].isascii() and record["image_id"].isdigit()):
            raise UserError(
                f"{source / listing} names {record['image_id']}, but the names of VOC 2007's "
                "pictures are numbers; give the official list."
            )
    return records


def _write(records: list[dict], root: Path) -> dict[str, int]:
    (root / "images").mkdir(parents=True)
    images = {part: [] for part in PARTS}
    annotations = {part: [] for part in PARTS}
    annotation_id = 0
    for record in records:
        name = f"{record['image_id']}.jpg"
        part = voc_part_of(name)
        size = _write_picture(record, root / "images" / name)
        images[part].append(
            {
                "id": int(record["image_id"]),
                "file_name": name,
                "width": size[0],
                "height": size[1],
            }
        )
        for annotation in record["annotations"]:
            annotation_id += 1
            annotations[part].append(
                {
                    "id": annotation_id,
                    "image_id": int(record["image_id"]),
                    "category_id": annotation["category_id"] + 1,
                    **_box_and_area(annotation["bbox"], record, size),
                    "iscrowd": annotation["iscrowd"],
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, start=1)]
    for part in PARTS:
        content = {
            "images": images[part],
            "annotations": annotations[part],
            "categories": categories,
        }
        write_text(root / f"{part}.json", json.dumps(content, separators=(",", ":")))
    return {part: len(images[part]) for part in PARTS}


def _write_picture(record: dict, file: Path) -> tuple[int, int]:
    """Write a small copy of a picture, and return its width and height in pixels."""
    original = record["width"], record["height"]
    check_picture_size(record["file_name"], original, f"the annotation of {record['image_id']}")
    size = tuple(round(side * SHORTER_SIDE / min(original)) for side in original)
    try:
        with Image.open(record["file_name"]) as picture:
            small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    except OSError as error:
        raise UserError(
            f"{record['file_name']} is damaged ({error}); unpack the archive again."
        ) from error
    small.save(file, quality=QUALITY)
    return size


def _box_and_area(box: list[float], record: dict, size: tuple[int, int]) -> dict:
    """COCO's ``bbox`` and ``area`` in a picture of another size.

    Args:
        box: x0, y0, x1, y1 in the original; the last pixels belong to it.
        record: has the original's ``width`` and ``height``.
        size: width and height of the small picture.
    """
    scale_x, scale_y = size[0] / record["width"], size[1] / record["height"]
    x0, y0, x1, y1 = box
    sides = [x0 * scale_x, y0 * scale_y, (x1 - x0) * scale_x, (y1 - y0) * scale_y]
    bbox = [round(side, 2) for side in sides]
    return {"bbox": bbox, "area": round(bbox[2] * bbox[3], 2)}
