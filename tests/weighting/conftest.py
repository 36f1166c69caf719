import math

import pytest
import torch

from swn_d2.weighting import SampleLosses, SampleStatistics


def make_samples(is_foreground, *, seed=0, box_loss_dim=4, has_mask=False, normalizer=None):
    """Losses (with a graph) and statistics of random samples; negatives as the contract says."""
    generator = torch.Generator().manual_seed(seed)
    foreground = torch.tensor(is_foreground, dtype=torch.bool)
    num_samples = len(foreground)
    normalizer = max(num_samples, 1) if normalizer is None else normalizer

    def random(*shape):
        return torch.rand(*shape, generator=generator)

    losses = SampleLosses(
        cls=(random(num_samples) * 3 + 0.05).requires_grad_(),
        box=((random(num_samples, box_loss_dim) + 0.05) * foreground[:, None]).requires_grad_(),
        mask=((random(num_samples) + 0.1) * foreground).requires_grad_() if has_mask else None,
        normalizers={"cls": normalizer, "box": normalizer, "mask": max(int(foreground.sum()), 1)},
    )
    statistics = SampleStatistics.of(
        losses,
        iou=random(num_samples) * foreground,
        prob=random(num_samples) * foreground,
        is_foreground=foreground,
    )
    return losses, statistics


def assert_regularizers_start(losses, *, by_object):
    """Regularisers (name -> 0-d tensor) are those of a network that says 0.

    Args:
        by_object: whether annotated classes are told from decoys, which that network does with a
            cross-entropy of log 2. Of m there is nothing.
    """
    assert losses and all(name.startswith("loss_swn_") for name in losses)
    for name, loss in losses.items():
        start = math.log(2) if by_object and name.startswith("loss_swn_cls") else 0
        assert abs(loss.item() - start) < 1e-6, name


@pytest.fixture
def samples():
    """Five positives among twelve samples, with masks."""
    return make_samples([True] * 5 + [False] * 7, has_mask=True)


def randomize(weighter, seed=0, std=0.2):
    """Give the network weights far from its start, so that the samples' weights differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in weighter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return weighter
