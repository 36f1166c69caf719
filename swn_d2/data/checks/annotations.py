"""Whether the annotations of a COCO-format data set can be used.

A fault is a text that says what is wrong with one annotation. All are collected, so that a mistake
made throughout a file is reported once, with how often it occurs.
"""

import logging
import math
from collections import defaultdict
from itertools import starmap

from detectron2.config import CfgNode

from swn_d2.data.sample_weights import (
    BOX_WEIGHT,
    GIVEN_WEIGHTS,
    LABEL_WEIGHT,
    MASK_WEIGHT,
    SAMPLE_WEIGHT,
    WEIGHTS_ARE,
    is_sample_weight,
    without_weights,
)
from swn_d2.errors import UserError

from .boxes import Boxes
from .masks import UNDECODABLE, VALID_POLYGON, MaskUse, find_dropped, find_undecodable, mask_fault

__all__ = ["check_annotations"]

logger = logging.getLogger(__name__)


def check_annotations(
    cfg: CfgNode, file: str, content: dict, *, is_train: bool, is_test: bool
) -> dict[str, str]:
    """Check what COCO-format annotations refer to, their boxes, masks and, for training, weights.

    What Detectron2 drops or clips in training is only counted in a warning.

    Args:
        cfg: a complete Detectron2 config.
        file: path of the annotation file, for messages.
        content: of that file; its entries have the keys that they need.
        is_train: the data set is trained on.
        is_test: the data set is evaluated on.

    Returns:
        What there is nothing of to train on, though another data set may have it -> a sentence that
        says so.

    Raises:
        UserError: all faults, each with the first annotations that have it; or nothing is left to
            evaluate on.
    """
    annotations = content["annotations"]
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    use = MaskUse(cfg, is_train=is_train, is_test=is_test)
    num_keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    with_keypoints = {
        a["image_id"] for a in annotations if a.get("keypoints") and not a.get("iscrowd", 0)
    }
    faults = defaultdict(list)
    for annotation in annotations:
        fault = _fault(annotation, sizes, categories, use)
        if fault is None and cfg.MODEL.KEYPOINT_ON:
            fault = _keypoint_fault(annotation, num_keypoints, with_keypoints, is_test)
        if fault is None and is_test:
            fault = _id_fault(annotation) or _area_fault(annotation)
        if fault is None and is_train:
            fault = _weight_fault(annotation)
        if fault:
            faults[fault].append(annotation)
    # Last, for the decoder wants masks that have no other fault.
    if use.are_on and not faults and (undecodable := find_undecodable(annotations)):
        faults[UNDECODABLE] = undecodable
    if faults:
        raise UserError(f"{file} has {'; '.join(starmap(_describe, faults.items()))}.")
    boxes = Boxes(annotations, sizes)
    boxes.check_as_a_whole(file)
    polygons, without_polygon = find_dropped(annotations)
    lacks = {}
    if is_train:
        lacks = _without_objects(file, annotations, without_polygon)
        lacks |= _without_weight(cfg, file, annotations)
    if is_test:
        _check_can_be_found(file, annotations)
    if is_test and any(float(a["id"]) == 0 for a in annotations if not a["iscrowd"]):
        logger.warning(
            f"{file}: an annotation has the id 0, which COCO's evaluation takes for none, so that "
            "its object is never found and AP is too low; give it another id."
        )
    without_area, overhanging = boxes.count_odd_ones()
    if without_area or overhanging:
        logger.warning(
            f"{file}: {without_area} boxes have no area and {overhanging} reach more than a pixel "
            "beyond the image; Detectron2 drops the former and clips the latter in training."
        )
    if is_train and polygons:
        logger.warning(
            f"{file}: {polygons} polygons do not have {VALID_POLYGON}; Detectron2 drops them in "
            f"training, and {len(without_polygon)} objects that have no other polygon with them."
        )
    return lacks


def _describe(fault: str, found: list[dict]) -> str:
    some = ", ".join(f"annotation {a['id']} of image {a['image_id']}" for a in found[:3])
    return f"{fault} ({len(found)} in all): {some}{' and others' if len(found) > 3 else ''}"


def _fault(annotation: dict, sizes: dict, categories: set, use: MaskUse) -> str | None:
    if annotation["image_id"] not in sizes:
        return 'an image_id that is not in "images"'
    if annotation["category_id"] not in categories:
        return 'a category_id that is not in "categories"'
    if annotation.get("iscrowd", 0) not in (0, 1):  # of which Detectron2 takes all for crowds
        return 'an "iscrowd" that is not 0 or 1 (a number, without quotes)'
    if annotation.get("ignore", 0) != 0:
        return 'an "ignore" that is not 0, at which Detectron2 stops (say so by an "iscrowd" of 1)'
    if not _are_numbers(annotation.get("keypoints") or []):  # which Detectron2 always reads
        return 'a "keypoints" that is not a list of numbers (correct it, or take it out)'
    width, height = sizes[annotation["image_id"]]
    return _box_fault(annotation["bbox"], width, height) or mask_fault(
        annotation, width, height, use
    )


