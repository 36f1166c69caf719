from dataclasses import replace

import pytest
import torch

from swn_d2.errors import UserError
from swn_d2.weighting.prime_sample import PrimeSample, cluster_boxes, iou_hlr, score_hlr

from .conftest import make_samples

# Object 0: 0.9, 0.5, 0.8; object 1, of the same class: 0.6, 0.7; object 2, of another: 0.3, 0.4.
IOU = [0.9, 0.6, 0.5, 0.3, 0.8, 0.7, 0.4]
OBJECTS = [0, 1, 0, 2, 0, 1, 2]
CLASSES = [5, 5, 5, 1, 5, 5, 1]
IOU_HLR = [0, 3, 4, 1, 2, 1, 0]  # class 5: 0.9, 0.7, then 0.8, 0.6, then 0.5; class 1: 0.4, 0.3
NUM_NEGATIVES = 24


def random_boxes(num_boxes, seed=0):
    """So many in so little space that most of them overlap."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(num_boxes, 2, generator=generator) * 20
    sides = torch.rand(num_boxes, 2, generator=generator) * 30 + 5
    return torch.cat([corners, corners + sides], dim=1), torch.rand(num_boxes, generator=generator)


def prime_samples():
    """The positives above, and negatives in two images."""
    losses, statistics = make_samples([True] * len(IOU) + [False] * NUM_NEGATIVES)
    statistics.iou[: len(IOU)] = torch.tensor(IOU)
    everyone = torch.Generator().manual_seed(1)
    true_prob = torch.rand(len(statistics), generator=everyone, requires_grad=True)
    boxes, scores = random_boxes(len(statistics))
    image = torch.arange(len(statistics)) % 2
    details = {
        "object": torch.tensor(OBJECTS + [-1] * NUM_NEGATIVES),
        "gt_class": torch.tensor(CLASSES + [10] * NUM_NEGATIVES),
        "true_prob": true_prob,
        "pred_boxes": boxes,
        "pred_score": scores,
        "image": image,
    }
    statistics = replace(
        statistics, details={name: (lambda v=value: v) for name, value in details.items()}
    )
    return losses, statistics


def overlap(a, b):
    """IoU of two boxes given as lists."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared) if sum(areas) > shared else 0.0


def greedy_clusters(boxes, scores, threshold):
    """The best box takes all that overlap it, then the best of the others, ..."""
    boxes, scores = boxes.tolist(), scores.tolist()
    left = sorted(range(len(boxes)), key=lambda i: -scores[i])
    cluster = {}
    while left:
        best = left[0]
        taken = [i for i in left if i == best or overlap(boxes[best], boxes[i]) > threshold]
        cluster.update(dict.fromkeys(taken, best))
        left = [i for i in left if i not in taken]
    return [cluster[i] for i in range(len(boxes))]


def isr_weights(ranks, num_ranks, losses, beta, gamma):
    """The formulas of the paper, sample by sample."""
    importance = [(num_ranks - rank) / num_ranks for rank in ranks]
    weights = [((1 - beta) * u + beta) ** gamma for u in importance]
    total = sum(w * x for w, x in zip(weights, losses, strict=True))
    return [w * sum(losses) / total for w in weights]


def test_iou_hlr():
    ranks = iou_hlr(torch.tensor(IOU), torch.tensor(OBJECTS), torch.tensor(CLASSES))
    assert ranks.tolist() == IOU_HLR


@pytest.mark.parametrize("beta, gamma", [(0.0, 2.0), (0.3, 1.5)])
def test_isr_of_positives(beta, gamma):
    _, statistics = prime_samples()
    weights = PrimeSample(isr_p_beta=beta, isr_p_gamma=gamma)(statistics).cls[: len(IOU)]
    losses = statistics.cls_loss[: len(IOU)].tolist()
    # The ranks of both classes are out of five, the number of samples of the larger one.
    expected = isr_weights(IOU_HLR, 5, losses, beta, gamma)
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_clusters_are_those_of_suppression(seed, threshold):
    boxes, scores = random_boxes(80, seed)
    expected = greedy_clusters(boxes, scores, threshold)
    assert 5 < len(set(expected)) < 70
    assert cluster_boxes(boxes, scores, threshold).tolist() == expected


def test_a_box_without_an_area_is_a_cluster_of_its_own():
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 5, 5], [0, 0, 10, 9]])
    assert cluster_boxes(boxes, torch.tensor([0.5, 0.45, 0.4]), 0.5).tolist() == [0, 1, 0]


def test_score_hlr():
    boxes, scores = random_boxes(20)
    boxes, scores = boxes.repeat(2, 1), torch.cat([scores, scores * 0.5])
    image = torch.tensor([0] * 20 + [1] * 20)
    one, other = (greedy_clusters(boxes[of], scores[of], 0.5) for of in (image == 0, image == 1))
    # Equal boxes in two images are two clusters.
    clusters = one + [20 + best for best in other]
    score_of = scores.tolist()
    local = [
        sum(clusters[j] == clusters[i] and score_of[j] > score_of[i] for j in range(40))
        for i in range(40)
    ]
    assert max(local) >= 2
    best_first = sorted(range(40), key=lambda i: (local[i], -score_of[i]))
    expected = [best_first.index(i) for i in range(40)]
    assert score_hlr(boxes, scores, image, 0.5).tolist() == expected


