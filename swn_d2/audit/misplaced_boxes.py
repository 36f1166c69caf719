"""Which annotations have a badly placed box."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from detectron2.structures import Boxes

from ..modeling.box_losses import matched_pairwise_iou
from .contrasts import Placements
from .evidence import Evidence
from .shares import Estimate, share_of

__all__ = ["FEWEST_PICTURES", "MisplacedBoxes", "find_misplaced_boxes", "find_unexpected_boxes"]

#: With annotations, to say anything of boxes; and the folds of the regression.
FEWEST_PICTURES = 5
_SMALLEST_AREA = 0.65  # under the ROC curve of decoys against annotated boxes
_ASSUMED_SHARE = 0.01  # of badly placed boxes, where no share can be found
_TAILS = (0.5, 0.2, 0.1)  # of the decoys, those that look worst


@dataclass(frozen=True)
class MisplacedBoxes:
    """What is known of the boxes of N annotations.

    Attributes:
        suspicion: (N,) probability that the box is badly placed.
        suggestion: (N, 4) float32, where the object is, XYXY in pixels; as annotated if nobody
            knows.
        share: of the badly placed boxes among all. Where nothing can be said it is 0, from 0 to 1.
            It comes from a bound: by localisers, which are near it, that is the share; by a
            detector it is what the suspicions add up to, and the bound its high end.
    """

    suspicion: np.ndarray
    suggestion: np.ndarray
    share: Estimate

    @classmethod
    def unknown(cls, boxes: np.ndarray) -> "MisplacedBoxes":
        """Nothing can be said; ``boxes``, (N, 4), are the suggestions."""
        return cls(np.zeros(len(boxes)), boxes, Estimate(0.0, 0.0, 1.0))

    def with_empty_ones(self, boxes: np.ndarray) -> "MisplacedBoxes":
        """What is known of ``boxes`` (N, 4) without a width or a height, however they were judged:
        they are wrong, and nobody knows where they should be."""
        is_empty = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
        if not is_empty.any():
            return self
        suspicion, share = np.where(is_empty, 1.0, self.suspicion), self.share
        if share.is_known:
            more = (suspicion - self.suspicion).mean()
            share = Estimate(*(min(x + more, 1.0) for x in share))
        suggestion = np.where(is_empty[:, None], boxes, self.suggestion)
        return MisplacedBoxes(suspicion, suggestion, share)


def find_misplaced_boxes(evidence: Evidence, pictures: np.ndarray) -> MisplacedBoxes:
    """Tell annotated boxes from decoys, whose sides were moved, by how far the detector moves them.

    A logistic regression, for each picture with one fitted to the others, says how much denser
    decoys lie at a place than annotated boxes do. Some annotated boxes are badly placed, too, and
    lie as decoys do: their share can be no larger than the ratio of annotated boxes to decoys
    anywhere, and is taken to be the smallest ratio of some tails. The low end of its interval times
    the ratio of the densities is the suspicion (as Elkan and Noto 2008 learn from positive and
    unlabelled data), and what these add up to is expected. Where the detector can hardly tell
    decoys from annotated boxes, that bound says nothing; what is left is the order, with the
    suspicions of a share of one in a hundred.

    Args:
        evidence: about N annotations.
        pictures: (N,) the picture of each.
    """
    suggestion = evidence.refined[:, 0, 0]
    if len(np.unique(pictures)) < FEWEST_PICTURES:
        return MisplacedBoxes.unknown(suggestion)
    features = _features(evidence.placed, evidence.refined)
    log_ratio = _log_ratios(features, pictures)
    if _area(log_ratio) < _SMALLEST_AREA:
        return _in_order(log_ratio, suggestion)
    # The decoys of a badly placed box are moved twice, and look worse than any annotated box.
    looks_good = log_ratio[:, 0] <= np.median(log_ratio[:, 0])
    bound = _smallest_ratio(log_ratio[:, 0], log_ratio[looks_good, 1:].ravel())
    suspicion = np.minimum(bound.low * np.exp(log_ratio[:, 0]), 1)
    # As by Jeffreys' rule, so that it is never nothing, which would say that nothing is known.
    value = (float(suspicion.sum()) + 0.5) / (len(suspicion) + 1)
    share = Estimate(value, 0.0, max(bound.high, value))
    return MisplacedBoxes(suspicion, suggestion, share)


def find_unexpected_boxes(placements: Placements, pictures: np.ndarray) -> MisplacedBoxes:
    """The same by what localisers say, which tell far better where a side is than a detector does.

    The decoys are those of all boxes: to choose some by how good their box looks would choose
    objects that are easy to place. Localisers tell decoys well, so that the bound is near the share
    and is taken itself, and not the low end of its interval. The ratio of the densities is an
    estimate and may be more than the share leaves room for, so the suspicion nears 1 and does not
    end there; the order stays.

    Args:
        placements: about N annotations.
        pictures: (N,) the picture of each.
    """
    suggestion, contrasts = placements.located, np.sort(placements.contrasts)
    if len(np.unique(pictures)) < FEWEST_PICTURES:
        return MisplacedBoxes.unknown(suggestion)
    features = np.concatenate([contrasts, contrasts**2], axis=-1)
    log_ratio = _log_ratios(features, pictures)
    if _area(log_ratio) < _SMALLEST_AREA:
        return _in_order(log_ratio, suggestion)
    share = _smallest_ratio(log_ratio[:, 0], log_ratio[:, 1:].ravel())
    # x / (1 + x^4)^(1/4): nearly x, as far as x is less than 1.
    log_suspicion = np.log(share.value) + log_ratio[:, 0]
    suspicion = np.exp(-np.logaddexp(0, -4 * log_suspicion) / 4)
    return MisplacedBoxes(suspicion, suggestion, share)


def _log_ratios(features: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """(N, 1 + D) logarithms of how much denser decoys lie than annotated boxes where each box does.

    Args:
        features: (N, 1 + D, F) of annotated boxes and decoys.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    num_objects, num_boxes = features.shape[:2]
    log_ratio = np.zeros((num_objects, num_boxes))
    is_decoy = np.tile(np.arange(num_boxes) > 0, num_objects)
    for fitted, judged in GroupKFold(FEWEST_PICTURES).split(features, groups=pictures):
        model = LogisticRegression(class_weight="balanced", max_iter=1000)
        mean, deviation = features[fitted].mean((0, 1)), features[fitted].std((0, 1)) + 1e-6
        scaled = (features - mean) / deviation
        model.fit(scaled[fitted].reshape(-1, scaled.shape[-1]), is_decoy[: len(fitted) * num_boxes])
        decisions = model.decision_function(scaled[judged].reshape(-1, scaled.shape[-1]))
        log_ratio[judged] = decisions.reshape(-1, num_boxes)
    return log_ratio


