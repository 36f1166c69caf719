from dataclasses import replace

import pytest
import torch

from swn_d2.errors import UserError
from swn_d2.weighting.ohem import OHEM

from .conftest import make_samples


def samples_of(images, is_foreground, **kwargs):
    losses, statistics = make_samples(is_foreground, **kwargs)
    images = torch.tensor(images, dtype=torch.long)
    return losses, replace(statistics, details={"image": lambda: images})


def hardest(statistics, images, num_samples, max_positives):
    """The selection, spelled out: per image the hardest positives, then the hardest negatives."""
    loss = (statistics.cls_loss + statistics.box_loss.sum(dim=1)).tolist()
    is_foreground = statistics.is_foreground.tolist()
    selected = set()
    for image in set(images):
        of_image = sorted(
            (i for i in range(len(loss)) if images[i] == image), key=lambda i: -loss[i]
        )
        positives = [i for i in of_image if is_foreground[i]][:max_positives]
        negatives = [i for i in of_image if not is_foreground[i]]
        selected |= {*positives, *negatives[: num_samples - len(positives)]}
    return selected


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_samples, fraction, max_positives", [(8, 0.25, 2), (7, 0.5, 3)])
def test_selects_the_hardest_of_every_image(seed, num_samples, fraction, max_positives):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 3, (60,), generator=generator).tolist()
    is_foreground = (torch.rand(60, generator=generator) < 0.3).tolist()
    _, statistics = samples_of(images, is_foreground, seed=seed)
    weighter = OHEM(num_samples=num_samples, positive_fraction=fraction)
    selected = weighter.select(statistics).nonzero().squeeze(1).tolist()
    assert set(selected) == hardest(statistics, images, num_samples, max_positives)
    assert len(selected) == 3 * num_samples


def test_a_positive_is_judged_by_both_losses():
    _, statistics = samples_of([0, 0, 0], [True, True, False])
    statistics.cls_loss = torch.tensor([0.5, 0.1, 0.2])
    statistics.box_loss = torch.tensor([[0.0] * 4, [0.2] * 4, [0.0] * 4])
    selected = OHEM(num_samples=2, positive_fraction=0.5).select(statistics)
    assert selected.tolist() == [False, True, True]


def test_the_losses_are_means_over_the_selected():
    losses, statistics = samples_of(
        [0] * 6 + [1] * 6, ([True] * 3 + [False] * 3) * 2, has_mask=True
    )
    weighter = OHEM(num_samples=4, positive_fraction=0.25)
    selected = weighter.select(statistics)
    assert int(selected.sum()) == 8 and int((selected & statistics.is_foreground).sum()) == 2
    weighted = losses.weighted(weighter(statistics))
    assert weighted["cls"].item() == pytest.approx(losses.cls[selected].mean().item())
    assert weighted["box"].item() == pytest.approx(losses.box[selected].sum().item() / 8)
    of_positives = losses.mask[selected & statistics.is_foreground]
    assert weighted["mask"].item() == pytest.approx(of_positives.mean().item())


def test_an_image_with_too_few_regions_gives_all_of_them():
    _, statistics = samples_of([0, 0, 1], [True, False, False])
    assert (OHEM(positive_fraction=1.0)(statistics).cls == 1).all()


def test_a_nan_is_no_hard_sample():
    _, statistics = samples_of([0, 0], [False, False])
    statistics.cls_loss = torch.tensor([float("nan"), 0.5])
    assert OHEM(num_samples=1)(statistics).cls.tolist() == [0.0, 2.0]


@pytest.mark.parametrize("is_foreground", [[], [False, False], [True, True]])
def test_groups_may_be_empty(is_foreground):
    losses, statistics = samples_of([0] * len(is_foreground), is_foreground, has_mask=True)
    weighted = losses.weighted(OHEM(num_samples=1, positive_fraction=0.0)(statistics))
    assert all(torch.isfinite(loss) for loss in weighted.values())


@pytest.mark.parametrize(
    "key, value", [("num_samples", 0), ("positive_fraction", -0.1), ("positive_fraction", 1.1)]
)
def test_ranges(key, value):
    with pytest.raises(UserError, match=f"MODEL.SAMPLE_WEIGHTER.OHEM.{key.upper()} is"):
        OHEM(**{key: value})


def test_what_the_data_leave_out_takes_no_place():
    """A positive that counts is selected though others, which do not, have larger losses."""
    _, statistics = samples_of([0] * 5, [True, True, True, False, False])
    statistics.cls_loss = torch.tensor([5.0, 4.0, 1.0, 0.3, 0.2])
    statistics.box_loss = torch.zeros(5, 4)
    ones = torch.ones(5)
    details = {
        "given_weight": lambda: torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]),
        "given_box_weight": lambda: ones,
        "given_label_weight": lambda: ones,
        "label_loss": lambda: statistics.cls_loss / 2,
    }
    statistics = replace(statistics, details={**statistics.details, **details})
    for ohem in (OHEM(num_samples=3, positive_fraction=0.5), OHEM(num_samples=4)):
        assert ohem.select(statistics).tolist() == [False, False, True, True, True]
    # Nor where there is place for all of them.
    ohem = OHEM(num_samples=4, positive_fraction=0.75)
    assert ohem.select(statistics).tolist() == [False, False, True, True, True]
