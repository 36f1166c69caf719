"""Whether the boxes of COCO-format annotations, taken together, are what COCO means by a box."""

import numpy as np

from swn_d2.errors import UserError

__all__ = ["check_boxes_as_a_whole"]


def check_boxes_as_a_whole(file: str, annotations: list[dict], sizes: dict) -> None:
    """Tell boxes that are written in another way throughout, each of which could be meant so.

    Args:
        file: path of the annotation file, for the message.
        annotations: whose boxes are four finite numbers.
        sizes: image id -> (width, height) in pixels.

    Raises:
        UserError: they look like shares of the pictures, or like two corners.
    """
    if not annotations:
        return
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64)
    image = np.array([sizes[annotation["image_id"]] for annotation in annotations], np.float64)
    if boxes.max() <= 1 and boxes[:, 2:].max() > 0 and image.min() > 2:
        raise UserError(
            f"{file} has no number above 1 in any bbox: they look like shares of the picture; COCO "
            "wants x, y, width and height in pixels."
        )
    first, last = boxes[:, :2], boxes[:, 2:]
    could_be_corners = (0 <= first) & (first < last) & (last <= image + 1)
    # As width and height, those of some honest boxes may reach beyond the picture, too.
    overhanging = (first + last > image + 1).any(axis=1)
    if could_be_corners.all() and overhanging.mean() > 0.25:
        raise UserError(
            f"{file} has {overhanging.sum()} of {len(boxes)} boxes that reach beyond their picture "
            "as x, y, width, height, while all of them fit into it as the corners x1, y1, x2, y2; "
            "COCO wants x, y, width, height."
        )
