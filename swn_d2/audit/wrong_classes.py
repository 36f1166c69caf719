"""Which annotations have a wrong class."""

from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .confusions import evenly, learn_confusions, posterior, unconfused
from .shares import Estimate, mean_shifted_to, share_of

__all__ = ["WrongClasses", "can_be_confused", "check_are_enough", "find_wrong_classes"]

_FOLDS = 5
_INVERSE_PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3)  # scikit-learn's C
_COMPONENTS = 60  # principal ones, of a view
_LARGEST_SHARE = 0.6  # beyond it the detector is more likely to be wrong than the annotations
_ASSUMED_SHARE = 0.01  # of wrong classes, where no share can be found
_FEWEST = 50  # annotations
# The part of the objects, those with the clearest class, that tells the share of wrong ones; and
# how many these must be, for who learned from few objects errs on clear ones, too.
_CLEAR, _CLEAR_TO_A_BACKBONE = 1 / 3, 0.1
_FEWEST_CLEAR = 30


@dataclass(frozen=True)
class WrongClasses:
    """What is known of the classes of N annotations.

    Attributes:
        suspicion: (N,) probability that the annotated class is wrong.
        probs: (N, K) probabilities of what the class really is, the annotation being known; 0 of
            classes without an annotation.
        share: of the wrong classes among all. Where nothing can be said it is 0, from 0 to 1.
    """

    suspicion: np.ndarray
    probs: np.ndarray
    share: Estimate


def can_be_confused(classes: np.ndarray) -> bool:
    """Whether annotations are of two classes or more, so that one can be taken for another."""
    return len(np.unique(classes)) > 1


def check_are_enough(classes: np.ndarray, pictures: np.ndarray) -> None:
    """Raise a :class:`UserError` if there are too few annotations to learn from what is usual.

    Args:
        classes, pictures: (N,) of the annotations.
    """
    number, num_pictures = len(classes), len(np.unique(pictures))
    if can_be_confused(classes) and (number < _FEWEST or num_pictures < _FOLDS):
        raise UserError(
            f"there are {number} annotations in {num_pictures} pictures, too few to learn from "
            f"what is usual; audit a data set with at least {_FEWEST} in {_FOLDS}."
        )


def find_wrong_classes(
    log_probs: np.ndarray,
    appearance: np.ndarray,
    classes: np.ndarray,
    pictures: np.ndarray,
    *,
    before_training: bool = False,
) -> WrongClasses:
    """Weigh what an object looks like against how often annotations are wrong.

    1. What the detector and localisers say of the object, and what that looks like to a backbone,
       become calibrated probabilities of the *annotated* class, by a softmax regression ("matrix
       scaling", Guo et al. 2017, Sec. 4.2; here on the principal components of the views as well).
       Each picture's is fitted to the annotations of other pictures, with the penalty that predicts
       them best.
    2. The share of wrong classes: of the part of the objects whose likeliest class leaves the
       second one farthest behind, those with another class annotated. There it errs hardly ever.
    3. With that share, and wrong classes spread evenly at first, Bayes' rule gives what the class
       is; that, which class is annotated in place of which (:func:`learn_confusions`); and that,
       by Bayes' rule again, the probability that the class is not the annotated one.
    4. The regression is fitted once more, with each annotation counting as much as it is likely
       right, and so no longer to the wrong ones. The confusions and Bayes' rule once more.
    5. The detector has learned from the wrong annotations as well, and believes them a little:
       the logits are shifted until the mean of all is the share.

    Where judges disagree with most of the clearest, they may be wrong, or the annotations; where
    the clearest are few, nobody has learned enough to err hardly ever. Then no number is said, and
    what is left is the order, with the suspicions of a share of one in a hundred. But a detector
    that judges alone and disagrees with most has not learned enough.

    Args:
        log_probs: (J, N, K) logarithms of the probabilities by J judges, the detector, if there is
            one, and then localisers; J may be 0.
        appearance: (N, V, C) V views of each object, in a backbone's features; V may be 0
            where J is not.
        classes: (N,) as they are annotated.
        pictures: (N,) the picture of each.
        before_training: there is no detector. Who was not trained for so long errs more often, so
            that the part of the objects in step 2 is smaller.

    Raises:
        UserError: there are too few annotations, or a detector that has not learned enough.
    """
    check_are_enough(classes, pictures)
    num_judges, num_objects, num_categories = log_probs.shape
    # Of a category without an annotation nothing can be learned.
    used, classes = np.unique(classes, return_inverse=True)
    what_it_is, share = np.ones((num_objects, len(used))), Estimate(0.0, 0.0, 0.0)
    suspicion = np.zeros(num_objects)
    if len(used) > 1:
        log_probs = log_probs[:, :, used]
        if before_training:
            prior = _prior(classes)
        else:
            prior = np.exp(log_probs[0].astype(np.float64))
        prior /= prior.sum(axis=1, keepdims=True)
        regression = _Regression(log_probs, appearance, classes, pictures, prior)
        clear = _CLEAR_TO_A_BACKBONE if before_training else _CLEAR
        is_alone = num_judges == 1 and not before_training
        suspicion, what_it_is, share = _weigh(regression, classes, clear, refuse=is_alone)
    probs = np.zeros((num_objects, num_categories))
    probs[:, used] = what_it_is
    return WrongClasses(suspicion, probs, share)


