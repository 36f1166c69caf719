import pytest
import torch
from torch import nn

from swn_d2.weighting import SampleWeightingNetwork

from .conftest import make_samples, randomize


def test_architecture_of_eq_10_and_11():
    network = SampleWeightingNetwork(("cls", "box", "mask"), has_mask=True)
    assert list(network.embeddings) == ["cls_loss", "box_loss", "iou", "prob", "mask_loss"]
    for embedding in network.embeddings.values():
        shapes = [tuple(m.weight.shape) for m in embedding if isinstance(m, nn.Linear)]
        assert shapes == [(64, 1), (64, 64)]
    assert list(network.heads) == ["cls", "box", "mask"]
    for head in network.heads.values():
        shapes = [tuple(m.weight.shape) for m in head if isinstance(m, nn.Linear)]
        assert shapes == [(64, 5 * 64), (1, 64)]


def test_architecture_of_the_authors_code():
    network = SampleWeightingNetwork(("cls", "box"), box_loss_dim=4, shared_head=True)
    assert network.embeddings["box_loss"][0].in_features == 4
    assert [head[-1].out_features for head in network.heads.values()] == [2]


def test_initialization():
    torch.manual_seed(0)
    network = SampleWeightingNetwork(("cls", "box"), box_loss_dim=4)
    weights = torch.cat([m.weight.flatten() for m in network.modules() if isinstance(m, nn.Linear)])
    # 50,000 draws: the standard error of the deviation is 0.3%, of the mean 4.5e-7.
    assert weights.std().item() == pytest.approx(1e-4, rel=0.02)
    assert abs(weights.mean().item()) < 3e-6
    assert all((m.bias == 0).all() for m in network.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize("shared_head", [False, True])
def test_zero_output_starts_at_zero_but_can_leave(shared_head):
    _, statistics = make_samples([True, True, False])
    network = SampleWeightingNetwork(
        ("cls", "box"), box_loss_dim=4, shared_head=shared_head, init="zero_output"
    )
    m = network(statistics)["box"]
    assert (m == 0).all()
    # A gradient of mean 0, as at the start of the relative formulation.
    m.backward(torch.tensor([1.0, -1.0, 0.0]))
    assert any(head[-1].weight.grad.abs().max() > 1e-3 for head in network.heads.values())


@pytest.mark.parametrize("shared_head", [False, True])
def test_every_statistic_reaches_every_task(shared_head):
    _, statistics = make_samples([True, True, True], has_mask=True)
    network = randomize(
        SampleWeightingNetwork(
            ("cls", "box", "mask"), box_loss_dim=4, has_mask=True, shared_head=shared_head
        )
    )
    before = network(statistics)
    for name in ("cls_loss", "box_loss", "iou", "prob", "mask_loss"):
        changed = getattr(statistics, name).clone()
        changed[1] += 0.5
        _, other = make_samples([True, True, True], has_mask=True)
        setattr(other, name, changed)
        for task, m in network(other).items():
            moved = (m - before[task]).abs() > 1e-6
            assert moved.tolist() == [False, True, False], (name, task)


def test_sum_feature_sees_only_the_sum():
    _, statistics = make_samples([True, True])
    network = randomize(SampleWeightingNetwork(("box",), box_loss_dim=1))
    before = network(statistics)["box"]
    statistics.box_loss = statistics.box_loss.flip(1)
    torch.testing.assert_close(network(statistics)["box"], before)
