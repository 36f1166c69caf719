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
from pycocotools import mask as coco_mask

from swn_d2.errors import UserError

from .voc import VOC_EVALUATOR_TYPE, VOCAnnotation, read_voc_annotation

__all__ = ["check_datasets"]

logger = logging.getLogger(__name__)

# Pictures opened, and masks decoded: about a quarter of a second each, and enough to see a
# systematic mistake.
MAX_DECODED = 1000
EXIF_ORIENTATION = 0x0112
VALID_POLYGON = "three or more points, x and y of each"


def check_datasets(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Check every data set in ``cfg.DATASETS.TRAIN`` and ``TEST`` that has a format we know.

    COCO-format data: the annotation file and its entries, that every image exists, the size of up
    to 1000 images, the boxes, the masks (up to 1000 of the compressed ones are decoded), and the
    number of categories. Pascal VOC: the files, what the annotations say, the size of up to 1000
    images, and the number of categories. What Detectron2 drops or clips, boxes without area or
    beyond the border and polygons of too few points, is only counted in a warning. Nothing is
    reported when all is well.

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
        elif kind in ("pascal_voc", VOC_EVALUATOR_TYPE):
            classes = _check_voc(cfg, metadata, name in train, name in cfg.DATASETS.TEST)
        elif name in cfg.DATASETS.TEST:
            raise UserError(
                f"DATASETS.TEST has {name}, whose evaluator type is {kind!r}; swn_d2 evaluates "
                f"data sets of the types coco, pascal_voc and {VOC_EVALUATOR_TYPE}."
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


def _check_voc(cfg: CfgNode, metadata: Metadata, is_train: bool, is_test: bool) -> list[str]:
    """The categories of a Pascal VOC data set in which no mistake was found."""
    root = Path(metadata.dirname)
    listing = root / "ImageSets" / "Main" / f"{metadata.split}.txt"
    if not listing.is_file():
        raise UserError(f"Data set {metadata.name}: there is no file {listing}.")
    ids = listing.read_text().split()
    if len(ids) < 2:
        number = "only one" if ids else "no"
        raise UserError(
            f"Data set {metadata.name}: {listing} names {number} image; Detectron2 needs two."
        )
    repeated = [image_id for image_id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(f"{listing} names {repeated[0]} more than once.")
    if is_train and cfg.MODEL.MASK_ON:
        raise UserError(
            f"Data set {metadata.name} has no masks to train on; add the override MODEL.MASK_ON "
            "False."
        )
    files = [root / "Annotations" / f"{image_id}.xml" for image_id in ids]
    pictures = [root / "JPEGImages" / f"{image_id}.jpg" for image_id in ids]
    _check_files_exist(listing, files)
    _check_files_exist(listing, pictures)
    classes = list(metadata.thing_classes)
    annotations = [read_voc_annotation(str(f), classes, is_evaluated=is_test) for f in files]
    for i in _spread(len(ids)):
        size = annotations[i].width, annotations[i].height
        _check_picture_size(str(pictures[i]), size, str(files[i]))
    _check_objects_remain(metadata, listing, annotations, is_train, is_test)
    return classes


def _check_objects_remain(
    metadata: Metadata,
    listing: Path,
    annotations: list[VOCAnnotation],
    is_train: bool,
    is_test: bool,
) -> None:
    are_difficult = [flag for annotation in annotations for flag in annotation.difficult]
    trains_on_difficult = metadata.evaluator_type == "pascal_voc"
    lacks_training = is_train and not (are_difficult and trains_on_difficult)
    if (lacks_training or is_test) and all(are_difficult):
        raise UserError(
            f"{listing} names {len(annotations)} images, whose annotations have "
            f"{len(are_difficult)} objects, all of them difficult; those do not count."
            if are_difficult
            else f"{listing} names {len(annotations)} images, none of which has an object."
        )


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
        needed = ["id", "image_id", "category_id", "bbox"]
        needed += ["segmentation"] if cfg.MODEL.MASK_ON else []
        needed += ["area", "iscrowd"] if is_test else []  # the COCO evaluation stops without them
        _check_entries(file, content, "annotations", needed)
        if "minival" not in os.path.basename(file):  # of COCO 2014, known to repeat some ids
            _check_unique_ids(file, content, "annotations")
        _check_annotations(cfg, file, content, is_train, is_test)
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
    for i in _spread(len(images)):
        size = images[i]["width"], images[i]["height"]
        _check_picture_size(paths[i], size, f"image {images[i]['id']} of {file}")


def _spread(number: int) -> range:
    """The indices of at most ``MAX_DECODED`` of that many items, evenly spread."""
    return range(0, number, max(math.ceil(number / MAX_DECODED), 1))


def _check_picture_size(path: str, expected: tuple[int, int], source: str) -> None:
    """The picture must have the (width, height) that ``source`` says."""
    try:
        with PathManager.open(path, "rb") as stream, Image.open(stream) as picture:
            size = _upright_size(picture)
    except OSError as error:
        raise UserError(f"Cannot read {path}, {source}: {error}.") from None
    if size != expected:
        raise UserError(
            f"{path} is {size[0]}x{size[1]} pixels, but {source} says {expected[0]}x{expected[1]}. "
            "Correct width and height, or put the original there."
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


def _check_annotations(
    cfg: CfgNode, file: str, content: dict, is_train: bool, is_test: bool
) -> None:
    images = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    masks = MaskUse(cfg, is_train, is_test)
    faults = defaultdict(list)
    without_area = overhanging = untraced = left_out = crowds = 0
    for annotation in content["annotations"]:
        fault = (
            _reference_fault(annotation, images, categories)
            or _box_fault(annotation["bbox"], *images[annotation["image_id"]])
            or _mask_fault(annotation, *images[annotation["image_id"]], masks)
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
        invalid_polygons, polygons = _count_polygons(annotation)
        untraced += invalid_polygons
        if annotation.get("iscrowd", 0):
            crowds += 1
        elif polygons and invalid_polygons == polygons:
            left_out += 1
    if masks.are_on and not faults:
        _add_undecodable(faults, content["annotations"])
    if faults:
        raise UserError(f"{file} has {'; '.join(starmap(_describe, faults.items()))}.")
    if is_train and crowds + left_out == len(content["annotations"]):
        raise UserError(
            f"{file} has no annotation to train on: of {len(content['annotations'])}, {crowds} are "
            f"crowd regions and {left_out} have no polygon of {VALID_POLYGON}."
        )
    if without_area or overhanging:
        logger.warning(
            f"{file}: {without_area} boxes have no area and {overhanging} reach more than a pixel "
            "beyond the image; Detectron2 drops the former and clips the latter in training."
        )
    if is_train and untraced:
        logger.warning(
            f"{file}: {untraced} polygons do not have {VALID_POLYGON}; Detectron2 drops them in "
            f"training, and {left_out} objects that have no other polygon with them."
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


class MaskUse:
    """What a run does with the masks of a data set."""

    def __init__(self, cfg: CfgNode, is_train: bool, is_test: bool):
        self.are_on = cfg.MODEL.MASK_ON
        self.are_evaluated = self.are_on and is_test
        self.must_be_polygons = self.are_on and is_train and cfg.INPUT.MASK_FORMAT == "polygon"


def _mask_fault(annotation: dict, image_width: int, image_height: int, use: MaskUse) -> str | None:
    mask, is_crowd = annotation.get("segmentation"), annotation.get("iscrowd", 0)
    if not mask:
        is_read = use.are_evaluated if is_crowd else use.are_on
        return "an empty segmentation (trace the object, or take it out)" if is_read else None
    if isinstance(mask, dict):
        if use.must_be_polygons and not is_crowd:
            return "a run-length mask (add the override INPUT.MASK_FORMAT bitmask)"
        return _run_length_fault(mask, image_width, image_height, use.are_on and not is_crowd)
    return _polygons_fault(mask, use)


def _run_length_fault(mask: dict, width: int, height: int, is_read: bool) -> str | None:
    # Detectron2 stops at these even where it does not use masks.
    size, counts = mask.get("size"), mask.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) for n in size)):
        return 'a run-length mask whose "size" is not [height, width]'
    if not isinstance(counts, str) and not (
        isinstance(counts, list) and all(isinstance(n, int) and n >= 0 for n in counts)
    ):
        return 'a run-length mask whose "counts" are neither text nor a list of whole numbers'
    if not is_read:
        return None
    if size != [height, width]:
        return 'a run-length mask whose "size" is not the [height, width] of its image'
    # pycocotools writes beyond its memory where the runs are longer.
    if isinstance(counts, list) and sum(counts) != height * width:
        return 'a run-length mask whose "counts" do not add up to the pixels of its image'
    return None


def _add_undecodable(faults: dict[str, list[dict]], annotations: list[dict]) -> None:
    compressed = [
        annotation
        for annotation in annotations
        if isinstance(annotation["segmentation"], dict)
        and isinstance(annotation["segmentation"]["counts"], str)
        and not annotation.get("iscrowd", 0)
    ]
    for i in _spread(len(compressed)):
        try:
            coco_mask.decode(compressed[i]["segmentation"])
        except ValueError:
            faults["a run-length mask that can't be decoded (encode it again)"].append(
                compressed[i]
            )


def _polygons_fault(polygons: object, use: MaskUse) -> str | None:
    if not isinstance(polygons, list) or not all(isinstance(p, list) for p in polygons):
        return (
            "a segmentation that is not a list of polygons (COCO wants [[x1, y1, x2, y2, ...], "
            "...], even for one)"
        )
    if use.are_on and not all(map(_are_finite, polygons)):
        return "a polygon that is not a list of finite numbers (COCO wants [x1, y1, x2, y2, ...])"
    # pycocotools tells by the first what the others are.
    if use.are_evaluated and len(polygons[0]) < 5:
        return f"a first polygon without {VALID_POLYGON}, which ends the evaluation (take it out)"
    return None


def _are_finite(numbers: list) -> bool:
    try:
        return math.isfinite(sum(numbers))
    except TypeError:
        return False


def _count_polygons(annotation: dict) -> tuple[int, int]:
    """How many of an annotation's polygons Detectron2 drops, and how many there are."""
    polygons = annotation.get("segmentation")
    if not isinstance(polygons, list):
        return 0, 0
    return sum(len(p) < 6 or len(p) % 2 == 1 for p in polygons), len(polygons)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
