"""Figure 5: the shares behind the bars."""

import numpy as np
import pytest

from swn_d2 import UserError
from swn_d2.analysis.iou_shares import BINS, draw_iou_shares, iou_shares
from tests.analysis.samples import random_records, record, run_folder


def test_shares_are_those_computed_by_hand():
    samples = record(
        0,
        iou=[0.0, 0.5, 0.55, 0.75, 0.9, 1.0],
        cls_loss=[1, 2, 1, 4, 1, 3],
        cls_weight=[2, 1, 2, 0.5, 0, 2],
        box_loss=[1, 0, 0, 0, 0, 3],
    )
    # Weighted: 2 | 2 + 2 | - | 2 | - | 0 + 6, of 14; without weights 1 | 3 | - | 4 | - | 4, of 12.
    weighted = iou_shares([samples], "cls")
    np.testing.assert_allclose(weighted, np.array([2, 4, 0, 2, 0, 6]) / 0.14, rtol=1e-6)
    plain = iou_shares([samples], "cls", weighted=False)
    np.testing.assert_allclose(plain, np.array([1, 3, 0, 4, 0, 4]) / 0.12, rtol=1e-6)
    np.testing.assert_allclose(iou_shares([samples], "box"), [25, 0, 0, 0, 0, 75], rtol=1e-6)


def test_a_label_weight_is_of_a_part_of_the_loss():
    samples = record(
        0,
        iou=[0.55, 0.95],
        cls_loss=[4, 2],
        cls_weight=[1, 2],
        label_loss=[3, 1],
        label_weight=[0, 2],
    )
    # 4 - 3 of the first and 2 * (2 + 1) of the second; without weights 4 and 2.
    np.testing.assert_allclose(iou_shares([samples], "cls"), np.array([0, 1, 0, 0, 0, 6]) / 0.07)
    plain = iou_shares([samples], "cls", weighted=False)
    np.testing.assert_allclose(plain, np.array([0, 4, 0, 0, 0, 2]) / 0.06)


def test_bins_include_their_lower_edges():
    ious = [0.49, 0.5, 0.59, 0.6, 0.69, 0.7, 0.79, 0.8, 0.89, 0.9, 1.0]
    bins = [iou_shares([record(0, iou=[iou], cls_loss=[1])], "cls").argmax() for iou in ious]
    assert bins == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_some_samples_stand_for_all_of_their_iteration():
    few = record(0, iou=[0.55, 0.55], cls_loss=[1, 1], num_positives=30)
    all_of_them = record(1, iou=[0.95] * 5, cls_loss=[2] * 5, num_positives=5)
    # 30 * 1 against 5 * 2.
    np.testing.assert_allclose(iou_shares([few, all_of_them], "cls"), [0, 75, 0, 0, 0, 25])


@pytest.mark.parametrize("task", ["cls", "box"])
@pytest.mark.parametrize("weighted", [True, False])
def test_shares_sum_to_100(task, weighted):
    records = list(random_records(range(20), weighted=("cls", "box")))
    shares = iou_shares(records, task, weighted=weighted)
    assert shares.shape == (len(BINS) - 1,) and (shares > 0).all()
    assert shares.sum() == pytest.approx(100, rel=1e-9)


def test_without_loss_there_are_no_shares():
    nothing = record(0, iou=[], cls_loss=[])
    assert iou_shares([nothing], "cls").tolist() == [0] * 6
    # An IoU that rounding puts above 1 is not lost.
    assert iou_shares([nothing, record(1, iou=[1.0000001], cls_loss=[1])], "cls")[-1] == 100


def test_bars_are_of_the_early_and_the_late_records(tmp_path):
    records = list(random_records(range(0, 100, 2)))
    swn, base = run_folder(tmp_path / "swn", records), run_folder(tmp_path / "base", [])
    figure = draw_iou_shares([base, swn])
    axes = np.array(figure.axes).reshape(2, 2)
    for row, task in enumerate(("cls", "box")):
        for axis, some in zip(axes[row], (records[5:10], records[45:50]), strict=True):
            heights = [bar.get_height() for bar in axis.patches]
            np.testing.assert_allclose(heights, iou_shares(some, task), rtol=1e-2)  # rounded file
            marks = [segment[0, 1] for line in axis.collections for segment in line.get_segments()]
            plain = iou_shares(some, task, weighted=False)
            np.testing.assert_allclose(marks, plain if task == "box" else [], rtol=1e-2)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(UserError, match="cannot read the recording"):
        draw_iou_shares([run_folder(tmp_path / "a", [])])
    empty = [record(i, iou=[], cls_loss=[], box_loss=[]) for i in range(10)]
    with pytest.raises(UserError, match="recording of b has no positives"):
        draw_iou_shares([run_folder(tmp_path / "b", empty)])
