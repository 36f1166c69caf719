"""The annotations that are examined, as arrays."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data import unknown_dataset
from ..data.checks.coco import check_pictures, read_coco
from ..errors import UserError
from ..evaluation.pictures import read_pixels

__all__ = ["Annotations", "split", "to_xywh", "to_xyxy"]


@dataclass(frozen=True)
class Annotations:
    """A COCO-format data set. Everything (N, ...) is of the annotations that are no crowd regions,
    in the order of the file.

    Attributes:
        file: the annotation file.
        image_root: the folder with the pictures.
        content: what is in the file.
    """

    file: Path
    image_root: Path
    content: dict

    @classmethod
    def of_dataset(cls, name: str) -> "Annotations":
        """Read the file of a data set that is registered in COCO's format.

        Raises:
            UserError: there is no such data set, it has no annotation file in COCO's format, or
                that can't be trained on.
        """
        if name not in DatasetCatalog:
            raise UserError(unknown_dataset(name))
        metadata = MetadataCatalog.get(name)
        if not metadata.get("json_file"):
            raise UserError(
                f"the data set {name} has no annotation file in COCO's format, in which every "
                "annotation has an id; write it in that format, and name it with --register-coco "
                "and --dataset."
            )
        content = read_coco(metadata.json_file)
        if not isinstance(content.get("info") or {}, dict):
            raise UserError(
                f'{metadata.json_file}: "info" is not an object, in which an audit notes which '
                "files are its own; write {} there, or take it out."
            )
        if len({isinstance(category["id"], str) for category in content["categories"]}) > 1:
            raise UserError(
                f"{metadata.json_file} has categories with numbers and with texts for ids, which "
                "have no order; give all of them numbers."
            )
        ids = [annotation["id"] for annotation in content["annotations"]]
        if len(set(ids)) < len(ids):
            raise UserError(
                f"{metadata.json_file}: {len(ids) - len(set(ids))} ids of annotations occur more "
                "than once, but an audit tells annotations apart by them; give each its own."
            )
        return cls(Path(metadata.json_file), Path(metadata.image_root), content)

    @cached_property
    def category_ids(self) -> list:
        """(K,) the id of the category of each class."""
        return sorted(category["id"] for category in self.content["categories"])

    @cached_property
    def class_names(self) -> list[str]:
        """(K,) the name of each class."""
        names = {category["id"]: str(category["name"]) for category in self.content["categories"]}
        return [names[id_] for id_ in self.category_ids]

    @cached_property
    def images(self) -> list[dict]:
        """The pictures, those without an annotation too."""
        return self.content["images"]

    @cached_property
    def objects(self) -> list[dict]:
        """(N,) the annotations."""
        return [a for a in self.content["annotations"] if not a.get("iscrowd", 0)]

    @cached_property
    def ids(self) -> list:
        """(N,) the ids of the annotations in the file."""
        return [a["id"] for a in self.objects]

    @cached_property
    def image(self) -> np.ndarray:
        """(N,) the index of each one's picture among :attr:`images`."""
        index = {image["id"]: i for i, image in enumerate(self.images)}
        return np.array([index[a["image_id"]] for a in self.objects], dtype=np.int64)

    @cached_property
    def classes(self) -> np.ndarray:
        """(N,) the class of each."""
        index = {id_: k for k, id_ in enumerate(self.category_ids)}
        return np.array([index[a["category_id"]] for a in self.objects], dtype=np.int64)

    @cached_property
    def boxes(self) -> np.ndarray:
        """(N, 4) float32, XYXY in pixels."""
        return to_xyxy([a["bbox"] for a in self.objects])

    def by_picture(self) -> list[np.ndarray]:
        """For each picture the indices of its annotations, in order."""
        return split(self.image, len(self.images))

    def crowd_boxes(self) -> dict[int, np.ndarray]:
        """Index of a picture -> (n, 4) its crowd regions, XYXY in pixels; only where there are."""
        index = {image["id"]: i for i, image in enumerate(self.images)}
        boxes: dict[int, list] = {}
        for annotation in self.content["annotations"]:
            if annotation.get("iscrowd", 0):
                boxes.setdefault(index[annotation["image_id"]], []).append(annotation["bbox"])
        return {i: to_xyxy(of_image) for i, of_image in boxes.items()}

    def picture_file(self, index: int) -> Path:
        """The file of the picture with this index."""
        return self.image_root / self.images[index]["file_name"]

    def check_pictures(self) -> None:
        """Check that all pictures are there, and of the sizes that the file says.

        Raises:
            UserError: how many are missing, or the first that is not as it should be.
        """
        check_pictures(str(self.file), str(self.image_root), self.images, open_all=True)

    def read_picture(self, index: int, format: str, *, shrink: int = 1) -> np.ndarray:
        """(H, W, 3) the pixels of a picture.

        Args:
            format: "RGB" or "BGR".
            shrink: it may be so many times smaller, see :func:`read_pixels`. What the annotations
                say of its size is then not checked.

        Raises:
            UserError: it can't be read, or has another size than the annotations say, with which
                Detectron2 would not have trained on it: it has changed since.
        """
        file, image = self.picture_file(index), self.images[index]
        pixels = read_pixels(file, format, shrink=shrink)
        height, width = pixels.shape[:2]
        if shrink == 1 and (width, height) != (image["width"], image["height"]):
            raise UserError(
                f"{file} is {width}x{height} pixels, but {self.file} says "
                f"{image['width']}x{image['height']}: put the picture there that was annotated."
            )
        return pixels


def split(image: np.ndarray, num_images: int) -> list[np.ndarray]:
    """For each image the indices of what is in it, in order.

    Args:
        image: the index of the image that each thing is in.
    """
    order = np.argsort(image, kind="stable")
    return np.split(order, np.searchsorted(image[order], np.arange(1, num_images)))


def to_xyxy(boxes: list[list[float]]) -> np.ndarray:
    """(n, 4) float32 XYXY of boxes in COCO's x, y, width, height."""
    corner_and_size = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return np.hstack([corner_and_size[:, :2], corner_and_size[:, :2] + corner_and_size[:, 2:]])


def to_xywh(box: np.ndarray) -> list[float]:
    """COCO's x, y, width, height of a box (4,) XYXY, to hundredths of a pixel."""
    x0, y0, x1, y1 = (float(side) for side in box)
    return [round(x0, 2), round(y0, 2), round(x1 - x0, 2), round(y1 - y0, 2)]
