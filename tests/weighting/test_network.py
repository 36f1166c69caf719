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


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("shared_head", [False, True])
@pytest.mark.parametrize(
    "foreground",
    # The last has more samples than a chunk.
    [[True, False] * 50, [False] * 9, [True] * 3, [], [True, *[False] * 9] * 1000],
    ids=["mixed", "negatives", "positives", "none", "many"],
)
def test_the_short_cut_for_negatives_is_exact(foreground, shared_head, has_mask):
    """The same m, and the same gradients, as all embeddings of all samples give."""
    tasks = ("cls", "box", "mask") if has_mask else ("cls", "box")
    _, statistics = make_samples(foreground, has_mask=has_mask)
    network = randomize(
        SampleWeightingNetwork(tasks, box_loss_dim=4, has_mask=has_mask, shared_head=shared_head)
    )

    def plainly():
        features = [
            statistics.box_loss if name == "box_loss" else getattr(statistics, name)[:, None]
            for name in network.embeddings
        ]
        d = torch.cat(
            [e(x) for e, x in zip(network.embeddings.values(), features, strict=True)], dim=1
        )
        m = torch.cat([head(d) for head in network.heads.values()], dim=1)
        return dict(zip(tasks, m.unbind(dim=1), strict=True))

    # Only positives have an m of the other tasks.
    factors = {task: torch.rand(len(statistics)) for task in tasks}
    for task in tasks[1:]:
        factors[task] *= statistics.is_foreground
    gradients = []
    for m in (plainly(), network(statistics)):
        network.zero_grad()
        sum((m[task] * factors[task]).sum() for task in tasks).backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    actual, expected = network(statistics), plainly()
    for task in tasks:
        mask = factors[task] > 0
        # float32, and sums of 256 to 320 terms in another order
        torch.testing.assert_close(actual[task][mask], expected[task][mask], rtol=1e-5, atol=1e-5)
        assert (actual[task][~mask] == 0).all() or task == "cls"
    for a, e in zip(*gradients, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def test_another_box_loss_is_named():
    _, statistics = make_samples([True, False], box_loss_dim=1)
    with pytest.raises(ValueError, match="box_loss_dim 4.*has 1 columns"):
        SampleWeightingNetwork(("box",), box_loss_dim=4)(statistics)


def test_a_statistic_that_is_missing_is_named():
    _, statistics = make_samples([True, False])
    with pytest.raises(ValueError, match="mask_loss"):
        SampleWeightingNetwork(("box",), box_loss_dim=4, has_mask=True)(statistics)


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
