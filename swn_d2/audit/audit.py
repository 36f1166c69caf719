"""The audit: for every annotation how likely it is wrong, and how."""

import os
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from torch import nn

from ..config import num_classes
from ..engine import check_weights
from ..errors import UserError
from ..own.notes import check_learned_classes
from .annotations import Annotations
from .appearance import build_viewer, gather_appearance
from .evidence import Evidence, build_judge, gather_evidence
from .misplaced_boxes import MisplacedBoxes, find_misplaced_boxes, find_unexpected_boxes
from .objects import MissingObjects, find_duplicates, find_missing_objects
from .placements import gather_placements
from .progress import Progress, silent
from .shares import Estimate
from .wrong_classes import (
    WrongClasses,
    can_be_confused,
    check_are_enough,
    find_wrong_classes,
)

__all__ = [
    "DUPLICATE",
    "KINDS",
    "MISPLACED_BOX",
    "MISSING_OBJECT",
    "WRONG_CLASS",
    "Audit",
    "audit_before_training",
    "audit_run",
    "training_annotations",
]

WRONG_CLASS, MISPLACED_BOX, DUPLICATE = "wrong class", "misplaced box", "duplicate"
#: What can be wrong with an annotation.
KINDS = (WRONG_CLASS, MISPLACED_BOX, DUPLICATE)
MISSING_OBJECT = "missing object"


@dataclass(frozen=True)
class Audit:
    """What is known of the annotations that a detector was trained on, or will be.

    Attributes:
        annotations: the N that were examined.
        classes, boxes, missing: what is known of each kind.
        duplicates: (N,) see :func:`find_duplicates`.
        earlier: (N,) index of the annotation that each duplicate repeats, -1 for others.
        before_training: no detector has been asked, so nothing is known of missing objects.
        localised: localisers have judged, too. Before a training, nothing is known of boxes without
            them.
    """

    annotations: Annotations
    classes: WrongClasses
    boxes: MisplacedBoxes
    missing: MissingObjects
    duplicates: np.ndarray
    earlier: np.ndarray
    before_training: bool = False
    localised: bool = False

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
        """Kind that was looked for -> the number to expect. Of badly placed boxes see
        :class:`.MisplacedBoxes`; of missing objects nothing but the sum of the suspicions is
        known."""
        number, missing = len(self.annotations.ids), float(self.missing.suspicion.sum())
        expected = {WRONG_CLASS: self.classes.share.times(number)}
        if self.localised or not self.before_training:
            expected[MISPLACED_BOX] = self.boxes.share.times(number)
        expected[DUPLICATE] = Estimate(*3 * (float((self.duplicates > 0).sum()),))
        if not self.before_training:
            expected[MISSING_OBJECT] = Estimate(missing, missing, missing)
        return expected


def training_annotations(
    cfg: CfgNode, dataset: str | None = None, *, before_training: bool = False
) -> Annotations:
    """The annotations that a detector was trained on, or will be.

    Args:
        cfg: the run's.
        dataset: the name of the data set, if ``DATASETS.TRAIN`` has several.
        before_training: no detector judges them, so they may have other classes than it.

    Raises:
        UserError: the data set can't be read, there are several, or it has other classes than the
            detector, or in another order than it learned them.
    """
    names = cfg.DATASETS.TRAIN
    if dataset is None and len(names) != 1:
        raise UserError(
            f"DATASETS.TRAIN has {len(names)} data sets ({', '.join(names)}); name the one to "
            "audit with --dataset."
        )
    annotations = Annotations.of_dataset(dataset or names[0])
    if before_training:
        return annotations
    number = len(annotations.category_ids)
    _, expected = num_classes(cfg)
    if number != expected:
        raise UserError(
            f"{annotations.file} has {number} categories, but the detector {expected}: it was "
            "trained on other data. Register the annotations that it was trained on."
        )
    learned_in = os.path.dirname(cfg.MODEL.WEIGHTS)
    check_learned_classes(learned_in, {dataset or names[0]: annotations.class_names}, remedy="")
    return annotations


