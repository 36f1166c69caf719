"""Which class is annotated in place of which other one."""

import numpy as np

__all__ = ["evenly", "learn_confusions", "posterior", "unconfused"]

_STEPS = 20
_SMALLEST = 1e-4  # probability of a class
_CONCENTRATIONS = np.logspace(-1, 4, 51)


def evenly(share: float, num_classes: int) -> np.ndarray:
    """(K, K) P(annotated as j | is k) where a share is wrong and has any other class alike."""
    confusions = np.full((num_classes, num_classes), share / (num_classes - 1))
    np.fill_diagonal(confusions, 1 - share)
    return confusions


def learn_confusions(probs: np.ndarray, classes: np.ndarray, start: np.ndarray) -> np.ndarray:
    """See which classes are taken for which, given how many are wrong (expectation maximisation,
    Dawid and Skene 1979, with one annotator and a classifier for the classes).

    A few errors are no pattern: those of a class are drawn from shares that have a Dirichlet prior
    around even ones, whose concentration is the one that makes the errors of all classes likeliest
    (empirical Bayes). So where errors fall evenly, ``start`` comes back.

    Args:
        probs: (N, K) of what a class is, the annotation not being known.
        classes: (N,) as they are annotated.
        start: (K, K), see :func:`evenly`; its share of wrong classes is kept, which the ``probs``
            can't tell from hard objects.

    Returns:
        (K, K) P(annotated as j | is k).
    """
    num_classes = len(start)
    share, confusions = 1 - start[0, 0], start
    for _ in range(_STEPS):
        what_it_is = posterior(probs, classes, confusions)
        errors = np.zeros_like(start)  # [k, j]: expected, of class k and annotated as j
        np.add.at(errors.T, classes, what_it_is)
        np.fill_diagonal(errors, 0)
        alike = _likeliest_concentration(errors) / (num_classes - 1)
        shares = errors + alike
        np.fill_diagonal(shares, 0)
        confusions = share * shares / shares.sum(axis=1, keepdims=True)
        np.fill_diagonal(confusions, 1 - share)
    return confusions


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


def _likeliest_concentration(errors: np.ndarray) -> float:
    """Of a Dirichlet prior around even shares.

    Args:
        errors: (K, K) numbers, of which each row is one draw; none on the diagonal.
    """
    from scipy.special import gammaln  # with scikit-learn, where that is

    others = len(errors) - 1
    numbers = errors[~np.eye(len(errors), dtype=bool)].reshape(-1, others)
    totals = numbers.sum(axis=1)

    def log_likelihood(total):  # of the Dirichlet-multinomial distribution, but for a constant
        of_rows = gammaln(total) - gammaln(total + totals)
        of_numbers = gammaln(total / others + numbers) - gammaln(total / others)
        return of_rows.sum() + of_numbers.sum()

    return max(_CONCENTRATIONS, key=log_likelihood)