def _keypoint_fault(
    annotation: dict, number: int, with_keypoints: set, is_test: bool
) -> str | None:
    """The evaluation reads those of every annotation. A training leaves crowd regions out, and
    pictures without any keypoints, but of the others all objects must have them.

    Args:
        with_keypoints: the ids of the pictures of which an object has some.
    """
    keypoints = annotation.get("keypoints") or []
    may_lack = not keypoints and annotation["image_id"] not in with_keypoints
    if not is_test and (annotation.get("iscrowd", 0) or may_lack) or len(keypoints) == 3 * number:
        return None
    return (
        f'a "keypoints" that is not of {3 * number} numbers (x, y and visibility of each of '
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS; zeros where none is labelled)"
    )


def _box_fault(box: object, image_width: int, image_height: int) -> str | None:
    try:
        x, y, width, height = box
        finite = math.isfinite(x + y + width + height)
    except (TypeError, ValueError, OverflowError):
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


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, int | float) for value in values)


def _id_fault(annotation: dict) -> str | None:
    """The evaluation keeps ids in an array of numbers, and the compiled one as 64 bits."""
    try:
        number = int(annotation["id"])  # of a text, only if it is a whole one
        is_whole = isinstance(annotation["id"], int | str) or number == annotation["id"]
    except (ValueError, OverflowError):
        is_whole = False
    if is_whole and 0 <= number < 2**64:
        return None
    return "an id that COCO's evaluation can't take for a whole number from 0 to 2^64 - 1"


def _area_fault(annotation: dict) -> str | None:
    """The evaluation would stop at a text only when it has all detections."""
    area = annotation["area"]
    if isinstance(area, (int, float)) and 0 <= area < math.inf:
        return None
    return 'an "area" that is not a finite number of at least 0 (of pixels, without quotes)'


def _weight_fault(annotation: dict) -> str | None:
    for key in GIVEN_WEIGHTS:
        if not is_sample_weight(annotation.get(key, 1)):
            return f"a {key} that is not {WEIGHTS_ARE} (correct it, or remove it)"
    return None


def _without_objects(
    file: str, annotations: list[dict], without_polygon: list[dict]
) -> dict[str, str]:
    """What :func:`check_annotations` returns, of objects."""
    with_area, crowds, without_area = _objects(annotations)
    dropped = set(map(id, without_polygon))
    if not all(id(a) in dropped for a in with_area):
        return {}
    return {
        "object": f"{file} has no annotation to train on: of {len(annotations)}, {crowds} are "
        f"crowd regions, {without_area} have a box without area and {len(dropped)} have no polygon "
        f"of {VALID_POLYGON}."
    }


def _objects(annotations: list[dict]) -> tuple[list[dict], int, int]:
    """Those whose box has an area; how many are crowd regions, and how many boxes have none."""
    objects = [a for a in annotations if not a.get("iscrowd", 0)]
    with_area = [a for a in objects if min(a["bbox"][2:]) > 0]
    return with_area, len(annotations) - len(objects), len(objects) - len(with_area)


def _check_can_be_found(file: str, annotations: list[dict]) -> None:
    """Something must be left to be found."""
    with_area, crowds, without_area = _objects(annotations)
    if not with_area:
        raise UserError(
            f"{file} has no object to find, so that it can't be evaluated on: of "
            f"{len(annotations)} annotations, {crowds} are crowd regions and {without_area} have a "
            "box without area. For predictions without an evaluation, leave the whole key "
            '"annotations" out.'
        )
    if not any(a["area"] for a in annotations if not a["iscrowd"]):
        raise UserError(
            f'{file} has an "area" of 0 throughout, by which the evaluation tells small objects '
            "from large ones; give that of the mask, or width times height of the box."
        )


def _without_weight(cfg: CfgNode, file: str, annotations: list[dict]) -> dict[str, str]:
    """What :func:`check_annotations` returns, of weights of the data; which must count at all."""
    for key in GIVEN_WEIGHTS:
        number = sum(key in a for a in annotations)
        if number and (stock := without_weights(cfg)):
            raise UserError(
                f"{file} has a {key} in {number} annotations, which has no effect on {stock} Or "
                "take the key out."
            )
    objects = [a for a in annotations if not a.get("iscrowd", 0)]
    lost = {
        SAMPLE_WEIGHT: "object counts",
        LABEL_WEIGHT: "class is learned",
        BOX_WEIGHT: "box is learned",
    }
    if cfg.MODEL.MASK_ON:
        lost[MASK_WEIGHT] = "mask is learned"
    return {
        key: f"{file} has a {key} of 0 throughout, so that no {nothing}; give those that are to be "
        "learned other weights."
        for key, nothing in lost.items()
        if objects and not any(a.get(key, 1) for a in objects)
    }
