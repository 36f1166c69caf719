"""Pascal VOC with its difficult objects ignored, as the paper's toolbox has it.

VOC marks objects that are hard to recognise as "difficult". Detectron2's own ``voc_2007_test`` and
the like train on them; the data sets here, ``voc_2007_test_ignore_difficult`` and the like, mark
them as crowd, which Detectron2 leaves out of the training and the COCO evaluation counts neither
for nor against a detector.
"""

import contextlib
import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_voc_instances
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.utils.file_io import PathManager

from swn_d2.errors import UserError

from .datasets import SPLIT_HINT, Origin, forget_trouble

__all__ = [
    "VOC_EVALUATOR_TYPE",
    "VOCAnnotation",
    "VOCObject",
    "find_voc_classes",
    "find_voc_listing",
    "load_voc",
    "read_voc_annotation",
    "register_all_voc",
    "register_voc",
]

#: The ``evaluator_type`` of these data sets: COCO's AP beside VOC's.
VOC_EVALUATOR_TYPE = "pascal_voc_ignore_difficult"

SPLITS = {2007: ("train", "val", "trainval", "test"), 2012: ("train", "val", "trainval")}
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def register_all_voc() -> None:
    """Register ``voc_{2007,2012}_{train,val,trainval,test}_ignore_difficult``.

    They are read from ``VOC2007`` and ``VOC2012`` in ``$DETECTRON2_DATASETS``, which is
    ``datasets`` if it is not set; 2012 has no test split. No file is touched. Names that exist are
    kept.
    """
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    for year, splits in SPLITS.items():
        for split in splits:
            name = f"voc_{year}_{split}_ignore_difficult"
            if name not in DatasetCatalog:
                _register(name, os.path.join(root, f"VOC{year}"), split, CLASS_NAMES, year)


def register_voc(
    name: str,
    dirname: str,
    split: str,
    class_names: Sequence[str] = CLASS_NAMES,
    *,
    year: int = 2012,
    origin: Origin | None = None,
) -> None:
    """Register a data set in Pascal VOC's layout, its difficult objects ignored.

    No file is touched. Doing so twice does no harm.

    Args:
        name: the name for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        dirname: the folder that has ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        split: which list of images, ``ImageSets/Main/{split}.txt``.
        class_names: the classes, in the order of the detector's.
        year: whose definition of VOC's AP to evaluate with: 2007, at 11 points of the
            precision-recall curve, or 2012, the area under it.
        origin: by default, the folder as it is given here.

    Raises:
        UserError: the name belongs to another data set.
    """
    dirname = os.fspath(dirname)
    _register(name, dirname, split, class_names, year, origin=origin or Origin((dirname,)))


def _register(name, dirname, split, class_names, year, **more) -> None:
    description = {
        "thing_classes": list(class_names),
        "dirname": dirname,
        "year": year,
        "split": split,
        "evaluator_type": VOC_EVALUATOR_TYPE,
    }
    forget_trouble(name)
    metadata = MetadataCatalog.get(name)
    if name in DatasetCatalog:
        if any(metadata.get(key) != value for key, value in description.items()):
            raise UserError(f"The data set name {name} is already taken. Choose another.")
        return
    DatasetCatalog.register(name, partial(load_voc, dirname, split, class_names))
    metadata.set(**description, **more)


def find_voc_listing(name: str, dirname: str, split: str) -> Path:
    """The file that lists the images of a split.

    Args:
        name: of the data set, for the message.

    Raises:
        UserError: there is none.
    """
    listing = Path(dirname, "ImageSets", "Main", f"{split}.txt")
    if not listing.is_file():
        raise UserError(
            f"Data set {name}: there is no file {listing}, which has the names of the split's "
            "images, one in each line, without their ending. Without such lists, "
            f"{SPLIT_HINT}."
        )
    return listing


def find_voc_classes(dirname: str) -> list[str]:
    """The classes of a folder in Pascal VOC's layout: VOC's 20 if all objects are of those, else
    those that occur, sorted.

    All annotations of the folder are looked at, so that its splits have the same classes, whichever
    objects are in them. Files that can't be read are left to the checks before a training.

    Raises:
        UserError: there is no object.
    """
    found = set()
    for file in Path(dirname, "Annotations").glob("*.xml"):
        with contextlib.suppress(OSError, ET.ParseError, UnicodeDecodeError):
            found |= {element.findtext("name") for element in ET.parse(file).iterfind("object")}
    found.discard(None)
    if not found:
        raise UserError(
            f"no annotation in {os.path.join(dirname, 'Annotations')} has an object, whose class "
            "could be taken; is it a folder in Pascal VOC's layout?"
        )
    return list(CLASS_NAMES) if found <= set(CLASS_NAMES) else sorted(found)


