import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from swn_d2.audit.misplaced_boxes import find_misplaced_boxes

from .synthetic import PER_PICTURE, box_evidence


def find(evidence):
    return find_misplaced_boxes(evidence, np.arange(len(evidence.placed)) // PER_PICTURE)


def test_jittered_boxes_are_found():
    evidence, wrong = box_evidence(0.3)
    found = find(evidence)
    assert roc_auc_score(wrong, found.suspicion) > 0.95
    assert 0.27 < found.share.value < 0.55
    np.testing.assert_array_equal(found.suggestion, evidence.refined[:, 0, 0])


def test_good_boxes_are_not_suspicious():
    found = find(box_evidence(0)[0])
    assert found.share.value < 0.03 and found.suspicion.mean() < 0.05


def test_a_detector_that_can_hardly_tell_gives_an_order_and_no_number():
    for share in (0, 0.3):
        evidence, wrong = box_evidence(share, precision=0.25)
        found = find(evidence)
        assert found.share == (0, 0, 1) and found.suspicion.mean() < 0.02
        assert not share or roc_auc_score(wrong, found.suspicion) > 0.55


def test_too_few_pictures_say_nothing():
    found = find(box_evidence(0.3, number=4 * PER_PICTURE)[0])
    assert not found.suspicion.any() and found.share == (0, 0, 1)


def test_the_number_is_what_the_suspicions_say():
    """No more than a bound is known, so that as many may be wrong, or none."""
    for wrong in (0, 0.3):
        found = find(box_evidence(wrong)[0])
        assert found.share.low == 0 < found.share.value <= found.share.high
        expected = found.share.times(len(found.suspicion) + 1)
        assert expected.value == pytest.approx(found.suspicion.sum() + 0.5)
    # Also where it is rounded to tenths, as in audit.json, that is not what stands for unknown.
    assert round(find(box_evidence(0)[0]).share.times(1000).value, 1) > 0


def test_boxes_without_an_area():
    evidence, _ = box_evidence(0)
    boxes = evidence.placed[:, 0].copy()
    boxes[3, 2], boxes[5, 3] = boxes[3, 0], boxes[5, 1] - 1
    found, judged = find(evidence).with_empty_ones(boxes), find(evidence)
    assert set(np.flatnonzero(found.suspicion != judged.suspicion)) == {3, 5}
    assert (found.suspicion[[3, 5]] == 1).all()
    np.testing.assert_array_equal(found.suggestion[[3, 5]], boxes[[3, 5]])
    number = len(boxes)
    more = (found.suspicion - judged.suspicion).sum()
    assert found.share.value * number == pytest.approx(judged.share.value * number + more)
    assert more > 1.5