@pytest.mark.parametrize("beta, gamma", [(0.0, 0.5), (0.3, 1.5)])
def test_isr_of_negatives(beta, gamma):
    _, statistics = prime_samples()
    weighter = PrimeSample(isr_n_beta=beta, isr_n_gamma=gamma, nms_threshold=0.4)
    weights = weighter(statistics).cls[len(IOU) :]
    negatives = slice(len(IOU), None)
    boxes, scores, image = (
        statistics.detail(name)[negatives] for name in ("pred_boxes", "pred_score", "image")
    )
    ranks = score_hlr(boxes, scores, image, 0.4).tolist()
    assert ranks != score_hlr(boxes, scores, image, 0.9).tolist()
    losses = statistics.cls_loss[negatives].tolist()
    expected = isr_weights(ranks, NUM_NEGATIVES, losses, beta, gamma)
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bias, power", [(0.2, 1.0), (0.4, 2.0), (0.0, 0.5)])
def test_carl(bias, power):
    losses, statistics = prime_samples()
    weighted = losses.weighted(PrimeSample(carl_bias=bias, carl_power=power)(statistics))["box"]
    prob = statistics.detail("true_prob")
    v = [((1 - bias) * p + bias) ** power for p in prob[: len(IOU)]]
    mean = sum(v) / len(v)
    box_loss = losses.box.sum(dim=1)
    expected = sum(vi / mean * box_loss[i] for i, vi in enumerate(v)) / len(statistics)
    assert weighted.item() == pytest.approx(expected.item(), rel=1e-5)
    # It trains the classifier, too.
    (gradient,) = torch.autograd.grad(weighted, prob, retain_graph=True)
    (expected_gradient,) = torch.autograd.grad(expected, prob)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    assert gradient[: len(IOU)].abs().min() > 0


def test_classification_keeps_its_total_in_both_groups():
    losses, statistics = prime_samples()
    weights = PrimeSample()(statistics).cls
    assert not weights.requires_grad and weights.std() > 0.1
    for group in (slice(None, len(IOU)), slice(len(IOU), None)):
        total = (weights * losses.cls)[group].sum().item()
        assert total == pytest.approx(losses.cls[group].sum().item(), rel=1e-5)


def test_without_its_parts_it_is_uniform():
    _, statistics = prime_samples()
    ranked = ("pred_boxes", "pred_score", "image")
    details = {k: v for k, v in statistics.details.items() if k not in ranked}
    weights = PrimeSample(isr_p_gamma=0.0, isr_n_gamma=0.0, carl_power=0.0)(
        replace(statistics, details=details)  # negatives are not even ranked
    )
    assert weights.cls.tolist() == pytest.approx([1.0] * len(statistics))
    assert weights.box.tolist() == pytest.approx([1.0] * len(statistics))


@pytest.mark.parametrize("group", ["positives", "negatives", "nobody"])
def test_groups_may_be_empty(group):
    num_samples = 0 if group == "nobody" else 3
    is_foreground = [group == "positives"] * num_samples
    _, statistics = make_samples(is_foreground)
    boxes, scores = random_boxes(num_samples)
    zeros = torch.zeros(num_samples, dtype=torch.long)
    details = dict(object=zeros, gt_class=zeros, image=zeros, true_prob=scores)
    details |= dict(pred_boxes=boxes, pred_score=scores)
    statistics = replace(
        statistics, details={name: (lambda v=value: v) for name, value in details.items()}
    )
    weights = PrimeSample()(statistics)
    for task in (weights.cls, weights.box):
        assert len(task) == num_samples and torch.isfinite(task).all()


def test_infinite_predictions_give_finite_weights():
    _, statistics = prime_samples()
    statistics.iou[0] = statistics.cls_loss[0] = float("nan")
    boxes = statistics.detail("pred_boxes")
    boxes[-1], boxes[-2] = float("nan"), float("inf")
    statistics.detail("pred_score")[-1] = float("nan")
    weights = PrimeSample()(statistics)
    assert torch.isfinite(weights.cls).all() and torch.isfinite(weights.box).all()


def test_certain_samples_have_finite_weights_and_gradients():
    losses, statistics = prime_samples()
    prob = torch.zeros(len(statistics), requires_grad=True)
    statistics = replace(statistics, details={**statistics.details, "true_prob": lambda: prob})
    weights = PrimeSample(carl_bias=0.0, carl_power=0.5)(statistics)
    losses.weighted(weights)["box"].backward()
    assert torch.isfinite(weights.box).all() and torch.isfinite(prob.grad).all()


def test_a_dense_detectors_negatives_are_refused():
    boxes, scores = random_boxes(6000)
    with pytest.raises(UserError, match="6000 negatives.*ISR_N_GAMMA"):
        score_hlr(boxes, scores, torch.zeros(6000, dtype=torch.long), 0.5)


@pytest.mark.parametrize(
    "key, value",
    [
        *[(f"isr_{group}_beta", value) for group in "pn" for value in (-0.1, 1.1)],
        *[("carl_bias", -0.1), ("carl_bias", 1.1), ("nms_threshold", 1.5)],
        *[("isr_p_gamma", -1.0), ("isr_n_gamma", -1.0), ("carl_power", -1.0)],
    ],
)
def test_ranges(key, value):
    with pytest.raises(UserError, match=f"MODEL.SAMPLE_WEIGHTER.PRIMESAMPLE.{key.upper()} is"):
        PrimeSample(**{key: value})
