"""Pictures of detections beside the ground truth, from the files of an evaluation."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from detectron2.structures import BoxMode
from PIL import Image, UnidentifiedImageError

from ..data import unknown_dataset
from ..data.checks.pictures import check_depth
from ..errors import UserError
from ..files import check_is_file, read_json

__all__ = [
    "Objects",
    "draw_detections",
    "read_dataset",
    "read_detections",
    "read_pixels",
    "read_results",
]


@dataclass(frozen=True)
class Objects:
    """Objects of an image, as they are or as they were detected.

    Attributes:
        boxes: (n, 4) float64, XYXY in pixels.
        classes: (n,) int64, contiguous ids.
        scores: (n,) float64; of true objects, ones.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray

    @classmethod
    def from_rows(cls, rows: list[tuple[list[float], int, float]]) -> "Objects":
        """Objects from (box in XYXY, class, score)."""
        return cls(
            np.array([box for box, *_ in rows], dtype=np.float64).reshape(-1, 4),
            np.array([class_ for _, class_, _ in rows], dtype=np.int64),
            np.array([score for *_, score in rows], dtype=np.float64),
        )

    @classmethod
    def from_annotations(cls, image: dict[str, Any]) -> "Objects":
        """The true objects in an entry of a data set, without crowds (and VOC's difficult ones)."""
        return cls.from_rows(
            [
                (
                    BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS),
                    a["category_id"],
                    1.0,
                )
                for a in image.get("annotations", ())
                if not a.get("iscrowd", 0)
            ]
        )

    def names(self, class_names: Sequence[str]) -> list[str]:
        """What the objects are; "class 3" where there is no name for it."""
        return [
            class_names[k] if k < len(class_names) else f"class {k}" for k in self.classes.tolist()
        ]

    def labels(self, class_names: Sequence[str]) -> list[str]:
        """What the objects are, and their scores."""
        return [
            f"{name}  {score:.0%}"
            for name, score in zip(self.names(class_names), self.scores, strict=True)
        ]


def read_dataset(name: str) -> list[dict[str, Any]]:
    """The entries of a data set that Detectron2 knows, in its format.

    Raises:
        UserError: there is no data set of that name, or it can't be read.
    """
    if name not in DatasetCatalog:
        raise UserError(unknown_dataset(name))
    try:
        return DatasetCatalog.get(name)
    # What Detectron2's and pycocotools' readers raise for files that are missing or damaged.
    except (AssertionError, LookupError, OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the data set {name} cannot be read: {reason}. Built-in data sets are looked for in "
            "the folder that DETECTRON2_DATASETS names, your own where --register-coco says."
        ) from error


def read_results(results_file: str | Path) -> list[dict[str, Any]]:
    """The detections in COCO's format that an evaluation left.

    Args:
        results_file: ``coco_instances_results.json``, which an evaluation leaves in ``inference/``
            of its output directory.

    Raises:
        UserError: they can't be read.
    """
    try:
        results = read_json(results_file)
    except UserError as error:
        raise UserError(
            f"there are no detections: {error} Evaluate the model first, with train_net.py "
            "--eval-only."
        ) from error
    if not isinstance(results, list) or not all(map(_is_detection, results)):
        raise UserError(
            f"{results_file} is not the list of detections that an evaluation writes; evaluate the "
            "model again."
        )
    return results


