"""Whether a config and the data sets it names fit together; the entry to all checks of data."""

import os
import re
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from swn_d2.config import num_classes
from swn_d2.data.datasets import origin_of, unknown_dataset
from swn_d2.data.voc import VOC_EVALUATOR_TYPE
from swn_d2.errors import UserError

from .checked import Checked
from .coco import check_coco
from .voc import check_voc

__all__ = ["check_data", "check_datasets"]

# By the evaluator type, which is what tells the format of a registered data set.
CHECKS = {"coco": check_coco, "pascal_voc": check_voc, VOC_EVALUATOR_TYPE: check_voc}


def check_datasets(cfg: CfgNode, *, eval_only: bool = False) -> dict[str, list[str]]:
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

    Returns:
        Data set -> its categories, the same for all.

    Raises:
        UserError: the first mistake, with the file and the ids of images and annotations.
    """
    categories = check_data(cfg, eval_only=eval_only)
    for name, classes in categories.items():
        _check_num_classes(cfg, name, len(classes))
    return categories


def check_data(cfg: CfgNode, *, eval_only: bool = False) -> dict[str, list[str]]:
    """As :func:`check_datasets`, for a config that may have another number of classes.

    Returns:
        Data set -> its categories, the same for all.
    """
    train, test = () if eval_only else cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    categories, lacks = {}, []
    for name in (*train, *test):
        if not isinstance(name, str) or not name:
            raise UserError(f"DATASETS has {name!r}, which can't be the name of a data set.")
    if len(set(test)) < len(test):
        raise UserError(f"DATASETS.TEST has a name twice: {', '.join(test)}; take one out.")
    for name in dict.fromkeys((*train, *test)):
        is_forgotten = _is_forgotten(train, name)
        if is_forgotten and not _is_there(name):
            raise UserError(_forgotten(train, name))
        checked = _check_dataset(cfg, name, is_train=name in train, is_test=name in test)
        if name in train:
            lacks.append(checked.lacks if checked else {})
        if checked is None:
            continue
        classes = checked.classes
        if is_forgotten and classes not in categories.values():
            raise UserError(_forgotten(train, name))
        categories[name] = classes
    for what, sentence in (lacks[0] if lacks else {}).items():
        if all(what in of_other for of_other in lacks):
            raise UserError(sentence)
    # Where they differ no number of classes would be right.
    _check_same_categories(categories)
    return categories


def _check_dataset(cfg: CfgNode, name: str, *, is_train: bool, is_test: bool) -> Checked | None:
    """A data set in which no mistake was found; None if its format is unknown."""
    if name not in DatasetCatalog:
        raise UserError(unknown_dataset(name))
    metadata = MetadataCatalog.get(name)
    kind = metadata.get("evaluator_type")
    if kind in CHECKS:
        checked = CHECKS[kind](cfg, metadata, is_train=is_train, is_test=is_test)
        _check_still_the_same(name, checked.classes)
        return checked
    if is_test:
        raise UserError(
            f"DATASETS.TEST has {name}, whose evaluator type is {kind!r}; swn_d2 evaluates "
            f"data sets of the types coco, pascal_voc and {VOC_EVALUATOR_TYPE}."
        )
    return None


def _check_still_the_same(name: str, classes: list[str]) -> None:
    """The categories must be those that the run was trained with, where it knows them."""
    origin = origin_of(name)
    known = list(MetadataCatalog.get(name).get("thing_classes", ()))
    if origin and origin.run and known != classes:
        raise UserError(
            f"Data set {name} has the categories {', '.join(map(str, classes))}, but for "
            f"{origin.run} it had {', '.join(map(str, known))}; its annotations have changed. Put "
            "the old ones there, or start a run of another OUTPUT_DIR."
        )


def _is_forgotten(train: Sequence[str], name: str) -> bool:
    """Whether data of one's own are trained on, and this one may be what only a config has meant to
    test on."""
    is_known = name in DatasetCatalog and name not in train
    return is_known and not origin_of(name) and any(map(origin_of, train))


def _is_there(name: str) -> bool:
    metadata = MetadataCatalog.get(name)
    places = [metadata.get(key) for key in ("json_file", "dirname")]
    return all(os.path.exists(place) for place in places if place)


def _forgotten(train: Sequence[str], name: str) -> str:
    own = [n for n in DatasetCatalog.list() if origin_of(n) and n not in train]
    return (
        f"DATASETS.TEST has {name}, which does not go with your own data in DATASETS.TRAIN; add "
        f'DATASETS.TEST {own[-1] if own else "NAME"}, or DATASETS.TEST "()" for no evaluation.'
    )


def _check_num_classes(cfg: CfgNode, name: str, classes: int) -> None:
    if not re.search("RCNN|RetinaNet", cfg.MODEL.META_ARCHITECTURE):
        return  # one of a user's own, which may have its classes elsewhere
    key, expected = num_classes(cfg)
    if classes != expected:
        raise UserError(
            f"Data set {name} has {classes} categories, but {key} is {expected}. "
            f"Add the override: {key} {classes}"
        )


def _check_same_categories(categories: dict[str, list[str]]) -> None:
    """The n-th category must be the same everywhere: a detector knows it by n alone."""
    first = next(iter(categories), "")
    for name, classes in categories.items():
        if len(classes) != len(categories[first]):
            raise UserError(
                f"Data sets {first} and {name} differ in their categories: one has "
                f"{len(categories[first])}, the other {len(classes)}."
            )
        for n, (a, b) in enumerate(zip(categories[first], classes, strict=True), start=1):
            if a != b:
                raise UserError(
                    f"Data sets {first} and {name} differ in their categories: in the order of "
                    f"their ids, number {n} is {a!r} in one and {b!r} in the other."
                )
