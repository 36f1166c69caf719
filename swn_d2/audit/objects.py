"""Objects without an annotation, and objects with two."""

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_ioa, pairwise_iou
from torchvision.ops import nms

from ..evaluation.matching import match_detections
from ..evaluation.pictures import Objects
from .annotations import Annotations, split
from .evidence import Evidence

__all__ = ["MissingObjects", "find_duplicates", "find_missing_objects"]

# IoU with an annotation, of the same class and of another, from which a detection is of its object.
_TAKEN, _TAKEN_BY_ANOTHER = 0.4, 0.5
_FOUND = 0.5  # IoU with an annotation of its class from which a detection is right
_SAME = 0.5  # IoU from which two detections are of one object
_APART = 0.3  # IoU below which they are of two
_NUM_FEATURES = 5  # of a detection
_IN_CROWD = 0.5  # share of a detection's area in a crowd region
_DUPLICATE = 0.7  # IoU from which two annotations of a class may be of one object
_TAILS = (0.5, 0.3, 0.2, 0.1)  # of the right detections, those with the largest odds
_ROUNDS = 8  # after which the suspicions hardly change
_FEWEST = 20  # right detections, to learn how one looks


@dataclass(frozen=True)
class MissingObjects:
    """M places where there is no annotation, though there may be an object.

    Attributes:
        image: (M,) index of the picture.
        boxes: (M, 4) float32, XYXY in pixels.
        classes: (M,) the likeliest class of each.
        suspicion: (M,) probability that an annotation is missing.
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    suspicion: np.ndarray

    @classmethod
    def unknown(cls) -> "MissingObjects":
        """No place was looked at."""
        none = np.zeros(0, np.int64)
        return cls(none, np.zeros((0, 4), np.float32), none, np.zeros(0))


def find_missing_objects(evidence: Evidence, annotations: Annotations) -> MissingObjects:
    """Detections where nothing is annotated, and how likely each is an object.

    They are a mixture of objects that are not annotated and of mistakes. The former look like
    detections of annotated objects (as Elkan and Noto 2008 learn from positive and unlabelled
    data), objects being left out by chance. In rounds, as expectation-maximization does,

    1. a logistic regression tells objects from mistakes, a detection where nothing is annotated
       being as much of the one as it is likely an object, at first not at all;
    2. how many objects are missing, for each that is annotated and found, can be no more than the
       ratio of the two numbers of detections anywhere, and is taken to be the smallest ratio beyond
       some odds;
    3. with that number, the odds say anew how likely each is an object.
    """
    free, right, features = _sort_detections(evidence, annotations)
    boxes, classes = evidence.detections[free], evidence.detection_class[free]
    found = evidence.detection_image[free], boxes, classes
    if len(right) < _FEWEST or not len(free):
        return MissingObjects(*found, suspicion=np.zeros(len(free)))
    features /= np.maximum(features.std(axis=0), 1e-6)  # all are penalised alike
    places = features[free], features[right]
    suspicion = np.zeros(len(free))
    for _ in range(_ROUNDS):
        of_free, of_right = _fit(*places, suspicion)
        ratio = _number_missing(of_free, of_right)
        # The odds are of all objects; this is the share of them that is not annotated.
        odds = ratio / (1 + ratio) * np.exp(of_free)
        suspicion = odds / (1 + odds)
    return MissingObjects(*found, suspicion)


def find_duplicates(annotations: Annotations) -> tuple[np.ndarray, np.ndarray]:
    """Annotations whose box is nearly that of an earlier one of the same class in the picture.

    Returns:
        (N,) the IoU with that, 0 where it is less than 0.7: no probability, but large where it is
        likely; and (N,) the index of the earlier one, -1 where there is none.
    """
    suspicion = np.zeros(len(annotations.ids))
    earlier = np.full(len(annotations.ids), -1)
    for rows in annotations.by_picture():
        if len(rows) < 2:
            continue
        boxes, classes = annotations.boxes[rows], annotations.classes[rows]
        iou = pairwise_iou(_boxes(boxes), _boxes(boxes)).numpy()
        iou[classes[:, None] != classes] = 0
        iou = np.tril(iou, -1)
        best = iou.max(axis=1, initial=0)
        is_one = best >= _DUPLICATE
        suspicion[rows[is_one]] = best[is_one]
        earlier[rows[is_one]] = rows[iou.argmax(axis=1)[is_one]]
    return suspicion, earlier


def _sort_detections(evidence: Evidence, annotations: Annotations) -> tuple[np.ndarray, ...]:
    """The indices of detections where nothing is annotated, and of those of annotated objects; and
    (M, F) what tells objects from mistakes, of all."""
    crowds = annotations.crowd_boxes()
    free, right = [], []
    features = np.zeros((len(evidence.detections), _NUM_FEATURES))
    of_pictures = split(evidence.detection_image, len(annotations.images))
    for i, (own, found) in enumerate(zip(annotations.by_picture(), of_pictures, strict=True)):
        truth = Objects(annotations.boxes[own], annotations.classes[own], np.ones(len(own)))
        detections = Objects(
            evidence.detections[found],
            evidence.detection_class[found],
            evidence.detection_score[found],
        )
        match = match_detections(truth, detections, iou_threshold=_FOUND)
        right.append(found[match >= 0])
        boxes = _boxes(detections.boxes)
        iou = pairwise_iou(boxes, _boxes(truth.boxes)).numpy()
        same_class = detections.classes[:, None] == truth.classes
        is_free = (iou < np.where(same_class, _TAKEN, _TAKEN_BY_ANOTHER)).all(axis=1)
        if i in crowds:  # whose share of the second boxes this is
            is_free &= pairwise_ioa(_boxes(crowds[i]), boxes).numpy().max(axis=0) <= _IN_CROWD
        scores = torch.from_numpy(detections.scores[is_free])
        free.append(found[is_free][nms(boxes.tensor[is_free], scores, _SAME).numpy()])
        features[found] = _features(detections, truth, match, iou, same_class)
    return np.concatenate(free), np.concatenate(right), features


def _features(
    detections: Objects, truth: Objects, match: np.ndarray, iou: np.ndarray, same_class: np.ndarray
) -> np.ndarray:
    """(n, F) of a picture's detections: the score; the scores of other classes at their place, and
    of the same class elsewhere, for objects of a class are mostly together; and of the annotated
    objects but their own, the share within one of the same class, of which they may be a part, and
    the IoU with one of another class.

    No column is one that annotators may go by: the class, the size, and whether others of the class
    are *annotated* there. Those would tell more where objects are left out by chance, and acquit
    them where all of a class in a picture are left out, small ones, or one class more than others.

    Args:
        match: (n,) index of the own one, -1 where there is none.
        iou, same_class: (n, m) of each detection and annotated object.
    """
    boxes, scores = _boxes(detections.boxes), np.clip(detections.scores, 1e-4, 1 - 1e-4)
    beside = pairwise_iou(boxes, boxes).numpy()
    same_class_beside = detections.classes[:, None] == detections.classes
    is_not_own = np.arange(len(truth.classes)) != match[:, None]
    within = pairwise_ioa(_boxes(truth.boxes), boxes).numpy().T
    columns = [
        np.log(scores / (1 - scores)),
        (~same_class_beside & (beside >= _SAME)) @ scores,
        (same_class_beside & (beside < _APART)) @ scores,
        (within * (same_class & is_not_own)).max(axis=1, initial=0),
        (iou * ~same_class).max(axis=1, initial=0),
    ]
    return np.stack(columns, axis=1)


def _fit(free: np.ndarray, right: np.ndarray, likely: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) and (m,) logarithms of the odds that a detection is one of the right ones and the free
    ones that are objects, by a logistic regression.

    Args:
        free: (n, F) features of the detections where nothing is annotated.
        right: (m, F) features of those of annotated objects.
        likely: (n,) how likely each of ``free`` is an object.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=1000)
    rows = np.concatenate([free, free, right])
    weights = np.concatenate([1 - likely, likely, np.ones(len(right))])
    model.fit(rows, np.arange(len(rows)) >= len(free), weights)
    return model.decision_function(free), model.decision_function(right)


def _number_missing(free: np.ndarray, right: np.ndarray) -> float:
    """For each right detection, at most; of the logarithms of the odds."""
    ends = {tail: np.quantile(right, 1 - tail) for tail in _TAILS}
    return min(((free >= end).sum() + 0.5) / (tail * len(right)) for tail, end in ends.items())


def _boxes(boxes: np.ndarray) -> Boxes:
    return Boxes(torch.from_numpy(boxes))