def load_voc(dirname: str, split: str, class_names: Sequence[str]) -> list[dict]:
    """Detectron2's :func:`load_voc_instances`, with ``iscrowd`` 1 for difficult objects, else 0."""
    records = load_voc_instances(dirname, split, list(class_names))
    for record in records:
        record["image_id"] = str(record["image_id"])  # a NumPy scalar until now
        file = os.path.join(dirname, "Annotations", f"{record['image_id']}.xml")
        objects = read_voc_annotation(file, class_names).objects
        for annotation, its_object in zip(record["annotations"], objects, strict=True):
            annotation["iscrowd"] = int(its_object.is_difficult)
    return records


@dataclass(frozen=True)
class VOCObject:
    """
    Attributes:
        name: its class.
        box: xmin, ymin, xmax, ymax in pixels, counted from 1; the last ones belong to it.
        is_difficult: whether it is marked as hard to recognise.
    """

    name: str
    box: tuple[float, float, float, float]
    is_difficult: bool


@dataclass(frozen=True)
class VOCAnnotation:
    """What an annotation file says: the name of the image's file, where there is one, its size in
    pixels, and the objects."""

    file_name: str | None
    width: int
    height: int
    objects: list[VOCObject]


def read_voc_annotation(
    file: str, class_names: Sequence[str] | None, *, is_evaluated: bool = False
) -> VOCAnnotation:
    """Read an annotation file, and make sure that Detectron2 can.

    Args:
        file: path of the XML file.
        class_names: the classes that may occur, None for any.
        is_evaluated: also ask for what Detectron2's VOC evaluation reads, and nothing else does.

    Raises:
        UserError: the file does not exist, is malformed, or has an unknown class or a box that
            ends before it begins or lies wholly outside its image.
    """
    try:
        with PathManager.open(file) as stream:
            root = ET.parse(stream).getroot()
    except OSError as error:
        raise UserError(f"Cannot read {file}: {error.strerror}.") from error
    except (ET.ParseError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid XML: {error}. Export it again.") from error
    try:
        width, height = (_number(root, f"size/{side}", int) for side in ("width", "height"))
    except ValueError as error:
        raise UserError(f"{file}: the image {error}.") from error
    objects = []
    for number, element in enumerate(root.findall("object"), start=1):
        try:
            objects.append(_read_object(element, class_names, width, height, is_evaluated))
        except ValueError as error:
            raise UserError(f"{file}: object number {number} {error}.") from error
    return VOCAnnotation(root.findtext("filename"), width, height, objects)


def _read_object(
    element: ET.Element,
    class_names: Sequence[str] | None,
    width: int,
    height: int,
    is_evaluated: bool,
) -> VOCObject:
    """The object, or a ValueError that says what is wrong with it."""
    name = element.findtext("name")
    if not name:
        raise ValueError("has no <name>, which is its class; add it")
    if class_names is not None and name not in class_names:
        raise ValueError(
            f"is of the class {name!r}, which this data set does not have; correct it, or register "
            "the data set with all its classes"
        )
    kind = int if is_evaluated else float
    xmin, ymin, xmax, ymax = (_number(element, f"bndbox/{corner}", kind) for corner in CORNERS)
    # The last pixel belongs to the box, so both corners of a box of one pixel are the same.
    if xmax < xmin or ymax < ymin:
        raise ValueError("has a box whose xmax or ymax is smaller than its xmin or ymin; swap them")
    if xmin > width or ymin > height or xmax < 1 or ymax < 1:
        raise ValueError(f"has a box wholly outside its image of {width}x{height} pixels")
    if is_evaluated:
        for tag in ("truncated", "difficult"):
            _number(element, tag, int)
        if element.find("pose") is None:
            raise ValueError("has no <pose>, which the VOC evaluation wants; add an empty one")
    return VOCObject(name, (xmin, ymin, xmax, ymax), _is_difficult(element))


def _is_difficult(element: ET.Element) -> bool:
    return element.find("difficult") is not None and _number(element, "difficult", int) != 0


def _number(element: ET.Element, path: str, kind: type[int] | type[float]) -> float:
    tag = f"<{path.rpartition('/')[2]}>"
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"has no {tag}; add it")
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"has {text!r} as its {tag}; it must be {wanted}")
    return number
