"""The audit: for every annotation how likely it is wrong, and how."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode

from ..errors import UserError
from .annotations import Annotations
from .evidence import Evidence, build_judge, gather_evidence
from .misplaced_boxes import MisplacedBoxes, find_misplaced_boxes
from .objects import MissingObjects, find_duplicates, find_missing_objects
from .shares import Estimate
from .wrong_classes import WrongClasses, find_wrong_classes

__all__ = [
    "DUPLICATE",
    "KINDS",
    "MISPLACED_BOX",
    "MISSING_OBJECT",
    "WRONG_CLASS",
    "Audit",
    "audit_annotations",
    "audit_run",
    "training_annotations",
]

WRONG_CLASS, MISPLACED_BOX, DUPLICATE = "wrong class", "misplaced box", "duplicate"
#: What can be wrong with an annotation.
KINDS = (WRONG_CLASS, MISPLACED_BOX, DUPLICATE)
MISSING_OBJECT = "missing object"


@dataclass(frozen=True)
class Audit:
    """What a detector says of the annotations that it was trained on.

    Attributes:
        annotations: the N that were examined.
        classes, boxes, missing: what is known of each kind.
        duplicates: (N,) see :func:`find_duplicates`.
        earlier: (N,) index of the annotation that each duplicate repeats, -1 for others.
    """

    annotations: Annotations
    classes: WrongClasses
    boxes: MisplacedBoxes
    missing: MissingObjects
    duplicates: np.ndarray
    earlier: np.ndarray

    @property
    def suspicions(self) -> np.ndarray:
        """(N, 3) in [0, 1], a column for each of :data:`KINDS`."""
        return np.stack([self.classes.suspicion, self.boxes.suspicion, self.duplicates], axis=1)

    @property
    def suspicion(self) -> np.ndarray:
        """(N,) the largest of each annotation."""
        return self.suspicions.max(axis=1, initial=0)

    @property
    def expected(self) -> dict[str, Estimate]:
        """Kind -> the number to expect. Of badly placed boxes it is a bound; of missing objects,
        nothing but the sum of the suspicions is known."""
        number, missing = len(self.annotations.ids), float(self.missing.suspicion.sum())
        return {
            WRONG_CLASS: self.classes.share.times(number),
            MISPLACED_BOX: self.boxes.share.times(number),
            DUPLICATE: Estimate(*3 * (float((self.duplicates > 0).sum()),)),
            MISSING_OBJECT: Estimate(missing, missing, missing),
        }


def training_annotations(cfg: CfgNode, dataset: str | None = None) -> Annotations:
    """The annotations that a detector was trained on.

    Args:
        cfg: the run's.
        dataset: the name of the data set, if ``DATASETS.TRAIN`` has several.

    Raises:
        UserError: the data set can't be read, there are several, or it has other classes than the
            detector.
    """
    names = cfg.DATASETS.TRAIN
    if dataset is None and len(names) != 1:
        raise UserError(
            f"the run was trained on {len(names)} data sets ({', '.join(names)}); name the one to "
            "audit with --dataset."
        )
    annotations = Annotations.of_dataset(dataset or names[0])
    num_classes = (
        cfg.MODEL.RETINANET.NUM_CLASSES
        if "RetinaNet" in cfg.MODEL.META_ARCHITECTURE
        else cfg.MODEL.ROI_HEADS.NUM_CLASSES
    )
    if num_classes != len(annotations.category_ids):
        raise UserError(
            f"{annotations.file} has {len(annotations.category_ids)} categories, but the detector "
            f"{num_classes}: it was trained on other data. Register the annotations that it was "
            "trained on."
        )
    return annotations


def audit_run(
    cfg: CfgNode, annotations: Annotations, *, tick: Callable[[int], None] = lambda done: None
) -> Audit:
    """Audit the annotations that a detector was trained on.

    Args:
        cfg: the run's, with the checkpoint in ``MODEL.WEIGHTS``.
        annotations: see :func:`training_annotations`.
        tick: is called after each picture with how many are done.

    Raises:
        UserError: the checkpoint or a picture can't be read, or the detector has not learned
            enough to judge.
    """
    return audit_annotations(gather_evidence(build_judge(cfg), annotations, tick=tick), annotations)


def audit_annotations(evidence: Evidence, annotations: Annotations) -> Audit:
    """Judge all annotations by the evidence about them."""
    duplicates, earlier = find_duplicates(annotations)
    return Audit(
        annotations,
        find_wrong_classes(
            evidence.log_probs, evidence.appearance, annotations.classes, annotations.image
        ),
        find_misplaced_boxes(evidence, annotations.image),
        find_missing_objects(evidence, annotations),
        duplicates,
        earlier,
    )