def read_detections(
    results_file: str | Path, dataset_name: str, score_threshold: float
) -> dict[int | str, Objects]:
    """What was detected in each image, by image id, the highest score first.

    Args:
        results_file: see :func:`read_results`.
        dataset_name: the data set that was evaluated. It must have been read before, since its
            classes are known only then.
        score_threshold: detections with a lower score are left out.

    Raises:
        UserError: the results can't be read, or are those of other data.
    """
    results = read_results(results_file)
    class_of_category = MetadataCatalog.get(dataset_name).get("thing_dataset_id_to_contiguous_id")
    rows = defaultdict(list)
    for result in sorted(results, key=lambda result: -result["score"]):
        category = result["category_id"]
        if class_of_category is not None and category not in class_of_category:
            raise UserError(
                f"{results_file} has detections of category {category}, which {dataset_name} does "
                "not have; it is the result of other data. Evaluate the model again."
            )
        if result["score"] >= score_threshold:
            box = BoxMode.convert(result["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
            class_ = class_of_category[category] if class_of_category else category
            rows[result["image_id"]].append((box, class_, result["score"]))
    nothing = Objects.from_rows([])
    return defaultdict(lambda: nothing, {key: Objects.from_rows(r) for key, r in rows.items()})


def _is_detection(result: Any) -> bool:
    try:
        numbers = [result["score"], *result["bbox"]]
        hash(result["image_id"]), hash(result["category_id"])
        return len(numbers) == 5 and math.isfinite(sum(numbers))
    except (KeyError, TypeError):
        return False


def read_pixels(file: str | Path, pixel_format: str = "RGB", *, shrink: int = 1) -> np.ndarray:
    """A picture, upright, as (height, width, 3) uint8.

    Args:
        pixel_format: "RGB" or "BGR".
        shrink: the picture may be so many times smaller, if it is read sooner then, as a JPEG is.

    Raises:
        UserError: it can't be read.
    """
    check_is_file(file)
    try:
        with Image.open(file) as picture:
            check_depth(file, picture.mode)
            if shrink > 1:
                width, height = picture.size
                picture.draft("RGB", (max(width // shrink, 1), max(height // shrink, 1)))
            # As Detectron2's read_image has it.
            return convert_PIL_to_numpy(_apply_exif_orientation(picture), pixel_format)
    except UserError:
        raise
    except UnidentifiedImageError:
        reason = "it is damaged, or not a picture"
    except Exception as error:  # what is damaged further inside can raise nearly everything
        reason = getattr(error, "strerror", None) or f"{error or type(error).__name__}"
    raise UserError(f"cannot read {file}: {reason}.")


def draw_detections(
    results_file: str,
    dataset_name: str,
    output_file: str,
    *,
    num_images: int = 8,
    score_threshold: float = 0.5,
) -> None:
    """Draw images of a data set in pairs: their ground truth, and what was detected.

    The images are spread evenly over the data set, not chosen.

    Args:
        results_file, dataset_name, score_threshold: see :func:`read_detections`.
        output_file: where to write the picture; the ending chooses the format.
        num_images: how many images.

    Raises:
        UserError: the results, the data set or a picture can't be read.
    """
    # Costs a second; a training that draws nothing need not wait for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from .drawing import DETECTION, TRUTH, draw_box

    images = read_dataset(dataset_name)
    detections = read_detections(results_file, dataset_name, score_threshold)
    class_names = MetadataCatalog.get(dataset_name).thing_classes
    num_images = min(num_images, len(images))
    images = [images[i * len(images) // num_images] for i in range(num_images)]

    columns = 4
    rows = -(-2 * len(images) // columns)
    aspect = images[0]["height"] / images[0]["width"]
    figure = Figure(figsize=(12, 12 / columns * aspect * rows + 0.5), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for i, image in enumerate(images):
        pixels = read_pixels(image["file_name"])
        truth, found = axes[2 * i], axes[2 * i + 1]
        truth.imshow(pixels)
        found.imshow(pixels)
        objects = Objects.from_annotations(image)
        for box, name in zip(objects.boxes, objects.names(class_names), strict=True):
            draw_box(truth, box, name, TRUTH)
        objects = detections[image["image_id"]]
        for box, label in zip(objects.boxes, objects.labels(class_names), strict=True):
            draw_box(found, box, label, DETECTION)
    for column in range(columns):
        title = f"detections with a score of {score_threshold:.0%} or more"
        axes[column].set_title(title if column % 2 else "ground truth", fontsize=10)
    figure.tight_layout(pad=0.6)
    figure.savefig(output_file)
