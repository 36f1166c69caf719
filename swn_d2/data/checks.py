"""Checks of the data sets that a config names, made before any training time is spent."""

import difflib
import json
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import starmap
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.utils.file_io import PathManager
from PIL import Image

from swn_d2.errors import UserError

__all__ = ["check_datasets"]

logger = logging.getLogger(__name__)

MAX_PICTURES_OPENED = 1000  # about a quarter of a second, and enough to see a systematic mistake
EXIF_ORIENTATION = 0x0112


def check_datasets(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Check every data set in ``cfg.DATASETS.TRAIN`` and ``TEST`` that has a format we know.

    COCO-format data: the annotation file and its entries, that every image exists, the size of up
    to 1000 images, the boxes, and the number of categories. Pascal VOC: that the files exist, and
    the number of categories. Boxes without area or beyond the border, which Detectron2 drops and
    clips, are only counted in one warning. Nothing is reported when all is well.

    Args:
        cfg: a complete Detectron2 config.
        eval_only: leave out ``DATASETS.TRAIN``.

    Raises:
        UserError: the first mistake, with the file and the ids of images and annotations.
    """
    train = () if eval_only else cfg.DATASETS.TRAIN
    categories = {}
    for name in dict.fromkeys((*train, *cfg.DATASETS.TEST)):
        if name not in DatasetCatalog:
            raise UserError(_unknown_name(name))
        metadata = MetadataCatalog.get(name)
        kind = metadata.get("evaluator_type")
        if kind == "coco":
            try:
                classes = _check_coco(cfg, metadata, name in train, name in cfg.DATASETS.TEST)
            except (TypeError, AttributeError) as error:  # a number for a name, a list for an id
                raise UserError(
                    f"{metadata.json_file} has a value of the wrong type: {error}."
                ) from error
        elif kind == "pascal_voc":
            classes = _check_voc(metadata)
        elif name in cfg.DATASETS.TEST:
            raise UserError(
                f"DATASETS.TEST has {name}, whose evaluator type is {kind!r}; swn_d2 evaluates "
                "data sets of the types coco and pascal_voc."
            )
        else:
            continue
        _check_num_classes(cfg, name, len(classes))
        categories[name] = classes
    _check_same_categories(categories)


def _unknown_name(name: str) -> str:
    near = difflib.get_close_matches(name, DatasetCatalog.list())
    return (
        f"There is no data set named {name}. "
        + (f"Did you mean {' or '.join(near)}? " if near else "")
        + "Name your own data with --register-coco NAME ANNOTATIONS.json IMAGE_DIR."
    )


def _check_same_categories(categories: dict[str, list[str]]) -> None:
    """The n-th category must be the same everywhere: a detector knows it by n alone."""
    (first, expected), *others = categories.items() or [("", [])]
    for name, classes in others:
        for i, (a, b) in enumerate(zip(expected, classes, strict=True)):
            if a != b:
                raise UserError(
                    f"Data sets {first} and {name} differ in their categories: in the order of "
                    f"their ids, number {i + 1} is {a!r} in one and {b!r} in the other."
                )


def _check_num_classes(cfg: CfgNode, name: str, classes: int) -> None:
    if "RetinaNet" in cfg.MODEL.META_ARCHITECTURE:
        key, expected = "MODEL.RETINANET.NUM_CLASSES", cfg.MODEL.RETINANET.NUM_CLASSES
    elif "RCNN" in cfg.MODEL.META_ARCHITECTURE:
        key, expected = "MODEL.ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES
    else:
        return
    if classes != expected:
        raise UserError(
            f"Data set {name} has {classes} categories, but {key} is {expected}. "
            f"Add the override: {key} {classes}"
        )


def _check_voc(metadata: Metadata) -> list[str]:
    """The categories of a Pascal VOC data set whose files are all there."""
    root = Path(metadata.dirname)
    listing = root / "ImageSets" / "Main" / f"{metadata.split}.txt"
    if not listing.is_file():
        raise UserError(f"Data set {metadata.name}: there is no file {listing}.")
    ids = listing.read_text().split()
    if not ids:
        raise UserError(f"Data set {metadata.name}: {listing} names no image.")
    _check_files_exist(listing, [root / "Annotations" / f"{image_id}.xml" for image_id in ids])
    _check_files_exist(listing, [root / "JPEGImages" / f"{image_id}.jpg" for image_id in ids])
    return list(metadata.thing_classes)


def _check_coco(cfg: CfgNode, metadata: Metadata, is_train: bool, is_test: bool) -> list[str]:
    """The categories, by id, of a COCO-format data set in which no mistake was found."""
    file = metadata.json_file
    content = _read_json(metadata.name, file)
    # A test set may come without annotations: Detectron2 then writes predictions only.
    sections = ["images", "categories"] + (["annotations"] if is_train else [])
    missing = [s for s in sections if not (isinstance(content, dict) and s in content)]
    if missing:
        raise UserError(
            f"{file} is not in COCO format: it has no {_quoted(missing)}. Export the annotations "
            "as COCO instances."
        )
    _check_entries(file, content, "categories", ("id", "name"))
    _check_entries(file, content, "images", ("id", "file_name", "width", "height"))
    for section in ("categories", "images"):
        if not content[section]:
            raise UserError(f'{file}: "{section}" is empty.')
        _check_unique_ids(file, content, section)
    _check_images(file, metadata.image_root, content["images"])
    if "annotations" in content:
        masks = is_train and cfg.MODEL.MASK_ON
        needed = ["id", "image_id", "category_id", "bbox"]
        needed += ["segmentation"] if masks else []
        needed += ["area", "iscrowd"] if is_test else []  # the COCO evaluation stops without them
        _check_entries(file, content, "annotations", needed)
        if "minival" not in os.path.basename(file):  # of COCO 2014, known to repeat some ids
            _check_unique_ids(file, content, "annotations")
        _check_annotations(file, content, masks and cfg.INPUT.MASK_FORMAT == "polygon")
        if is_train and all(a.get("iscrowd", 0) for a in content["annotations"]):
            raise UserError(f"{file} has no annotation to train on (crowd regions do not count).")
    return [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])]


def _read_json(name: str, file: str) -> object:
    if not PathManager.isfile(file):
        remedy = (
            f"Make it with: python tools/make_digit_scenes.py --output {Path(file).parents[1]}"
            if name.startswith("digit_scenes_")
            else "Put it there, or point the environment variable DETECTRON2_DATASETS to the "
            "folder of your data sets."
        )
        raise UserError(f"Data set {name}: there is no annotation file {file}. {remedy}")
    try:
        with PathManager.open(file, "rb") as stream:
            return json.load(stream)
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}.") from None


def _check_entries(file: str, content: dict, section: str, needed: Iterable[str]) -> None:
    """The section must be a list of objects that have the ``needed`` keys."""
    entries = content[section]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f'{file} is not in COCO format: "{section}" is not a list of objects.')
    for key in needed:
        lacking = [i for i, entry in enumerate(entries) if key not in entry]
        if lacking:
            first = entries[lacking[0]]
            which = f"id {first['id']}" if "id" in first else f"number {lacking[0] + 1} in the list"
            raise UserError(
                f'{file}: {len(lacking)} of {len(entries)} entries in "{section}" have no '
                f'"{key}"; the first is {which}.'
            )


def _check_unique_ids(file: str, content: dict, section: str) -> None:
    counts = Counter(entry["id"] for entry in content[section])
    repeated = [entry_id for entry_id, count in counts.items() if count > 1]
    if repeated:
        raise UserError(
            f'{file}: {len(repeated)} ids occur more than once in "{section}"; the first is '
            f"{repeated[0]}."
        )


def _check_images(file: str, image_root: str, images: list[dict]) -> None:
    """Every picture must exist, and those that are opened must have the size that ``file`` says."""
    for image in images:
        size = image["width"], image["height"]
        if not all(isinstance(side, (int, float)) and side > 0 for side in size):
            raise UserError(
                f"{file}: image {image['id']} has width {size[0]!r} and height {size[1]!r}; "
                "both must be positive numbers of pixels."
            )
    paths = [os.path.join(image_root, image["file_name"]) for image in images]
    _check_files_exist(file, paths)
    step = math.ceil(len(images) / MAX_PICTURES_OPENED)
    for image, path in zip(images[::step], paths[::step], strict=True):
        try:
            with PathManager.open(path, "rb") as stream, Image.open(stream) as picture:
                size = _upright_size(picture)
        except OSError as error:
            raise UserError(
                f"Cannot read {path}, image {image['id']} of {file}: {error}."
            ) from None
        expected = image["width"], image["height"]
        if size != expected:
            raise UserError(
                f"{path} is {size[0]}x{size[1]} pixels, but image {image['id']} of {file} says "
                f"{expected[0]}x{expected[1]}. Correct width and height, or put the original there."
            )


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    """(width, height) as Detectron2 sees it, which is after the turn that EXIF asks for."""
    try:
        orientation = picture.getexif().get(EXIF_ORIENTATION)
    except Exception:  # malformed EXIF fails in many ways; Detectron2 ignores it, too
        orientation = None
    lies_on_its_side = orientation in (5, 6, 7, 8)
    return picture.size[::-1] if lies_on_its_side else picture.size


def _check_files_exist(listed_in: str | Path, paths: list[str | Path]) -> None:
    # One listing per folder is far quicker than one look per file on a network disk.
    by_folder = defaultdict(list)
    for path in paths:
        folder, name = os.path.split(path)
        by_folder[folder].append(name)
    missing = []
    for folder, names in by_folder.items():
        present = set(PathManager.ls(folder)) if PathManager.isdir(folder) else ()
        missing += [os.path.join(folder, name) for name in names if name not in present]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} files that {listed_in} names do not exist; the first "
            f"is {missing[0]}."
        )


def _check_annotations(file: str, content: dict, polygons_only: bool) -> None:
    images = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    faults = defaultdict(list)
    without_area = overhanging = 0
    for annotation in content["annotations"]:
        fault = (
            _reference_fault(annotation, images, categories)
            or _box_fault(annotation["bbox"], *images[annotation["image_id"]])
            or (polygons_only and _mask_fault(annotation))
        )
        if fault:
            faults[fault].append(annotation)
            continue
        x, y, width, height = annotation["bbox"]
        image_width, image_height = images[annotation["image_id"]]
        if width == 0 or height == 0:
            without_area += 1
        elif min(x, y) < -1 or x + width > image_width + 1 or y + height > image_height + 1:
            overhanging += 1
    if faults:
        raise UserError(f"{file} has {'; '.join(starmap(_describe, faults.items()))}.")
    if without_area or overhanging:
        logger.warning(
            f"{file}: {without_area} boxes have no area and {overhanging} reach more than a pixel "
            "beyond the image; Detectron2 drops the former and clips the latter in training."
        )


def _describe(fault: str, found: list[dict]) -> str:
    some = ", ".join(f"annotation {a['id']} of image {a['image_id']}" for a in found[:3])
    return f"{fault} ({len(found)} in all): {some}{' and others' if len(found) > 3 else ''}"


def _reference_fault(annotation: dict, images: dict, categories: set) -> str | None:
    if annotation["image_id"] not in images:
        return 'an image_id that is not in "images"'
    if annotation["category_id"] not in categories:
        return 'a category_id that is not in "categories"'
    return None


def _box_fault(box: object, image_width: int, image_height: int) -> str | None:
    try:
        x, y, width, height = box
        finite = math.isfinite(x + y + width + height)
    except (TypeError, ValueError):
        finite = False
    if not finite:
        return "a bbox that is not four finite numbers"
    if width < 0 or height < 0:
        return "a bbox of negative size (COCO wants x, y, width, height)"
    outside = x >= image_width or y >= image_height or x + width <= 0 or y + height <= 0
    # Boxes without area, stock COCO has a few, may touch the border; they are dropped anyway.
    if outside and width > 0 and height > 0:
        return "a bbox wholly outside its image"
    return None


def _mask_fault(annotation: dict) -> str | None:
    if isinstance(annotation["segmentation"], dict) and not annotation.get("iscrowd", 0):
        return "a run-length mask (add the override INPUT.MASK_FORMAT bitmask)"
    return None


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
