"""The statistics, against values worked by hand and the table of Student's t."""

import math

import pytest

from swn_d2.experiments.summary import Difference, Summary, half_width, paired_difference


@pytest.mark.parametrize(
    "n, quantile",  # 97.5 % points of Student's t with n - 1 degrees of freedom
    [(2, 12.706), (3, 4.303), (4, 3.182), (5, 2.776), (10, 2.262), (31, 2.042)],
)
def test_interval_against_the_t_table(n, quantile):
    # One value off by n from equal ones: the deviations are n - 1 once and -1 for the others, whose
    # squares sum to n (n - 1), so that the standard deviation is sqrt(n) and that of the mean 1.
    values = [5.0] * (n - 1) + [5.0 + n]
    assert half_width(values) == pytest.approx(quantile, abs=5e-4)  # the table has three decimals


def test_no_interval_for_a_single_seed():
    assert half_width([3.0]) is None
    assert half_width([]) is None
    summary = Summary("row", "bbox/AP", {1: 3.0}, None)
    assert (summary.mean, summary.std) == (3.0, None)


def test_mean_and_sample_standard_deviation():
    summary = Summary("row", "bbox/AP", {1: 1.0, 2: 2.0, 3: 6.0}, None)
    assert summary.mean == pytest.approx(3)
    assert summary.std == pytest.approx(math.sqrt((4 + 1 + 9) / 2))


def test_differences_are_paired_by_seed():
    # Wide apart over seeds, but always one better, or two.
    row, baseline = {3: 62.0, 1: 11.0, 2: 32.0, 9: 0.0}, {1: 10.0, 2: 30.0, 3: 60.0, 4: 99.0}
    difference = paired_difference(row, baseline)
    assert difference.pairs == 3
    assert difference.mean == pytest.approx(5 / 3)
    # Differences 1, 2, 2: deviations -2/3, 1/3, 1/3, so a variance of (6/9)/2 = 1/3.
    assert difference.half_width == pytest.approx(4.3027 * math.sqrt(1 / 3 / 3), abs=1e-4)


def test_without_a_common_seed_there_is_no_difference():
    assert paired_difference({1: 3.0}, {2: 4.0}) is None
    assert paired_difference({1: 3.0}, {1: 4.0}) == Difference(-1.0, None, 1)
