import numpy as np
import pytest

from swn_d2.audit.confusions import evenly, learn_confusions, posterior, unconfused

K, N = 5, 4000
FOLDS = [
    (np.flatnonzero(np.arange(N) % 2 != i), np.flatnonzero(np.arange(N) % 2 == i)) for i in (0, 1)
]
TAKEN_FOR = np.array([1, 2, 3, 4, 0])


def annotated(confusions, *, sure=0.9, seed=0):
    """(N, K) probabilities of what classes are, (N,) what they are, (N,) as annotated."""
    rng = np.random.default_rng(seed)
    is_class = rng.integers(K, size=N)
    # Calibrated: of those that look like a class, so many are of it.
    looks = np.where(rng.random(N) < sure, is_class, (is_class + rng.integers(1, K, N)) % K)
    probs = np.full((N, K), (1 - sure) / (K - 1))
    probs[np.arange(N), looks] = sure
    drawn = (rng.random(N)[:, None] > confusions[is_class].cumsum(axis=1)).sum(axis=1)
    return probs, is_class, drawn


def always_the_next(share):
    confusions = np.eye(K) * (1 - share)
    confusions[np.arange(K), TAKEN_FOR] = share
    return confusions


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_errors_that_fall_evenly_are_no_pattern(share):
    probs, _, classes = annotated(evenly(share, K))
    learned = learn_confusions(probs, classes, share, FOLDS)
    np.testing.assert_allclose(learned, evenly(share, K), atol=0.1 * share)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_a_pattern_is_learned(share):
    probs, _, classes = annotated(always_the_next(share))
    learned = learn_confusions(probs, classes, share, FOLDS)
    np.testing.assert_allclose(learned, always_the_next(share), atol=0.25 * share)
    np.testing.assert_allclose(learned.sum(axis=1), 1)


def test_one_error_is_no_pattern():
    probs, is_class, _ = annotated(np.eye(K), sure=0.999)
    classes = is_class.copy()
    classes[np.flatnonzero(probs[:, 0] > 0.9)[0]] = 1
    share = 0.01
    learned = learn_confusions(probs, classes, share, FOLDS)
    assert learned[0, 1] < 0.6 * share


def test_hard_objects_are_no_errors():
    """Of two classes that look alike, none is annotated as the other."""
    probs, is_class, _ = annotated(np.eye(K))
    pair = probs[:, :2].mean(axis=1)
    probs[:, 0] = probs[:, 1] = pair
    learned = learn_confusions(probs, is_class, 0.01, FOLDS)
    assert 1 - posterior(probs, is_class, learned)[np.arange(N), is_class].mean() < 0.015


def test_confusions_are_undone():
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.full(K, 0.3), size=N)
    for confusions in (evenly(0.3, K), always_the_next(0.3)):
        found = unconfused(probs @ confusions, confusions)
        assert np.abs(found - probs).mean() < 0.02 < np.abs(probs @ confusions - probs).mean()
        np.testing.assert_allclose(found.sum(axis=1), 1)
    # What no class can look like when it is annotated so does not become negative.
    found = unconfused(np.eye(K), evenly(0.3, K))
    assert (found > 0).all() and (np.diag(found) > 0.99).all()


def test_the_posterior_is_bayes_rule():
    probs = np.array([[0.5, 0.3, 0.2]])
    confusions = np.array([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.4, 0.0, 0.6]])
    found = posterior(probs, np.array([0]), confusions)
    np.testing.assert_allclose(found, [[0.45 / 0.53, 0, 0.08 / 0.53]])
