import pytest
import torch
from torch.nn import functional as F

from swn_d2.errors import UserError
from swn_d2.weighting import SampleLosses, SampleStatistics
from swn_d2.weighting.focal import FocalWeighting

NUM_CLASSES = 3


def softmax_samples(gt_classes, scale=2.0):
    """Scores (R, K + 1), random, and the losses and statistics of an R-CNN that they lead to."""
    generator = torch.Generator().manual_seed(0)
    gt_classes = torch.tensor(gt_classes, dtype=torch.long)
    num_samples = len(gt_classes)
    scores = torch.randn(num_samples, NUM_CLASSES + 1, generator=generator) * scale
    scores.requires_grad_()
    is_foreground = gt_classes < NUM_CLASSES
    losses = SampleLosses(
        cls=F.cross_entropy(scores, gt_classes, reduction="none"),
        box=torch.ones(num_samples, 4) * is_foreground[:, None],
        normalizers={"cls": max(num_samples, 1), "box": max(num_samples, 1)},
    )
    true_prob = scores.softmax(dim=1).gather(1, gt_classes[:, None]).squeeze(1)
    statistics = SampleStatistics.of(
        losses,
        iou=torch.zeros(num_samples),
        prob=true_prob * is_foreground,
        is_foreground=is_foreground,
        details={"true_prob": lambda: true_prob},
    )
    return scores, losses, statistics


def focal_loss(scores, gt_classes, gamma, alpha):
    """As in the paper: - alpha_t (1 - p_t)^gamma log p_t, over the number of positives."""
    total, num_positives = 0.0, 0
    for score, gt_class in zip(scores, gt_classes, strict=True):
        p = score.softmax(dim=0)[gt_class]
        is_foreground = gt_class < NUM_CLASSES
        alpha_t = 1.0 if alpha == -1 else alpha if is_foreground else 1 - alpha
        total = total - alpha_t * (1 - p) ** gamma * p.log()
        num_positives += is_foreground
    return total / max(num_positives, 1)


@pytest.mark.parametrize("gt_classes", [[0, 3, 2, 3, 3, 1, 3], [3, 3, 3]])
@pytest.mark.parametrize("gamma, alpha", [(2.0, -1.0), (2.0, 0.25), (0.5, 0.75), (0.0, -1.0)])
def test_value_and_gradient_are_the_focal_loss(gt_classes, gamma, alpha):
    scores, losses, statistics = softmax_samples(gt_classes)
    weights = FocalWeighting(gamma=gamma, alpha=alpha)(statistics)
    actual = losses.weighted(weights)["cls"]
    expected = focal_loss(scores, gt_classes, gamma, alpha)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(actual, scores, retain_graph=True)
    (expected_gradient,) = torch.autograd.grad(expected, scores)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_the_box_loss_is_left_alone():
    _, losses, statistics = softmax_samples([0, 3])
    weighted = losses.weighted(FocalWeighting()(statistics))
    assert weighted["box"].item() == pytest.approx(losses.box.sum().item() / 2)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_certain_sample_has_a_finite_gradient(gamma):
    scores, losses, statistics = softmax_samples([0, 3], scale=1e3)  # p is 0 or 1 to the bit
    assert set(statistics.detail("true_prob").tolist()) <= {0.0, 1.0}
    losses.weighted(FocalWeighting(gamma=gamma)(statistics))["cls"].backward()
    assert torch.isfinite(scores.grad).all()


def test_no_sample():
    _, losses, statistics = softmax_samples([])
    assert losses.weighted(FocalWeighting(alpha=0.25)(statistics))["cls"].item() == 0.0


@pytest.mark.parametrize("key, value", [("gamma", -1.0), ("alpha", 1.5), ("alpha", -0.5)])
def test_ranges(key, value):
    with pytest.raises(UserError, match=f"MODEL.SAMPLE_WEIGHTER.FOCALWEIGHTING.{key.upper()} is"):
        FocalWeighting(**{key: value})
