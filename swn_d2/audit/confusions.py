"""Which class is annotated in place of which other one."""

from collections.abc import Collection

import numpy as np

__all__ = ["evenly", "learn_confusions", "posterior", "unconfused"]

_STEPS = 20
_SMALLEST = 1e-4  # probability of a class
# Of the errors of a class: from such that are nearly always the same to such that fall evenly.
_CONCENTRATIONS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, np.inf)


def evenly(share: float, num_classes: int) -> np.ndarray:
    """(K, K) P(annotated as j | is k) where a share is wrong and has any other class alike."""
    return _confusions(share, np.ones((num_classes, num_classes)))


def learn_confusions(
    probs: np.ndarray,
    classes: np.ndarray,
    share: float,
    folds: Collection[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """See which classes are taken for which (expectation maximisation, Dawid and Skene 1979, with
    one annotator and a classifier for the classes).

    A few errors are no pattern: those of a class are drawn from shares that have a Dirichlet prior
    around even ones. How concentrated it is, the annotations of other pictures decide, by how well
    they are predicted.

    Args:
        probs: (N, K) of what a class is, the annotation not being known.
        classes: (N,) as they are annotated.
        share: of wrong classes. It is kept: the ``probs`` can't tell errors from hard objects.
        folds: indices that are fitted, and those of the pictures that are predicted then.

    Returns:
        (K, K) P(annotated as j | is k).
    """

    def log_likelihood(concentration):
        total = 0.0
        for fitted, judged in folds:
            confusions = _learn(probs[fitted], classes[fitted], share, concentration)
            of_classes = (probs[judged] * confusions[:, classes[judged]].T).sum(axis=1)
            total += np.log(of_classes).sum()
        return total

    return _learn(probs, classes, share, max(_CONCENTRATIONS, key=log_likelihood))


def unconfused(probs: np.ndarray, confusions: np.ndarray) -> np.ndarray:
    """(N, K) probabilities of what a class is, given those of what it is annotated as: the inverse
    of the confusions, but never negative (Richardson 1972; Lucy 1974)."""
    result = probs
    for _ in range(_STEPS):
        result = result * ((probs / (result @ confusions)) @ confusions.T)
        result = np.maximum(result, _SMALLEST)
        result /= result.sum(axis=1, keepdims=True)
    return result


def posterior(probs: np.ndarray, classes: np.ndarray, confusions: np.ndarray) -> np.ndarray:
    """(N, K) probabilities of what a class is, the annotation being known: Bayes' rule.

    Args:
        probs: (N, K) the same, the annotation not being known.
        classes: (N,) as they are annotated.
        confusions: (K, K) P(annotated as j | is k).
    """
    result = probs * confusions[:, classes].T
    return result / result.sum(axis=1, keepdims=True)


def _learn(
    probs: np.ndarray, classes: np.ndarray, share: float, concentration: float
) -> np.ndarray:
    """(K, K) the confusions, given the concentration of the prior."""
    num_classes = probs.shape[1]
    confusions = evenly(share, num_classes)
    if np.isinf(concentration):
        return confusions
    for _ in range(_STEPS):
        errors = np.zeros_like(confusions)  # [k, j]: expected, of class k and annotated as j
        np.add.at(errors.T, classes, posterior(probs, classes, confusions))
        confusions = _confusions(share, errors + concentration / (num_classes - 1))
    return confusions


def _confusions(share: float, numbers: np.ndarray) -> np.ndarray:
    """(K, K) P(annotated as j | is k), with errors in proportion to the numbers (K, K) beside the
    diagonal."""
    others = numbers * (1 - np.eye(len(numbers)))
    confusions = share * others / others.sum(axis=1, keepdims=True)
    np.fill_diagonal(confusions, 1 - share)
    return confusions