def _area(log_ratio: np.ndarray) -> float:
    """Under the ROC curve of decoys against annotated boxes."""
    from sklearn.metrics import roc_auc_score

    is_decoy = np.tile(np.arange(log_ratio.shape[1]) > 0, len(log_ratio))
    return float(roc_auc_score(is_decoy, log_ratio.ravel()))


def _in_order(log_ratio: np.ndarray, suggestion: np.ndarray) -> MisplacedBoxes:
    """No number can be said; suspicions as if a share that is assumed were badly placed."""
    suspicion = np.minimum(_ASSUMED_SHARE * np.exp(log_ratio[:, 0]), 1)
    return replace(MisplacedBoxes.unknown(suggestion), suspicion=suspicion)


def _features(placed: np.ndarray, refined: np.ndarray) -> np.ndarray:
    """(N, 1 + D, F) what tells how well a box is placed."""
    sizes = np.maximum(placed[..., 2:] - placed[..., :2], 1)
    columns = [np.log(sizes)]
    for step in range(refined.shape[2]):
        moved = np.abs(refined[:, :, step] - placed) / np.tile(sizes, 2)
        pair = (Boxes(torch.from_numpy(b.reshape(-1, 4))) for b in (placed, refined[:, :, step]))
        iou = matched_pairwise_iou(*pair).numpy().reshape(*placed.shape[:2], 1)
        columns += [np.sort(moved), iou]
    return np.nan_to_num(np.concatenate(columns, axis=-1), posinf=10, neginf=-10)


def _smallest_ratio(own: np.ndarray, decoys: np.ndarray) -> Estimate:
    """The smallest share of ``own`` beyond a tail's end, in that of ``decoys``."""
    estimates = []
    for tail in _TAILS:
        end = np.quantile(decoys, 1 - tail)
        share = share_of(int((own >= end).sum()), len(own))
        estimates.append(Estimate(*(min(x / tail, 1.0) for x in share)))
    return min(estimates, key=lambda estimate: estimate.value)
