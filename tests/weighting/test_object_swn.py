import math
from dataclasses import replace

import pytest
import torch

from swn_d2.errors import UserError
from swn_d2.weighting.object_swn import ObjectSWN

from .conftest import make_samples

IS_FOREGROUND = [True] * 4 + [False] * 6
CLASSES = [1, 0, 1, 1]  # of the positives


def samples(label_loss=(0.5, 0.1, 0.3, 0.2), objects=(2, 0, 2, 1)):
    """Four positives of three objects, and negatives; all losses have a graph."""
    losses, statistics = make_samples(IS_FOREGROUND)
    cls = losses.cls.detach().clone()
    # The rest of a positive's loss asks whether it is an object at all.
    label = torch.zeros(10)
    label[:4] = torch.tensor(label_loss)
    cls[:4] = label[:4] + 0.25
    label, cls = label.requires_grad_(), cls.requires_grad_()
    details = {
        "annotation": lambda: torch.tensor([*objects, *[-1] * 6]),
        "gt_class": lambda: torch.tensor([*CLASSES, *[2] * 6]),
        "label_loss": lambda: label,
        "cross_entropy": lambda: cls,
    }
    losses = replace(losses, cls=cls)
    return losses, replace(statistics, cls_loss=cls.detach(), details=details), label


def weighter(num_objects=3, **kwargs):
    torch.manual_seed(0)
    result = ObjectSWN(num_classes=2, **kwargs)
    result.memory.allocate(num_objects)
    return result


def train(swn, steps, **kwargs):
    adam = torch.optim.Adam(swn.parameters(), lr=0.01)
    for _ in range(steps):
        _, statistics, _ = samples(**kwargs)
        weights = swn(statistics)
        adam.zero_grad()
        sum(weights.regularizers.values()).backward()
        adam.step()
    return weights


def test_starts_as_the_plain_detector():
    swn = weighter()
    for _ in range(2):  # the second time, all objects are known
        losses, statistics, _ = samples()
        weighted = losses.weighted(swn(statistics))
        assert weighted["cls"].item() == pytest.approx(losses.cls.mean().item())
        assert weighted["box"].item() == pytest.approx(losses.box.sum().item() / 10)


#: Of objects 2, 0, 2 and 1. Two thirds of the objects are of class 1; each counts once more.
GUESS = {0: -math.log(2 / 5), 1: -math.log(3 / 5)}
LOSSES = (3 * GUESS[1], 0.2 * GUESS[0], 3 * GUESS[1], 0.1 * GUESS[1])


def test_m_becomes_the_logarithm_of_the_loss_in_units_of_a_guess():
    swn = weighter(exponent=2.0)
    weights = train(swn, 600, label_loss=LOSSES)
    w = weights.learned["cls"]
    # The median object is far below the guess, so that k is all of the exponent.
    assert w[0].item() == pytest.approx(1 / 3**2, rel=0.1)
    assert w[0] == w[2]  # of the same object
    assert (w[[1, 3]] == 1).all()  # exp(-k m) is far above
    assert (w[4:] == 1).all()
    assert weights.box is None


@pytest.mark.parametrize("median, expected", [(1.2, 0.0), (1.0, 0.0), (0.75, 3.0), (0.4, 6.0)])
def test_the_exponent_rises_with_what_the_detector_can(median, expected):
    swn = weighter(4)
    swn.memory.mean[:3, 0] = torch.tensor([0.1, median, 5.0])
    swn.memory.seen[:3] = 1  # and the fourth, whose mean is 0, has not been seen
    assert swn._exponent().item() == pytest.approx(expected, abs=1e-5)


def test_the_weight_is_of_the_class_and_not_of_being_an_object():
    swn = weighter(exponent=2.0)
    train(swn, 300, label_loss=LOSSES)
    losses, statistics, label = samples(label_loss=LOSSES)
    weights = swn(statistics)
    w = weights.learned["cls"]
    assert w[0] < 0.6
    total = losses.weighted(weights)["cls"] * 10
    expected = (losses.cls - label + w * label).sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    # In the detector the losses are functions of the scores; so is this in these two leaves.
    of_total = torch.autograd.grad(total, (losses.cls, label))
    of_expected = torch.autograd.grad(expected, (losses.cls, label))
    for actual, wanted in zip(of_total, of_expected, strict=True):
        assert torch.allclose(actual, wanted, atol=1e-5)


def test_an_object_is_judged_by_its_past():
    swn = weighter()
    train(swn, 300, label_loss=LOSSES)
    _, statistics, _ = samples(label_loss=(0.1, 5.0, 0.1, 0.1))  # the other way round, for once
    w = swn(statistics).learned["cls"]
    assert w[0] < 0.6 and w[1] == 1


def test_an_object_that_was_never_seen_has_weight_1():
    swn = weighter(4)
    train(swn, 300, label_loss=LOSSES)
    _, statistics, _ = samples(label_loss=LOSSES, objects=(3, 0, 2, 1))
    w = swn(statistics).learned["cls"]
    assert w[0] == 1 and w[2] < 0.6


def test_every_parameter_gets_a_gradient_without_positives_too():
    swn = weighter()
    _, statistics = make_samples([False] * 5)
    details = {
        "annotation": lambda: torch.full((5,), -1),
        "gt_class": lambda: torch.full((5,), 2),
        "label_loss": lambda: torch.zeros(5),
        "cross_entropy": lambda: torch.ones(5),
    }
    weights = swn(replace(statistics, details=details))
    weights.regularizers["loss_swn_cls"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in swn.parameters())


def test_survives_losses_that_are_not_finite():
    swn = weighter()
    for bad in (math.nan, math.inf):
        _, statistics, _ = samples(label_loss=(bad, 0.1, 0.3, 0.2))
        statistics = replace(statistics, box_loss=statistics.box_loss * bad)
        regularizers = swn(statistics).regularizers
        sum(regularizers.values()).backward()
        assert all(torch.isfinite(loss) for loss in regularizers.values())
        assert all(torch.isfinite(p.grad).all() for p in swn.parameters())
        assert torch.isfinite(swn.memory.mean).all()


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"exponent": 0.0}, "EXPONENT is 0.0, but it must be greater than 0"),
        ({"window": 0}, "WINDOW is 0, but it must be at least 1"),
    ],
)
def test_refuses_values_out_of_range(kwargs, message):
    with pytest.raises(UserError, match=rf"MODEL\.SAMPLE_WEIGHTER\.OBJECTSWN\.{message}"):
        ObjectSWN(num_classes=2, **kwargs)