def audit_run(
    cfg: CfgNode,
    annotations: Annotations,
    start_weights: str = "",
    *,
    localise: bool = True,
    progress: Progress = silent,
) -> Audit:
    """Audit the annotations that a detector was trained on.

    Args:
        cfg: the run's, with the checkpoint in ``MODEL.WEIGHTS``.
        annotations: see :func:`training_annotations`.
        start_weights: what the training started from: a backbone that has not seen the annotations
            judges them better. If there is none, the trained one looks at the objects.
        localise: whether localisers judge classes and boxes, too, which are trained for it.
        progress: goes through the pictures, or a localiser's steps, in each of several rounds.

    Raises:
        UserError: there are too few annotations, a picture is missing or not as they say, the
            weights can't be read, a localiser's training diverges, or the detector has not learned
            enough to judge.
    """
    check_are_enough(annotations.classes, annotations.image)
    annotations.check_pictures()
    judge = build_judge(cfg)
    viewer = judge.model
    if start_weights:
        cfg = cfg.clone()
        cfg.MODEL.WEIGHTS = start_weights
        viewer = build_viewer(cfg)
    evidence = gather_evidence(judge, annotations, progress=progress)
    how = {"has_learned": viewer is judge.model, "localise": localise, "progress": progress}
    return _audit(evidence, viewer, annotations, cfg.INPUT.FORMAT, **how)


def audit_before_training(
    cfg: CfgNode,
    annotations: Annotations,
    *,
    localise: bool = True,
    progress: Progress = silent,
) -> Audit:
    """Audit the classes and boxes of annotations, and find duplicates, by a pretrained backbone and
    localisers that start from it.

    Args:
        cfg: of the training to be, with the weights that it starts from in ``MODEL.WEIGHTS``.
        annotations: see :func:`training_annotations`.
        localise: whether localisers judge classes and boxes, too, which are trained for it.
            Without them nobody judges boxes.
        progress: goes through the pictures, or a localiser's steps, in each of several rounds.

    Raises:
        UserError: there are too few annotations, a picture is missing or not as they say, there are
            no such weights, or they can't be read, or a localiser's training diverges.
    """
    if not cfg.MODEL.WEIGHTS:
        raise UserError(
            "MODEL.WEIGHTS is empty: before a training, a pretrained backbone judges the "
            "annotations; give its weights with --weights FILE."
        )
    check_weights(cfg)
    check_are_enough(annotations.classes, annotations.image)
    annotations.check_pictures()
    viewer = build_viewer(cfg)
    how = {"has_learned": False, "localise": localise, "progress": progress}
    return _audit(None, viewer, annotations, cfg.INPUT.FORMAT, **how)


def _audit(
    evidence: Evidence | None,
    viewer: nn.Module,
    annotations: Annotations,
    input_format: str,
    *,
    has_learned: bool,
    localise: bool,
    progress: Progress,
) -> Audit:
    """What both ways of an audit share.

    Args:
        evidence: what a trained detector makes of the annotations, if there is one.
        viewer: a detector with the backbone that looks at objects.
        has_learned: whether that was trained on the annotations.
    """
    seen = annotations, input_format
    before_training = evidence is None
    appearance = np.zeros((len(annotations.ids), 0, 0))
    if can_be_confused(annotations.classes):
        appearance = gather_appearance(viewer, *seen, has_learned=has_learned, progress=progress)

    def judge_classes(log_probs: np.ndarray) -> WrongClasses:
        return find_wrong_classes(
            log_probs,
            appearance,
            annotations.classes,
            annotations.image,
            before_training=before_training,
        )

    by_detector = np.zeros((0, len(annotations.ids), len(annotations.category_ids)), np.float32)
    if not before_training:
        by_detector = evidence.log_probs[None]
    if not (localise and before_training):
        # Where localisers follow, for the error alone: a detector that has not learned enough is
        # told within minutes.
        classes = judge_classes(by_detector)
    if localise:
        placements = gather_placements(viewer, *seen, progress=progress)
        classes = judge_classes(np.concatenate([by_detector, placements.log_probs[None]]))
        boxes = find_unexpected_boxes(placements, annotations.image)
    elif before_training:
        boxes = MisplacedBoxes.unknown(annotations.boxes)
    else:
        boxes = find_misplaced_boxes(evidence, annotations.image)
    if localise or not before_training:
        boxes = boxes.with_empty_ones(annotations.boxes)
    missing = MissingObjects.unknown()
    if not before_training:
        missing = find_missing_objects(evidence, annotations)
    return Audit(
        annotations,
        classes,
        boxes,
        missing,
        *find_duplicates(annotations),
        before_training=before_training,
        localised=localise,
    )
