"""Two things timed in turn."""

import time

import pytest
import torch

from swn_d2.checks.clock import Pair, alternate, median_seconds, ratio


def test_steps_alternate_and_begin_in_turn():
    called = []
    pairs = list(
        alternate(
            lambda number: called.append(("first", number)),
            lambda number: called.append(("second", number)),
            "cpu",
            pairs=2,
            warm_up=1,
            after=lambda: called.append("after"),
        )
    )
    assert len(pairs) == 2
    assert called[1::2] == ["after"] * 6
    assert [name for name, _ in called[::2]] == ["first", "second"] + ["second", "first"] + [
        "first",
        "second",
    ]
    assert [number for _, number in called[::2]] == [0, 0, 1, 1, 2, 2]


def test_each_has_its_own_time_and_memory():
    def large(_):
        torch.ones(2**24)  # 64 MiB
        time.sleep(0.05)

    (pair,) = alternate(lambda _: None, large, "cpu", pairs=1)
    assert pair.seconds[0] < 0.05 <= pair.seconds[1]
    assert pair.mebibytes[0] < 32 < pair.mebibytes[1]


def test_ratio_is_the_median_of_the_pairs_own():
    pairs = [Pair((1.0, 2.0), (0, 0)), Pair((10.0, 11.0), (0, 0)), Pair((2.0, 6.0), (0, 0))]
    assert ratio(pairs) == pytest.approx((2.0, 1.1, 3.0))


def test_median_of_calls():
    pauses = iter([0, 0, 0, 0.0, 0.02, 0.5])
    assert 0.02 <= median_seconds(lambda: time.sleep(next(pauses)), "cpu", repetitions=3) < 0.5
