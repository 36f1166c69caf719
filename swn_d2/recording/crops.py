"""Pictures of the positives that lie farthest out, for Figure 1 of the paper."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .file import REASONS, Crop

__all__ = ["CROPS_PER_REASON", "CROP_SIZE", "Pictures", "crops_of", "cut_out", "farthest_first"]

CROPS_PER_REASON = 4
CROP_SIZE = 112  # pixels of the longer side


@dataclass
class Pictures:
    """The images of a batch, as the detector is shown them.

    Attributes:
        image: index in the batch -> (H, W, 3) uint8, RGB.
        file_name: index in the batch -> what the image is called.
        gt_boxes: (G, 4) of all objects of the batch, XYXY in pixels.
    """

    image: Callable[[int], np.ndarray]
    file_name: Callable[[int], str]
    gt_boxes: np.ndarray


def crops_of(
    columns: Mapping[str, np.ndarray],
    *,
    weight: str,
    objects: np.ndarray,
    images: np.ndarray,
    boxes: np.ndarray,
    pictures: Pictures,
) -> tuple[Crop, ...]:
    """One sample of each object, the farthest first, for each of the :data:`REASONS`.

    Args:
        columns: column -> (F,) what a record has of the positives, and ``score``.
        weight: the column of the weight that they are judged by.
        objects, images: (F,) the object of each among those of the batch, and its image.
        boxes: (F, 4) the predicted boxes, XYXY in pixels.
        pictures: of the batch.
    """
    orders = farthest_first(
        columns["cls_loss"], columns[weight], np.abs(columns["score"] - columns["iou"])
    )
    crops = []
    for reason in REASONS:
        for i in _first_of_each(objects, orders[reason]):
            gt_box = pictures.gt_boxes[objects[i]]
            jpeg, box, gt_box = cut_out(pictures.image(images[i]), boxes[i], gt_box, size=CROP_SIZE)
            crops.append(
                Crop(
                    reason=reason,
                    image=pictures.file_name(images[i]),
                    gt_class=int(columns["gt_class"][i]),
                    box=box,
                    gt_box=gt_box,
                    stats={n: float(columns[n][i]) for n in columns if n != "gt_class"},
                    jpeg=jpeg,
                )
            )
    return tuple(crops)


def farthest_first(
    loss: np.ndarray, weight: np.ndarray, mismatch: np.ndarray
) -> dict[str, np.ndarray]:
    """Reason -> (n,) the samples, by how well the reason fits them.

    Args:
        loss, weight, mismatch: (n,) classification loss, weight, and distance of score and IoU.
    """
    hardness = _ranks(loss) - _ranks(weight)
    return {  # of those that are equal in ranks the loss decides
        "hard_but_light": np.lexsort((-loss, -hardness)),
        "easy_but_heavy": np.lexsort((loss, hardness)),
        "mismatch": np.argsort(-mismatch, kind="stable"),
    }


def _ranks(values: np.ndarray) -> np.ndarray:
    """How many of the values are smaller than each."""
    return np.searchsorted(np.sort(values), values)


def _first_of_each(objects: np.ndarray, order: np.ndarray) -> list[int]:
    """The first samples in ``order`` that are of different objects."""
    chosen: dict[int, int] = {}
    for i in order:
        chosen.setdefault(int(objects[i]), int(i))
        if len(chosen) == CROPS_PER_REASON:
            break
    return list(chosen.values())


def cut_out(
    image: np.ndarray, box: np.ndarray, gt_box: np.ndarray, *, size: int
) -> tuple[bytes, tuple[float, ...], tuple[float, ...]]:
    """A JPEG of what surrounds two boxes, and the boxes in its pixels.

    Args:
        image: (H, W, 3) uint8, RGB.
        box, gt_box: (4,) XYXY in pixels of the image.
        size: of the longer side, in pixels.
    """
    height, width = image.shape[:2]
    limits = np.array([width, height, width, height])
    box = np.clip(np.nan_to_num(box), 0, limits)
    both = np.concatenate([np.minimum(box, gt_box)[:2], np.maximum(box, gt_box)[2:]])
    margin = 0.15 * max(both[2] - both[0], both[3] - both[1]) + 2
    x1, y1 = np.floor(np.clip(both[:2] - margin, 0, None)).astype(int)
    x2, y2 = np.ceil(np.minimum(both[2:] + margin, limits[2:])).astype(int)
    picture = Image.fromarray(np.ascontiguousarray(image[y1:y2, x1:x2].astype(np.uint8)))
    scale = size / max(picture.size)
    picture = picture.resize([max(round(side * scale), 1) for side in picture.size])
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    corner = np.array([x1, y1, x1, y1])
    return stream.getvalue(), tuple((box - corner) * scale), tuple((gt_box - corner) * scale)
