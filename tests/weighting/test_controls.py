"""What a control leaves of the weights, and that it changes nothing else."""

import copy
import pickle

import pytest
import torch

from swn_d2.config import load_config
from swn_d2.errors import UserError
from swn_d2.weighting import (
    SWN,
    TASKS,
    SampleWeights,
    build_sample_weighter,
)
from swn_d2.weighting.controls import CONTROLS, controlled

from .conftest import make_samples, randomize

REPLACING = [control for control in CONTROLS if control != "none"]
FOREGROUND = [True, False, False, True, True, False, False, False]


def weights_of(num_samples, seed=0, columns=4):
    generator = torch.Generator().manual_seed(seed)
    return SampleWeights(
        cls=torch.rand(num_samples, generator=generator) + 0.5,
        box=torch.rand(num_samples, columns, generator=generator) + 0.5,
        mask=torch.rand(num_samples, generator=generator) + 0.5,
        label=torch.rand(num_samples, generator=generator) + 0.5,
        regularizers={"loss_own": torch.tensor(3.0)},
        learned={"cls": torch.rand(num_samples, generator=generator)},
    )


def statistics_at(iteration, is_foreground=FOREGROUND):
    _, statistics = make_samples(is_foreground, has_mask=True)
    statistics.iteration = iteration
    return statistics


def swn_under(control, **changes):
    """An SWN with masks whose weights differ, as the config builds it."""
    opts = [
        *("MODEL.SAMPLE_WEIGHTER.CONTROL", control),
        *("MODEL.SWN.CLS_AVERAGING", "none"),
        *("MODEL.SWN.EASE_IN", [0.0, 0.0]),
        *(part for item in changes.items() for part in item),
    ]
    return randomize(build_sample_weighter(load_config("", opts), box_loss_dim=4, has_mask=True))


def test_rate_is_the_mean_of_the_task():
    weights, statistics = weights_of(8), statistics_at(0)
    seen = controlled(weights, statistics, "rate")
    positives = statistics.foreground
    assert torch.allclose(seen.cls, weights.cls.mean().expand(8))
    assert torch.allclose(seen.box[positives], weights.box[positives].mean(dim=0).expand(3, 4))
    for name in ("mask", "label"):  # of positives alone
        before, after = getattr(weights, name), getattr(seen, name)
        assert torch.allclose(after[positives], before[positives].mean().expand(3))


def test_balance_is_the_mean_of_the_group():
    weights, statistics = weights_of(8), statistics_at(0)
    seen, rate = (controlled(weights, statistics, control) for control in ("balance", "rate"))
    for group in (statistics.is_foreground, ~statistics.is_foreground):
        mean = weights.cls[group].mean()
        assert torch.allclose(seen.cls[group], mean.expand(int(group.sum())))
    assert seen.cls.unique().numel() == 2
    assert torch.equal(seen.box, rate.box) and torch.equal(seen.mask, rate.mask)


def test_shuffle_exchanges_within_the_group():
    """All tasks of a sample, and all columns of its box loss, come from the same other one."""
    statistics = statistics_at(5, [True, False] * 50)
    index = torch.arange(100.0)
    columns = torch.stack([index, index + 1000], dim=1)
    seen = controlled(SampleWeights(cls=index, box=columns, label=index), statistics, "shuffle")
    for group in (statistics.is_foreground, ~statistics.is_foreground):
        assert torch.equal(seen.cls[group].sort().values, index[group])
        assert (seen.cls[group] != index[group]).sum() > 40
    assert torch.equal(seen.box, columns[seen.cls.long()]) and torch.equal(seen.label, seen.cls)


def test_every_place_is_as_likely_as_any_other():
    """Over 600 iterations each of three positives has the weight of each of them 200 times."""
    weights = SampleWeights(cls=torch.arange(8.0))
    seen = torch.stack(
        [controlled(weights, statistics_at(i), "shuffle").cls[[0, 3, 4]] for i in range(600)]
    )
    for value in (0.0, 3.0, 4.0):
        counts = (seen == value).sum(dim=0)
        assert ((counts > 150) & (counts < 250)).all()  # more than four standard deviations


