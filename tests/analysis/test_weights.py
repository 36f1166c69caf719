"""The weights over time: the bands and the histogram."""

import numpy as np
import pytest

from swn_d2 import UserError
from swn_d2.analysis.weights import QUANTILES, draw_weights, log2_shares, weight_bands
from tests.analysis.samples import random_records, record, run_folder


def test_bands_are_the_quantiles_of_each_record():
    records = list(random_records(range(0, 50, 5)))
    iterations, bands = weight_bands(records, "box_weight")
    assert iterations.tolist() == list(range(0, 50, 5))
    expected = [
        np.quantile(r.positives["box_weight"], (0.05, 0.25, 0.5, 0.75, 0.95)) for r in records
    ]
    np.testing.assert_allclose(bands, np.array(expected).T, rtol=1e-6)


def test_many_records_are_pooled():
    records = [record(i, box_weight=[i, i + 1.0]) for i in range(10)]
    iterations, bands = weight_bands(records, "box_weight", num_points=3)
    # The samples of iterations 0-3, 4-6 and 7-9.
    assert iterations.tolist() == [1.5, 5, 8]
    pooled = [[0, 1, 1, 2, 2, 3, 3, 4], [4, 5, 5, 6, 6, 7], [7, 8, 8, 9, 9, 10]]
    np.testing.assert_allclose(bands, np.array([np.quantile(p, QUANTILES) for p in pooled]).T)


def test_bands_of_negatives_and_of_records_without_samples():
    records = [record(0, box_weight=[]), record(1, negatives=[2.0, 4.0], box_weight=[])]
    assert weight_bands(records, "box_weight")[1].shape == (5, 0)
    iterations, bands = weight_bands(records, "cls_weight", "negatives")
    assert iterations.tolist() == [1] and bands[2].tolist() == [3]


def test_the_histogram_has_a_bin_around_weight_1_and_loses_nothing():
    weights = np.array([1.0, 1.05, 0.96, 4.0, 0.25, 0.0, 0.001, 2.0])
    edges, shares = log2_shares(weights)
    assert shares.sum() == pytest.approx(100)
    np.testing.assert_allclose(np.diff(edges), 1 / 6)

    def share_at(weight):
        at = np.log2(weight)
        return shares[(edges[:-1] <= at) & (at < edges[1:])].item()

    # 2**(1/12) = 1.06 and its inverse 0.944 bound the bin around 1; what is below 1/64 is there.
    assert share_at(1) == pytest.approx(100 * 3 / 8)
    assert share_at(1 / 64) == pytest.approx(100 * 2 / 8)
    assert share_at(4) == share_at(1 / 4) == share_at(2) == pytest.approx(100 / 8)
    # No bin at the ends is empty, wherever in its bin the first and the last weight are.
    for ends in ([0.93, 1.9], [0.95, 2.1]):
        assert log2_shares(np.array(ends))[1][[0, -1]].tolist() == [50, 50]


def rows(figure):
    return [axis.get_title(loc="left") for axis in figure.axes[::2]]


def test_rows_are_the_tasks_with_weights(tmp_path):
    records = list(random_records(range(20)))
    swn = run_folder(tmp_path / "swn", records)
    figure = draw_weights([swn])
    assert rows(figure) == ["weights of the box loss"]
    bands, histogram = figure.axes
    (median, _), expected = bands.get_lines(), weight_bands(swn.recording, "box_weight")
    np.testing.assert_allclose(median.get_xdata(), expected[0])
    np.testing.assert_allclose(median.get_ydata(), np.log2(expected[1][2]))
    last = np.concatenate([r.positives["box_weight"] for r in swn.recording[18:]])
    widths = [bar.get_width() for bar in histogram.patches]
    np.testing.assert_allclose(widths, log2_shares(last)[1])

    both = [record(i, cls_weight=[0.5, 2], negatives=[0.1, 0.0]) for i in range(20)]
    figure = draw_weights([swn, run_folder(tmp_path / "focal", both)])
    assert rows(figure) == [
        "focal, weights of the classification loss, positives",
        "focal, weights of the classification loss, negatives",
        "swn, weights of the box loss",
    ]
    cascade = [
        record(i, stage=f"stage{k}", box_weight=[2**k] * 2) for i in range(9) for k in (1, 2)
    ]
    figure = draw_weights([run_folder(tmp_path / "cascade", cascade)])
    assert rows(figure) == [f"stage {k}, weights of the box loss" for k in (1, 2)]
    medians = [axis.get_lines()[0].get_ydata().tolist() for axis in figure.axes[::2]]
    assert medians == [[k] * 9 for k in (1, 2)]


def test_what_is_missing_is_said(tmp_path):
    plain = run_folder(tmp_path / "plain", list(random_records(range(5), weighted=())))
    with pytest.raises(UserError, match="weights of every task are 1 in plain"):
        draw_weights([plain])
    with pytest.raises(UserError, match="cannot read the recording"):
        draw_weights([run_folder(tmp_path / "without", [])])
