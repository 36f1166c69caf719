import pytest
import torch

from swn_d2.errors import UserError
from swn_d2.weighting import (
    GivenWeights,
    SampleStatistics,
    SampleWeights,
    Uniform,
    gather_samples,
    softmax_classification,
    with_mask_losses,
)
from swn_d2.weighting.objective import group_mean, group_std

from .conftest import make_samples


def statistics_with(**changes):
    values = dict(
        cls_loss=torch.ones(3),
        box_loss=torch.ones(3, 4),
        iou=torch.ones(3),
        prob=torch.ones(3),
        is_foreground=torch.tensor([True, False, True]),
        normalizers={"cls": 3, "box": 3},
    )
    return SampleStatistics(**{**values, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"iou": torch.ones(2)},
        {"prob": torch.ones(3, 1)},
        {"box_loss": torch.ones(3)},
        {"mask_loss": torch.ones(4)},
        {"is_foreground": torch.ones(3)},
        {"is_foreground": torch.tensor([True])},
    ],
)
def test_wrong_shapes_are_named(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        statistics_with(**changes)


def test_details_are_computed_when_they_are_asked_for():
    asked = []

    def image():
        asked.append("image")
        return torch.zeros(3, dtype=torch.long)

    statistics = statistics_with(details={"image": image}).finite()
    assert not asked
    assert statistics.detail("image").tolist() == [0, 0, 0]
    with pytest.raises(UserError, match="the object of the samples"):
        statistics.detail("object")


def test_length():
    assert len(statistics_with()) == 3


def test_weighted_losses_are_eq_2():
    losses, _ = make_samples([True, True, False], has_mask=True)
    weights = SampleWeights(
        cls=torch.tensor([1.0, 2.0, 3.0]),
        box=torch.tensor([4.0, 5.0, 6.0]),
        mask=torch.tensor([7.0, 8.0, 9.0]),
    )
    cls, box, mask = losses.cls.tolist(), losses.box.sum(dim=1).tolist(), losses.mask.tolist()
    weighted = losses.weighted(weights)
    assert weighted["cls"].item() == pytest.approx((cls[0] + 2 * cls[1] + 3 * cls[2]) / 3)
    assert weighted["box"].item() == pytest.approx((4 * box[0] + 5 * box[1]) / 3)
    assert weighted["mask"].item() == pytest.approx((7 * mask[0] + 8 * mask[1]) / 2)


def test_a_label_weight_is_of_a_part_of_the_classification_loss():
    losses, _ = make_samples([True, True, False])
    label = torch.tensor([0.25, 0.5, 0.0]) * losses.cls
    losses.label = lambda: label
    given, learned, cls = (torch.tensor(w) for w in ([0.5, 1, 1], [3.0, 0, 1], [1.0, 2, 3]))
    weights = SampleWeights(cls=cls, label=learned)
    weighted = losses.with_label_weights(given).scaled(cls).weighted(weights)["cls"]
    rest = losses.cls - label
    expected = (cls * cls * (rest + given * learned * label)).sum() / 3
    assert weighted.item() == pytest.approx(expected.item())
    assert losses.weighted(SampleWeights())["cls"].item() == pytest.approx(losses.cls.mean().item())


def test_a_label_weight_needs_to_know_of_what():
    losses, _ = make_samples([True])
    with pytest.raises(UserError, match="which part .* is the label's; make them by"):
        losses.weighted(SampleWeights(label=torch.ones(1)))


def test_a_weight_for_every_column_of_the_box_loss():
    losses, _ = make_samples([True, False, True], box_loss_dim=2)
    weights = SampleWeights(box=torch.tensor([[1.0, 2.0], [9.0, 9.0], [3.0, 4.0]]))
    (a, b), _, (c, d) = losses.box.tolist()
    expected = (a + 2 * b + 3 * c + 4 * d) / 3
    assert losses.weighted(weights)["box"].item() == pytest.approx(expected)


@pytest.mark.parametrize("has_mask", [False, True])
def test_scaled_losses_are_those_of_every_task(has_mask):
    losses, _ = make_samples([True, True, False], has_mask=has_mask)
    factor = torch.tensor([2.0, 0.0, 3.0])
    scaled = losses.scaled(factor)
    assert scaled.cls.tolist() == (losses.cls * factor).tolist()
    assert scaled.box.tolist() == [[2 * x for x in losses.box[0].tolist()], [0.0] * 4, [0.0] * 4]
    if has_mask:
        assert scaled.mask.tolist() == (losses.mask * factor).tolist()
    assert (scaled.mask is not None) == has_mask
    assert scaled.normalizers == losses.normalizers


@pytest.mark.parametrize("has_mask", [False, True])
def test_uniform_is_the_plain_loss(has_mask):
    losses, statistics = make_samples([True, False, True], has_mask=has_mask)
    weights = Uniform()(statistics)
    weighted = losses.weighted(weights)
    assert weighted["cls"].item() == pytest.approx(losses.cls.mean().item())
    assert weighted["box"].item() == pytest.approx(losses.box.sum().item() / 3)
    assert ("mask" in weighted) == has_mask
    assert not weights.regularizers


def test_group_statistics():
    values = torch.tensor([1.0, 5.0, 3.0, 100.0])
    group = torch.tensor([True, True, True, False])
    assert group_mean(values, group).item() == pytest.approx(3.0)
    assert group_std(values, group).item() == pytest.approx((8 / 3) ** 0.5)
    nobody = torch.zeros(4, dtype=torch.bool)
    assert group_mean(values, nobody).item() == group_std(values, nobody).item() == 0.0


def test_given_weights_are_in_the_losses_and_beside_the_statistics():
    scores = torch.tensor([[2.0, 0.5, 0.1], [0.3, 1.0, 0.2], [0.0, 0.0, 1.0]], requires_grad=True)
    classification = softmax_classification(scores, torch.tensor([0, 1, 2]))
    given = GivenWeights(
        sample=torch.tensor([2.0, 1, 1]),
        label=torch.tensor([0.0, 3, 1]),
        box=torch.tensor([1.0, 0.5, 1]),
        mask=torch.tensor([0.0, 4, 1]),
    )
    losses, statistics = gather_samples(
        classification,
        fg_box_loss=torch.ones(2, 4),
        fg_iou=torch.ones(2),
        normalizers={"cls": 3, "box": 3},
        iteration=0,
        cls_factor=2.0,
        given=given,
    )
    label = statistics.detail("label_loss")
    rest = statistics.cls_loss - label
    expected = given.sample * (rest + given.label * label)
    torch.testing.assert_close(losses.cls, expected)
    assert losses.box.tolist() == [[2.0] * 4, [0.5] * 4, [0.0] * 4]
    assert torch.equal(statistics.detail("given_label_weight"), given.label)
    assert statistics.detail("given_box_weight").tolist() == [2, 0.5, 1]
    losses, statistics = with_mask_losses(losses, statistics, torch.tensor([3.0, 5.0]))
    assert losses.mask.tolist() == [0, 20, 0] and statistics.mask_loss.tolist() == [3, 5, 0]
