import math

import pytest
import torch

from swn_d2.weighting import TASKS
from swn_d2.weighting.task_uncertainty import TaskUncertainty

from .conftest import make_samples


def total_loss(weighter, losses, statistics):
    weights = weighter(statistics)
    return sum(losses.weighted(weights).values()) + sum(weights.regularizers.values())


def test_the_loss_is_eq_10():
    weighter = TaskUncertainty(has_mask=True)
    s = {"cls": 0.7, "box": -0.4, "mask": 1.1}
    for task, value in s.items():
        weighter.log_variance[task].data.fill_(value)
    losses, statistics = make_samples([True, False, True], has_mask=True)
    plain = {
        "cls": losses.cls.sum() / losses.normalizers["cls"],
        "box": losses.box.sum() / losses.normalizers["box"],
        "mask": losses.mask.sum() / losses.normalizers["mask"],
    }
    expected = sum(math.exp(-s[task]) * plain[task].item() + s[task] / 2 for task in TASKS)
    assert total_loss(weighter, losses, statistics).item() == pytest.approx(expected, rel=1e-5)


def test_it_starts_as_the_plain_detector():
    weighter = TaskUncertainty()
    losses, statistics = make_samples([True, False])
    weights = weighter(statistics)
    assert (weights.cls == 1).all() and (weights.box == 1).all() and weights.mask is None
    assert all(loss == 0 for loss in weights.regularizers.values())


def test_training_finds_the_stationary_point():
    """exp(-s) L + s / 2 has its minimum where exp(-s) = 1 / (2 L)."""
    weighter = TaskUncertainty()
    losses, statistics = make_samples([True, True, False])
    adam = torch.optim.Adam(weighter.parameters(), lr=0.05)
    for _ in range(800):
        adam.zero_grad()
        # The losses are the detector's: constants for the weighter.
        total_loss(weighter, losses, statistics).backward(inputs=list(weighter.parameters()))
        adam.step()
    weights = weighter(statistics)
    loss = losses.cls.detach().sum() / losses.normalizers["cls"]
    # 800 steps leave less than a hundredth.
    assert weights.cls[0].item() == pytest.approx(1 / (2 * loss.item()), rel=0.01)


def test_no_samples():
    weighter = TaskUncertainty()
    losses, statistics = make_samples([])
    total_loss(weighter, losses, statistics).backward()
    assert all(p.grad is not None for p in weighter.parameters())
