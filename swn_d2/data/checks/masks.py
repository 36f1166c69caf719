"""Whether the masks of COCO-format annotations, polygons and run lengths, can be used."""

import math

from detectron2.config import CfgNode
from pycocotools import mask as coco_mask

from .sampling import sample

__all__ = [
    "UNDECODABLE",
    "VALID_POLYGON",
    "MaskUse",
    "find_dropped",
    "find_undecodable",
    "mask_fault",
]

#: The fault of the annotations that :func:`find_undecodable` finds.
UNDECODABLE = "a run-length mask that can't be decoded (encode it again)"
#: What a polygon must have; Detectron2 drops it otherwise.
VALID_POLYGON = "three or more points, x and y of each"


class MaskUse:
    """What a run does with the masks of a data set.

    Attributes:
        are_on: the detector has a mask head, so that masks are read at all.
        are_evaluated: the COCO evaluation reads them.
        must_be_polygons: the training reads polygons only.
    """

    def __init__(self, cfg: CfgNode, *, is_train: bool, is_test: bool):
        self.are_on = cfg.MODEL.MASK_ON
        self.are_evaluated = self.are_on and is_test
        self.must_be_polygons = self.are_on and is_train and cfg.INPUT.MASK_FORMAT == "polygon"


def mask_fault(annotation: dict, image_width: int, image_height: int, use: MaskUse) -> str | None:
    """What is wrong with the segmentation of an annotation; None if it can be used.

    Args:
        annotation: a COCO-format annotation, with or without a segmentation.
        image_width: of the annotation's image, in pixels.
        image_height: likewise.
        use: what the run does with masks.
    """
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
    except (TypeError, OverflowError):
        return False


def find_undecodable(annotations: list[dict]) -> list[dict]:
    """The annotations whose compressed run lengths can't be decoded, of up to 1000 that are tried.

    Args:
        annotations: in which :func:`mask_fault` found nothing, all with a segmentation.
    """
    return [a for a in sample(list(filter(_is_compressed, annotations))) if not _can_be_decoded(a)]


def _is_compressed(annotation: dict) -> bool:
    mask = annotation["segmentation"]
    is_text = isinstance(mask, dict) and isinstance(mask.get("counts"), str)
    return is_text and not annotation.get("iscrowd", 0)


def _can_be_decoded(annotation: dict) -> bool:
    try:
        coco_mask.decode(annotation["segmentation"])
    except ValueError:
        return False
    return True


def find_dropped(annotations: list[dict]) -> tuple[int, list[dict]]:
    """How many polygons Detectron2 drops, and the objects that have no other polygon.

    Crowd regions are not counted as objects.
    """
    polygons, objects = 0, []
    for annotation in annotations:
        mask = annotation.get("segmentation")
        if mask and isinstance(mask, list):
            dropped = sum(len(p) < 6 or len(p) % 2 == 1 for p in mask)
            polygons += dropped
            if dropped == len(mask) and not annotation.get("iscrowd", 0):
                objects.append(annotation)
    return polygons, objects
