import pytest
import torch

from swn_d2.errors import UserError
from swn_d2.weighting.iou_balanced import IoUBalanced

from .conftest import make_samples

IS_FOREGROUND = [True] * 4 + [False] * 6


@pytest.mark.parametrize("eta, lam", [(1.5, 1.5), (1.0, 2.0), (0.0, 0.5)])
def test_weights_are_powers_of_the_iou_that_keep_the_total(eta, lam):
    losses, statistics = make_samples(IS_FOREGROUND)
    weights = IoUBalanced(cls_power=eta, box_power=lam)(statistics)
    iou = statistics.iou[:4].tolist()
    for power, loss, actual in (
        (eta, losses.cls[:4].tolist(), weights.cls),
        (lam, losses.box[:4].sum(dim=1).tolist(), weights.box),
    ):
        balanced = sum(v**power * x for v, x in zip(iou, loss, strict=True))
        expected = [v**power * sum(loss) / balanced for v in iou]
        assert actual[:4].tolist() == pytest.approx(expected, rel=1e-5)
    assert (weights.cls[4:] == 1).all()


def test_the_total_losses_are_the_plain_ones():
    losses, statistics = make_samples(IS_FOREGROUND)
    weighted = losses.weighted(IoUBalanced()(statistics))
    assert weighted["cls"].item() == pytest.approx(losses.cls.mean().item())
    assert weighted["box"].item() == pytest.approx(losses.box.sum().item() / 10)


def test_no_gradient_passes_through_the_iou():
    _, statistics = make_samples(IS_FOREGROUND)
    weights = IoUBalanced()(statistics)
    assert not weights.cls.requires_grad and not weights.box.requires_grad


def test_positives_that_all_miss_weigh_the_same():
    _, statistics = make_samples([True, True, False])
    statistics.iou = torch.zeros(3)
    weights = IoUBalanced()(statistics)
    for task in (weights.cls, weights.box):
        assert task.tolist() == pytest.approx([1, 1, 1])


def test_an_infinite_box_counts_as_a_miss():
    _, statistics = make_samples([True, True, False])
    statistics.iou[1] = float("nan")
    weights = IoUBalanced()(statistics)
    for task in (weights.cls, weights.box):
        assert torch.isfinite(task).all() and task[1] < 0.01 * task[0]


@pytest.mark.parametrize("is_foreground", [[], [False, False]])
def test_no_positives(is_foreground):
    _, statistics = make_samples(is_foreground)
    weights = IoUBalanced()(statistics)
    assert (weights.cls == 1).all() and (weights.box == 1).all()


@pytest.mark.parametrize("key", ["cls_power", "box_power"])
def test_ranges(key):
    with pytest.raises(UserError, match=f"MODEL.SAMPLE_WEIGHTER.IOUBALANCED.{key.upper()} is"):
        IoUBalanced(**{key: -0.5})
