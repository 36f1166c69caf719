import numpy as np
from sklearn.metrics import roc_auc_score

from swn_d2.audit.misplaced_boxes import find_misplaced_boxes, pairwise_ious

from .synthetic import PER_PICTURE, box_evidence


def find(evidence):
    return find_misplaced_boxes(evidence, np.arange(len(evidence.placed)) // PER_PICTURE)


def test_jittered_boxes_are_found():
    evidence, wrong = box_evidence(0.3)
    found = find(evidence)
    assert roc_auc_score(wrong, found.suspicion) > 0.95
    assert 0.2 < found.share.value < 0.55
    np.testing.assert_array_equal(found.suggestion, evidence.refined[:, 0, 0])


def test_good_boxes_are_not_suspicious():
    found = find(box_evidence(0)[0])
    assert found.share.value < 0.03 and found.suspicion.mean() < 0.05


def test_a_detector_that_can_not_tell_suspects_nothing():
    for share in (0, 0.3):
        found = find(box_evidence(share, precision=0.5)[0])
        assert not found.suspicion.any() and found.share == (0, 0, 1)


def test_too_few_pictures_say_nothing():
    found = find(box_evidence(0.3, number=4 * PER_PICTURE)[0])
    assert not found.suspicion.any() and found.share == (0, 0, 1)


def test_iou():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], dtype=np.float32)
    expected = [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]]
    np.testing.assert_allclose(pairwise_ious(boxes[:, None], boxes), expected, rtol=1e-6)
    assert pairwise_ious(boxes[0], np.zeros(4)) == 0
