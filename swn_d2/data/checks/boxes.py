"""Whether the boxes of COCO-format annotations, taken together, are what COCO means by a box."""

import numpy as np

from swn_d2.errors import UserError

__all__ = ["Boxes"]


class Boxes:
    """All boxes of an annotation file, in arrays, since there are many."""

    def __init__(self, annotations: list[dict], sizes: dict):
        """
        Args:
            annotations: whose boxes are four finite numbers.
            sizes: image id -> (width, height) in pixels.
        """
        boxes = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
        images = np.array([sizes[a["image_id"]] for a in annotations], np.float64)
        # Each (n, 2), x and y.
        self._first, self._last, self._images = boxes[:, :2], boxes[:, 2:], images.reshape(-1, 2)

    def check_as_a_whole(self, file: str) -> None:
        """Tell boxes that are written in another way throughout, while each could be meant so.

        Args:
            file: path of the annotation file, for the message.

        Raises:
            UserError: they look like shares of the pictures, or like two corners.
        """
        first, last, images = self._first, self._last, self._images
        if not len(first):
            return
        if max(first.max(), last.max()) <= 1 and last.max() > 0 and images.min() > 2:
            raise UserError(
                f"{file} has no number above 1 in any bbox: they look like shares of the picture; "
                "COCO wants x, y, width and height in pixels."
            )
        could_be_corners = (0 <= first) & (first < last) & (last <= images + 1)
        # As width and height, those of some honest boxes may reach beyond the picture, too.
        overhanging = self._overhanging()
        if could_be_corners.all() and overhanging.mean() > 0.25:
            raise UserError(
                f"{file} has {overhanging.sum()} of {len(first)} boxes that reach beyond their "
                "picture as x, y, width, height, while all of them fit into it as the corners x1, "
                "y1, x2, y2; COCO wants x, y, width, height."
            )

    def count_odd_ones(self) -> tuple[int, int]:
        """How many boxes have no area, and how many others reach beyond their image."""
        without_area = (self._last == 0).any(axis=1)
        return int(without_area.sum()), int((self._overhanging() & ~without_area).sum())

    def _overhanging(self) -> np.ndarray:
        """(n,) which of them reach more than a pixel beyond their image."""
        beyond = (self._first < -1) | (self._first + self._last > self._images + 1)
        return beyond.any(axis=1)