def test_shuffle_depends_on_the_iteration_alone():
    weights = weights_of(8)
    before = torch.get_rng_state()
    first, again, later = (
        controlled(weights, statistics_at(i), "shuffle").cls.tolist() for i in (7, 7, 8)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again and first != later


@pytest.mark.parametrize("control", REPLACING)
def test_what_is_not_a_weight_stays(control):
    weights = weights_of(8)
    weights.mask = None
    seen = controlled(weights, statistics_at(0), control)
    assert seen.mask is None
    assert seen.regularizers is weights.regularizers and seen.learned is weights.learned


@pytest.mark.parametrize("control", REPLACING)
@pytest.mark.parametrize("is_foreground", [[], [True], [False], [False] * 5, [True] * 5], ids=str)
def test_empty_groups(control, is_foreground):
    num_samples = len(is_foreground)
    weights = weights_of(num_samples)
    statistics = statistics_at(0, is_foreground)
    seen = controlled(weights, statistics, control)
    for name, before in weights.by_name().items():
        after = getattr(seen, name)
        assert after.shape == before.shape and after.isfinite().all()
        assert torch.allclose(after.sum(dim=0), before.sum(dim=0))
    if num_samples == 1:
        assert torch.allclose(seen.cls, weights.cls) and torch.allclose(seen.box, weights.box)
    if control != "shuffle" and not any(is_foreground):
        assert torch.equal(seen.box, weights.box) and torch.equal(seen.mask, weights.mask)


def test_a_weighter_under_a_control_is_what_it_was():
    plain, shuffled = swn_under("none"), swn_under("shuffle")
    assert type(shuffled) is SWN and plain.state_dict().keys() == shuffled.state_dict().keys()
    _, statistics = make_samples(FOREGROUND, has_mask=True)
    own, seen = plain(statistics), shuffled(statistics)
    assert not torch.equal(own.cls, seen.cls)
    assert torch.equal(seen.cls, controlled(own, statistics, "shuffle").cls)
    for copied in (copy.deepcopy(shuffled), pickle.loads(pickle.dumps(shuffled))):
        assert torch.equal(copied(statistics).cls, seen.cls)
    # Those who listen, like the recorder, get what the detector gets.
    heard = []
    shuffled.register_forward_hook(lambda module, inputs, output: heard.append(output))
    assert shuffled(statistics) is heard[0]


@pytest.mark.parametrize("control", REPLACING)
@pytest.mark.parametrize("relative", [True, False])
def test_the_network_learns_as_without(control, relative):
    gradients = []
    for name in ("none", control):
        losses, statistics = make_samples(FOREGROUND, has_mask=True)
        weighter = swn_under(name, **{"MODEL.SWN.RELATIVE": relative})
        weights = weighter(statistics)
        assert not any(getattr(weights, task).requires_grad for task in TASKS)
        total = sum(losses.weighted(weights).values()) + sum(weights.regularizers.values())
        gradients.append(torch.autograd.grad(total, list(weighter.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert any(gradient.abs().max() > 0 for gradient in gradients[0])


@pytest.mark.parametrize("control", REPLACING)
def test_who_learns_by_its_weights_goes_on_to(control):
    """TaskUncertainty's numbers, and the variances of KL-loss, which the detector predicts."""
    gradients = {"TaskUncertainty": [], "KLLoss": []}
    for name, of_weighter in gradients.items():
        for which in ("none", control):
            losses, statistics = make_samples(FOREGROUND)
            variance = torch.linspace(-1, 1, 32).view(8, 4).requires_grad_()
            statistics.details = {
                "log_variance": lambda variance=variance: variance,
                "given_box_weight": lambda: torch.ones(8),
            }
            opts = [
                *("MODEL.SAMPLE_WEIGHTER.NAME", name, "MODEL.SAMPLE_WEIGHTER.CONTROL", which),
                *("MODEL.ROI_BOX_HEAD.LOG_VARIANCE", True),
                *("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 1.0),
            ]
            weighter = build_sample_weighter(load_config("", opts), box_loss_dim=4, has_mask=False)
            weights = weighter(statistics)
            total = sum(losses.weighted(weights).values()) + sum(weights.regularizers.values())
            learned = [*weighter.parameters()] or [variance]
            of_weighter.append(torch.autograd.grad(total, learned))
    for plain, under_control in gradients.values():
        assert all(torch.allclose(a, b) for a, b in zip(plain, under_control, strict=True))
        assert all(gradient.abs().max() > 0 for gradient in plain)


def test_other_weights_become_constants():
    """A focal weight would press on single samples by its gradient, whatever its value."""
    _, statistics = make_samples(FOREGROUND)
    prob = torch.full((8,), 0.5, requires_grad=True)
    statistics.details = {"true_prob": lambda: prob}
    opts = ["MODEL.SAMPLE_WEIGHTER.NAME", "FocalWeighting"]
    for control in CONTROLS:
        cfg = load_config("", [*opts, "MODEL.SAMPLE_WEIGHTER.CONTROL", control])
        weighter = build_sample_weighter(cfg, box_loss_dim=4, has_mask=False)
        assert weighter(statistics).cls.requires_grad == (control == "none")


@pytest.mark.parametrize("control", CONTROLS)
def test_a_weighter_without_weights_has_none_under_a_control(control):
    opts = ["MODEL.SAMPLE_WEIGHTER.NAME", "Uniform", "MODEL.SAMPLE_WEIGHTER.CONTROL", control]
    weighter = build_sample_weighter(load_config("", opts), box_loss_dim=4, has_mask=True)
    weights = weighter(statistics_at(0))
    assert (weights.cls, weights.box, weights.mask) == (None, None, None)


def test_an_unknown_control_is_told_the_known_ones():
    with pytest.raises(
        UserError, match="CONTROL has 'shufle', but .* one of: none, rate, balance, shuffle"
    ):
        swn_under("shufle")
