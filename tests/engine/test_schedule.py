"""The length of a training in words, and what is odd about it."""

import re

import pytest

from swn_d2.engine.schedule import length_in_words, schedule_faults
from tests.tiny import tiny_config


def config(max_iter, batch=8, warmup=0, steps=(), **kwargs):
    return tiny_config(
        *("SOLVER.MAX_ITER", max_iter, "SOLVER.IMS_PER_BATCH", batch),
        *("SOLVER.WARMUP_ITERS", warmup, "SOLVER.STEPS", steps),
        *(text for item in kwargs.items() for text in item),
    )


@pytest.mark.parametrize(
    "max_iter, pictures, words",
    [
        (1200, 2206, "1,200 iterations of 8 pictures: 4.4 epochs of 2,206 pictures"),
        (87950, 205, "87,950 iterations of 8 pictures: 3,432 epochs of 205 pictures"),
        (10, 2000, "10 iterations of 8 pictures: 0.04 epochs of 2,000 pictures"),
    ],
)
def test_length_in_words(max_iter, pictures, words):
    assert length_in_words(max_iter, 8, pictures) == words


@pytest.mark.parametrize(
    "cfg, pictures, faults",
    [
        (config(1200, warmup=100, steps=(800, 1100)), 2206, []),
        (config(100), 800, []),  # exactly one epoch
        (config(99), 800, ["few.*MAX_ITER 99 for other data.*new_project"]),
        (config(5000), 80, []),  # exactly 500
        (config(5001), 80, ["many.*MAX_ITER 5001"]),
        (config(200, warmup=200), 100, ["WARMUP_ITERS is 200, SOLVER.MAX_ITER 200"]),
        (config(200, warmup=199), 100, []),
        (config(200, steps=(100, 200, 300)), 100, [r"200 and 300: of SOLVER.STEPS \(100, 200, 3"]),
        (config(9, steps=(9,), **{"SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR"}), 9, []),
        (config(9, batch=1, warmup=9, steps=(9,)), 10, ["few", "WARMUP_ITERS", "fall at 9"]),
    ],
)
def test_faults(cfg, pictures, faults):
    found = list(schedule_faults(cfg, pictures))
    assert len(found) == len(faults)
    for text, words in zip(found, faults, strict=True):
        assert re.search(words, text), text
