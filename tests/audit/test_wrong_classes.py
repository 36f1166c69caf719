import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from swn_d2.audit import wrong_classes
from swn_d2.audit.shares import mean_shifted_to, share_of
from swn_d2.audit.wrong_classes import find_wrong_classes
from swn_d2.errors import UserError

from .synthetic import class_evidence


def blind(log_probs):
    """No view of any object."""
    return np.zeros((len(log_probs), 0, 8), np.float32)


def test_what_objects_look_like_helps():
    log_probs, classes, wrong, pictures = class_evidence(0.3, skill=1)
    rng = np.random.default_rng(1)
    rows = np.arange(len(classes))
    # Two views, which know the class of nine in ten objects; most of what they show is noise.
    true = np.where(wrong, log_probs.argmax(axis=1), classes)
    views = rng.normal(size=(len(classes), 2, 100)).astype(np.float32)
    views[rows, :, true] += 4 * (rng.random(len(classes)) < 0.9)[:, None]
    units = np.where(np.arange(100) < 6, 0.01, 100)  # what shows nothing is far larger
    areas = [
        roc_auc_score(wrong, find_wrong_classes(log_probs[None], seen, classes, pictures).suspicion)
        for seen in (blind(log_probs), views, units * views - 7)
    ]
    assert areas[1] > areas[0] + 0.03
    assert areas[2] == pytest.approx(areas[1], abs=0.01)  # whatever the features' units are


def test_another_judge_helps():
    log_probs, classes, wrong, pictures = class_evidence(0.3, skill=1)
    true = np.where(wrong, log_probs.argmax(axis=1), classes)
    other = np.random.default_rng(1).normal(size=log_probs.shape).astype(np.float32)
    other[np.arange(len(classes)), true] += 3
    areas = []
    for judges in ([log_probs], [other], [log_probs, other]):
        found = find_wrong_classes(np.array(judges), blind(log_probs), classes, pictures)
        areas.append(roc_auc_score(wrong, found.suspicion))
    assert areas[2] > areas[0] + 0.03 and areas[2] > areas[1] + 0.003


@pytest.mark.parametrize("share", [0.05, 0.3])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_wrong_ones_are_found_and_counted(share, seed):
    log_probs, classes, wrong, pictures = class_evidence(share, seed=seed)
    found = find_wrong_classes(log_probs[None], blind(log_probs), classes, pictures)
    assert roc_auc_score(wrong, found.suspicion) > 0.93
    assert found.share.low - 0.01 <= wrong.mean() <= found.share.high + 0.01
    assert found.suspicion.mean() == pytest.approx(found.share.value, abs=1e-6)


def test_a_suspicion_is_a_probability():
    log_probs, classes, wrong, pictures = class_evidence(0.3, number=6000)
    suspicion = find_wrong_classes(log_probs[None], blind(log_probs), classes, pictures).suspicion
    for low, high in ((0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 0.9), (0.9, 1.01)):
        is_here = (suspicion >= low) & (suspicion < high)
        assert is_here.sum() > 50
        assert wrong[is_here].mean() == pytest.approx(suspicion[is_here].mean(), abs=0.2)


def test_what_is_right_is_not_suspicious_because_it_is_hard():
    log_probs, classes, _, pictures = class_evidence(0)
    found = find_wrong_classes(log_probs[None], blind(log_probs), classes, pictures)
    assert found.share.value < 0.01
    assert (found.suspicion > 0.5).mean() < 0.01


@pytest.mark.parametrize("before_training", [False, True])
def test_the_share_is_taken_from_the_clearest(monkeypatch, before_training):
    """Of the others, the hard ones look wrong, though none is."""
    log_probs, classes, _, pictures = class_evidence(0)
    shares = []
    for clear in (0.1, 1):
        name = "_CLEAR_TO_A_BACKBONE" if before_training else "_CLEAR"
        monkeypatch.setattr(wrong_classes, name, clear)
        arguments = log_probs[None], blind(log_probs), classes, pictures
        found = find_wrong_classes(*arguments, before_training=before_training)
        shares.append(found.share.value)
    assert shares[0] < 0.01 < 0.03 < shares[1]


def test_what_the_class_is():
    log_probs, classes, wrong, pictures = class_evidence(0.3, seed=3)
    found = find_wrong_classes(log_probs[None], blind(log_probs), classes, pictures)
    np.testing.assert_allclose(found.probs.sum(axis=1), 1, atol=1e-6)
    own = found.probs[np.arange(len(classes)), classes]
    np.testing.assert_allclose(own, 1 - found.suspicion, atol=1e-6)
    is_sure = found.suspicion > 0.8
    assert is_sure.sum() > 100
    assert (found.probs.argmax(axis=1) != classes)[is_sure].all()


def test_a_single_class_can_not_be_wrong():
    nothing = np.zeros((9, 1), np.float32)
    found = find_wrong_classes(nothing[None], blind(nothing), np.zeros(9, int), np.arange(9))
    assert not found.suspicion.any() and found.share == (0, 0, 0)
    np.testing.assert_array_equal(found.probs, np.ones((9, 1)))


