"""Which annotations have a wrong class."""

from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .shares import Estimate, mean_shifted_to, share_of

__all__ = ["WrongClasses", "find_wrong_classes"]

_FOLDS = 5
_INVERSE_PENALTY = 0.2  # scikit-learn's C
_CLEAR = 1 / 3  # of the objects, those that the detector is surest of
_LARGEST_SHARE = 0.6  # beyond it the detector is more likely to be wrong than the annotations
_FEWEST = 50  # annotations


@dataclass(frozen=True)
class WrongClasses:
    """What is known of the classes of N annotations.

    Attributes:
        suspicion: (N,) probability that the annotated class is wrong.
        probs: (N, K) probabilities of what the class really is, the annotation being known.
        share: of the wrong classes among all.
    """

    suspicion: np.ndarray
    probs: np.ndarray
    share: Estimate


def find_wrong_classes(
    log_probs: np.ndarray, classes: np.ndarray, pictures: np.ndarray
) -> WrongClasses:
    """Weigh what the detector says of each object against how often annotations are wrong.

    1. The detector's probabilities become calibrated ones of the *annotated* class, by a softmax
       regression from their logarithms ("matrix scaling", Guo et al. 2017, Sec. 4.2), for each
       picture with one fitted to the annotations of other pictures.
    2. The share of wrong classes: of the third of the objects whose likeliest class leaves the
       second one farthest behind, those with another class annotated. There the detector errs
       hardly ever.
    3. With wrong classes spread evenly, Bayes' rule gives what the class is, and so the
       probability that it is not the annotated one.
    4. The detector has learned from the wrong annotations as well, and believes them a little:
       the logits are shifted until the mean of all is the share.

    Args:
        log_probs: (N, K) logarithms of the detector's probabilities.
        classes: (N,) as they are annotated.
        pictures: (N,) the picture of each.

    Raises:
        UserError: there are too few annotations, or the detector disagrees with most of them.
    """
    num_objects, num_classes = log_probs.shape
    present = np.unique(classes)
    if len(present) < 2:  # nothing to be confused with
        probs = np.zeros((num_objects, num_classes))
        probs[np.arange(num_objects), classes] = 1
        return WrongClasses(np.zeros(num_objects), probs, Estimate(0.0, 0.0, 0.0))
    if num_objects < _FEWEST or len(np.unique(pictures)) < _FOLDS:
        raise UserError(
            f"there are {num_objects} annotations in {len(np.unique(pictures))} pictures, too few "
            f"to learn from what is usual; audit a data set with at least {_FEWEST} in {_FOLDS}."
        )
    noisy = _calibrated(log_probs, classes, pictures)
    second, first = np.sort(noisy, axis=1)[:, -2:].T
    is_clear = first / second >= np.quantile(first / second, 1 - _CLEAR)
    disagrees = noisy.argmax(axis=1) != classes
    share = share_of(int(disagrees[is_clear].sum()), int(is_clear.sum()))
    # With K classes, (K - 1) / K of those of a guesser are wrong.
    if share.value > min(_LARGEST_SHARE, 0.9 * (1 - 1 / num_classes)):
        raise UserError(
            f"the detector disagrees with {share.value:.0%} of the classes that it is surest of: "
            "it has not learned enough to judge annotations. Train it longer."
        )
    # P(annotated k) = (1 - s) P(is k) + s (1 - P(is k)) / (K - 1), solved for P(is k).
    evenly = share.value / (num_classes - 1)
    probs = np.clip((noisy - evenly) / (1 - share.value - evenly), 1e-4, None)
    probs /= probs.sum(axis=1, keepdims=True)
    rows = np.arange(num_objects)
    right = (1 - share.value) * probs[rows, classes]
    wrong = evenly * (1 - probs[rows, classes])
    suspicion = mean_shifted_to(wrong / (right + wrong), share.value)
    others = probs.copy()
    others[rows, classes] = 0
    others /= others.sum(axis=1, keepdims=True)
    others *= suspicion[:, None]
    others[rows, classes] = 1 - suspicion
    return WrongClasses(suspicion, others, share)


def _calibrated(log_probs: np.ndarray, classes: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """(N, K) probabilities of what is annotated, each by annotations of other pictures; of classes
    that no other pictures have, what the detector says."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    centred = log_probs - log_probs.mean(axis=1, keepdims=True)
    result = np.exp(log_probs.astype(np.float64))
    result /= result.sum(axis=1, keepdims=True)
    for fitted, judged in GroupKFold(_FOLDS).split(centred, groups=pictures):
        known, probs = np.unique(classes[fitted]), np.ones((len(judged), 1))
        if len(known) > 1:
            model = LogisticRegression(C=_INVERSE_PENALTY, max_iter=1000)
            probs = model.fit(centred[fitted], classes[fitted]).predict_proba(centred[judged])
        places = np.ix_(judged, known)
        result[places] = probs * result[places].sum(axis=1, keepdims=True)
    result = np.maximum(result, 1e-6)
    return result / result.sum(axis=1, keepdims=True)