def _prior(classes: np.ndarray) -> np.ndarray:
    """(N, K) for classes that no other pictures have, of which only a detector can know anything:
    as rare as they are, but an object that is annotated as one is it as likely as any other."""
    rows, shares = np.arange(len(classes)), np.bincount(classes) / len(classes)
    prior = np.tile(shares, (len(classes), 1))
    prior[rows, classes] = np.maximum(shares[classes], 1 / len(shares))
    return prior


def _weigh(
    regression: "_Regression", classes: np.ndarray, clear: float, *, refuse: bool
) -> tuple[np.ndarray, np.ndarray, Estimate]:
    """(N,) suspicions, (N, K) probabilities of what the class is, and the share of wrong ones: from
    step 2 on.

    Args:
        clear: the part of the objects, those with the clearest class, that tells the share.
        refuse: raise an error if that is too large.
    """
    noisy = regression.predict(np.ones(len(classes)))
    rows, num_classes = np.arange(len(classes)), noisy.shape[1]
    second, first = np.sort(noisy, axis=1)[:, -2:].T
    is_clear = first / second >= np.quantile(first / second, 1 - clear)
    disagrees = noisy.argmax(axis=1) != classes
    share = share_of(int(disagrees[is_clear].sum()), int(is_clear.sum()))
    # With K classes, (K - 1) / K of those of a guesser are wrong.
    disagree_with_most = share.value > min(_LARGEST_SHARE, 0.9 * (1 - 1 / num_classes))
    if disagree_with_most or is_clear.sum() < _FEWEST_CLEAR:
        if disagree_with_most and refuse:
            raise UserError(
                f"the detector disagrees with {share.value:.0%} of the classes that it is surest "
                "of: it has not learned enough to judge annotations. Train it longer, or start "
                "from a better backbone."
            )
        return *_with_mean(noisy, classes, _ASSUMED_SHARE), Estimate(0.0, 0.0, 1.0)
    probs = unconfused(noisy, evenly(share.value, num_classes))
    confusions = learn_confusions(probs, classes, share.value, regression.folds)
    what_it_is = posterior(unconfused(noisy, confusions), classes, confusions)
    probs = regression.predict(what_it_is[rows, classes])
    confusions = learn_confusions(probs, classes, share.value, regression.folds)
    return *_with_mean(posterior(probs, classes, confusions), classes, share.value), share


def _with_mean(
    probs: np.ndarray, classes: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) suspicions and (N, K): the probabilities (N, K), shifted so that the mean share is of
    other classes than the annotated ones."""
    rows = np.arange(len(classes))
    suspicion = mean_shifted_to(1 - probs[rows, classes], share)
    shifted = probs.copy()
    shifted[rows, classes] = 0
    shifted *= suspicion[:, None] / shifted.sum(axis=1, keepdims=True)
    shifted[rows, classes] = 1 - suspicion
    return suspicion, shifted


class _Regression:
    """Softmax regressions that predict the class of an object, each from other pictures.

    Attributes:
        folds: for each, the indices of the objects that it is fitted to, and that it judges.
    """

    def __init__(
        self,
        log_probs: np.ndarray,
        appearance: np.ndarray,
        classes: np.ndarray,
        pictures: np.ndarray,
        prior: np.ndarray,
    ):
        """
        Args:
            log_probs, appearance, classes, pictures: see :func:`find_wrong_classes`.
            prior: (N, K) the probabilities of classes that no other pictures have.
        """
        from sklearn.decomposition import PCA
        from sklearn.model_selection import GroupKFold

        columns = list(log_probs - log_probs.mean(axis=2, keepdims=True))
        for view in appearance.transpose(1, 0, 2):
            deviation = view.std(axis=0)
            number = min(_COMPONENTS, *view.shape)
            components = PCA(number, whiten=True, random_state=0)
            columns.append(components.fit_transform(view / np.maximum(deviation, 1e-6)))
        self._features = np.hstack(columns).astype(np.float64)
        self._classes = classes
        self.folds = list(GroupKFold(_FOLDS).split(self._features, groups=pictures))
        self._prior = prior
        self._inverse_penalty = max(_INVERSE_PENALTIES, key=self._mean_log)

    def predict(self, weights: np.ndarray) -> np.ndarray:
        """(N, K) probabilities.

        Args:
            weights: (N,) how much each annotation counts.
        """
        return self._predict(self._inverse_penalty, weights)

    def _mean_log(self, inverse_penalty: float) -> float:
        """Of the probabilities of the annotations."""
        everywhere = np.ones(len(self._classes))
        probs = self._predict(inverse_penalty, everywhere)
        return np.log(probs[np.arange(len(probs)), self._classes]).mean()

    def _predict(self, inverse_penalty: float, weights: np.ndarray) -> np.ndarray:
        from sklearn.linear_model import LogisticRegression

        result = self._prior.copy()
        for fitted, judged in self.folds:
            known, probs = np.unique(self._classes[fitted]), np.ones((len(judged), 1))
            if len(known) > 1:
                model = LogisticRegression(C=inverse_penalty, max_iter=1000)
                model.fit(self._features[fitted], self._classes[fitted], weights[fitted])
                probs = model.predict_proba(self._features[judged])
            places = np.ix_(judged, known)
            result[places] = probs * result[places].sum(axis=1, keepdims=True)
        result = np.maximum(result, 1e-6)
        return result / result.sum(axis=1, keepdims=True)