def test_a_class_of_one_picture():
    log_probs, classes, _, pictures = class_evidence(0.1, num_classes=5)
    log_probs = np.hstack([log_probs, np.full((len(log_probs), 1), -9, np.float32)])
    classes[:2] = 5
    log_probs[0] = [-9, -9, -9, -9, -9, 0]  # the detector knows it
    log_probs[1] = [0, -9, -9, -9, -9, -9]
    suspicion = find_wrong_classes(log_probs[None], blind(log_probs), classes, pictures).suspicion
    assert np.isfinite(suspicion).all()
    assert suspicion[0] < 0.1 and suspicion[1] > 0.5
    # A localiser has not seen that class, and what it says of it means nothing.
    other = np.where(np.arange(6) == 5, np.float32(-8), log_probs)
    found = find_wrong_classes(np.stack([log_probs, other]), blind(other), classes, pictures)
    np.testing.assert_allclose(found.suspicion[:2], suspicion[:2], atol=0.1)
    found = find_wrong_classes(other[None], blind(other), classes, pictures, before_training=True)
    assert (found.suspicion[:2] < 0.5).all()


def test_two_classes():
    log_probs, classes, wrong, pictures = class_evidence(0.3, num_classes=2)
    found = find_wrong_classes(log_probs[None], blind(log_probs), classes, pictures)
    assert roc_auc_score(wrong, found.suspicion) > 0.9
    # Where every second one is wrong, there is nothing to be learned from them.
    log_probs, classes, _, pictures = class_evidence(0.5, num_classes=2)
    with pytest.raises(UserError, match="has not learned enough to judge"):
        find_wrong_classes(log_probs[None], blind(log_probs), classes, pictures)


def test_too_little_to_learn_from():
    log_probs, classes, _, pictures = class_evidence(0.1, number=40)
    with pytest.raises(UserError, match="40 annotations in 8 pictures, too few"):
        find_wrong_classes(log_probs[None], blind(log_probs), classes, pictures)


def test_a_detector_that_has_learned_nothing():
    log_probs, classes, _, pictures = class_evidence(0, skill=0, memorised=0)
    with pytest.raises(UserError, match="the detector disagrees with .* Train it longer"):
        find_wrong_classes(log_probs[None], blind(log_probs), classes, pictures)


@pytest.mark.parametrize("before_training", [False, True])
def test_where_most_are_wrong_an_order_is_left(before_training):
    """Localisers have learned for half an hour until then, and boxes are judged as well."""
    log_probs, classes, wrong, pictures = class_evidence(0.65, memorised=0)
    judges = [log_probs] if before_training else [log_probs, log_probs]  # a localiser, too
    arguments = np.array(judges), blind(log_probs), classes, pictures
    found = find_wrong_classes(*arguments, before_training=before_training)
    assert found.share == (0, 0, 1)
    assert found.suspicion.mean() == pytest.approx(0.01, abs=1e-6)
    assert roc_auc_score(wrong, found.suspicion) > 0.8
    np.testing.assert_allclose(found.probs.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("before_training", [False, True])
def test_categories_without_an_annotation_change_nothing(before_training):
    log_probs, classes, _, pictures = class_evidence(0.1)
    number, used = len(classes), np.array([2, 5, 6, 30, 31, 79])  # of COCO's 80
    listed = np.random.default_rng(1).normal(size=(number, 80)).astype(np.float32)
    listed[:, used] = log_probs
    found, expected = (
        find_wrong_classes(
            *(judged[None], blind(judged), annotated, pictures), before_training=before_training
        )
        for judged, annotated in ((listed, used[classes]), (log_probs, classes))
    )
    np.testing.assert_array_equal(found.suspicion, expected.suspicion)
    np.testing.assert_array_equal(found.probs[:, used], expected.probs)
    assert found.share == expected.share and found.probs.sum() == pytest.approx(number)


def test_classes_of_one_picture_leave_the_others_their_probabilities():
    """Before a training: of thirty classes nothing can be learned, for each is in one picture."""
    log_probs, classes, wrong, pictures = class_evidence(0.1, number=300, num_classes=3)
    judged = np.hstack([log_probs, np.full((len(classes), 30), -9, np.float32)])
    first = np.arange(30) * 5  # of its picture
    annotated = classes.copy()
    annotated[first] = 3 + np.arange(30)
    found = find_wrong_classes(
        judged[None], blind(judged), annotated, pictures, before_training=True
    )
    others = np.setdiff1d(np.arange(len(classes)), first)
    assert roc_auc_score(wrong[others], found.suspicion[others]) > 0.9
    assert found.probs[others, 3:].sum(axis=1).mean() < 0.03
    assert (found.suspicion[first] < 0.5).all()  # nobody knows


def test_shares():
    estimate = share_of(0, 100)
    assert 0 <= estimate.low < estimate.value < estimate.high < 0.03
    assert share_of(50, 100).value == 0.5
    assert share_of(50, 100).times(10) == (5, *(10 * x for x in share_of(50, 100)[1:]))
    shifted = mean_shifted_to(np.array([0.1, 0.5, 0.9, 1.0, 0.0]), 0.3)
    assert shifted.mean() == pytest.approx(0.3) and (np.diff(shifted[:3]) > 0).all()


@pytest.mark.parametrize("before_training, number", [(True, 290), (False, 85)])
def test_how_many_of_few_are_wrong_can_not_be_told(before_training, number):
    """Who learned from few errs on clear ones, too: no number is said of less than 30 of these."""
    for more in (0, 20):
        log_probs, classes, wrong, pictures = class_evidence(0.2, number=number + more)
        arguments = log_probs[None], blind(log_probs), classes, pictures
        found = find_wrong_classes(*arguments, before_training=before_training)
        assert found.share.is_known == bool(more)
    assert roc_auc_score(wrong, found.suspicion) > 0.8
