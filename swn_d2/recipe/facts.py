"""What a data set is like, as far as a config depends on it."""

from dataclasses import dataclass

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

__all__ = ["Facts", "look_at"]


@dataclass(frozen=True)
class Facts:
    """Of a data set with n pictures and m objects; crowd regions and boxes without area, which are
    not trained on, do not count.

    Attributes:
        name: of the data set.
        files: (n) the pictures' files.
        sizes: (n, 2) width and height of the pictures in pixels.
        boxes: (m, 2) width and height of the objects' boxes in pixels.
        picture: (m,) which picture each object is in.
        classes: (name, number of objects) of each class, in the order of the detector's.
    """

    name: str
    files: list[str]
    sizes: np.ndarray
    boxes: np.ndarray
    picture: np.ndarray
    classes: list[tuple[str, int]]

    @property
    def shorter_side(self) -> float:
        """Pixels, the usual one."""
        return float(np.median(self.sizes.min(axis=1)))

    @property
    def elongations(self) -> np.ndarray:
        """(n,) the longer side of each picture through the shorter one."""
        return self.sizes.max(axis=1) / self.sizes.min(axis=1)

    @property
    def relative_sizes(self) -> np.ndarray:
        """(m,) side of a square as large as the box, as a share of the picture's shorter side."""
        return np.sqrt(self.boxes.prod(axis=1)) / self.sizes.min(axis=1)[self.picture]

    @property
    def ratios(self) -> np.ndarray:
        """(m,) height of a box through its width."""
        return self.boxes[:, 1] / self.boxes[:, 0]

    @property
    def objects_a_picture(self) -> np.ndarray:
        """(k,) for each of the k pictures with an object, the others not being trained on."""
        return np.unique(self.picture, return_counts=True)[1]

    def in_words(self) -> str:
        """Lines for a person."""
        counts = self.objects_a_picture
        width, height = np.median(self.sizes, axis=0)
        lines = [
            f"{self.name}: {len(self.files):,} pictures, most of about {width:.0f} x {height:.0f} "
            f"pixels, with {len(self.boxes):,} objects"
        ]
        if not len(counts):
            return lines[0]
        empty = len(self.files) - len(counts)
        small, usual, large = np.quantile(self.relative_sizes, [0.1, 0.5, 0.9]) * 100
        lines += [
            f"  {counts.mean():.1f} objects a picture, at most {counts.max()}"
            + (f"; {empty:,} without any" if empty else ""),
            f"  objects of {small:.0f} to {large:.0f} % of the picture's shorter side, "
            f"most of about {usual:.0f} %",
            f"  classes ({len(self.classes)}): "
            # Some characters that can't be printed would end the comment that this may become.
            + ", ".join(
                f"{name if name.isprintable() else ascii(name)} {count:,}"
                for name, count in self.classes
            ),
        ]
        return "\n".join(lines)


def look_at(name: str) -> Facts:
    """The facts of a registered data set without mistakes."""
    records = DatasetCatalog.get(name)
    classes = MetadataCatalog.get(name).thing_classes
    sizes, boxes, pictures, numbers = [], [], [], np.zeros(len(classes), int)
    for number, record in enumerate(records):
        sizes.append((record["width"], record["height"]))
        for annotation in record.get("annotations", []):
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
            if annotation.get("iscrowd", 0) or min(box[2:]) <= 0:
                continue
            boxes.append(box[2:])
            pictures.append(number)
            numbers[annotation["category_id"]] += 1
    return Facts(
        name=name,
        files=[record["file_name"] for record in records],
        sizes=np.array(sizes, float).reshape(-1, 2),
        boxes=np.array(boxes, float).reshape(-1, 2),
        picture=np.array(pictures, int),
        classes=list(zip(classes, numbers.tolist(), strict=True)),
    )
