"""The suppressions against plain readings of the published algorithms, box by box."""

import math

import pytest
import torch
from torchvision.ops import batched_nms

from swn_d2.modeling.soft_nms import batched_soft_nms, iou_guided_nms, variance_voting


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area - width * height) if area > 0 else 0.0


def per_class(classes, algorithm):
    """[(index, new score)] of an algorithm that is given the indices of one class's boxes."""
    result = []
    for c in sorted(set(classes.tolist())):
        result += algorithm([i for i, other in enumerate(classes.tolist()) if other == c])
    return result


def plain_soft_nms(boxes, scores, classes, *, method, iou_threshold, sigma, min_score):
    """The pseudo-code of Bodla et al. 2017, without an early stop."""
    boxes, scores = boxes.double().tolist(), scores.double().tolist()

    def of_class(todo):
        kept, todo = [], list(todo)
        while todo:
            best = max(todo, key=lambda i: scores[i])  # the first of equals
            todo.remove(best)
            kept.append((best, scores[best]))
            for i in todo:
                overlap = iou(boxes[best], boxes[i])
                if method == "gaussian":
                    scores[i] *= math.exp(-(overlap**2) / sigma)
                elif overlap >= iou_threshold:
                    scores[i] *= 1 - overlap
        return [(i, score) for i, score in kept if score > min_score]

    return per_class(classes, of_class)


def plain_iou_guided_nms(boxes, scores, ious, classes, *, iou_threshold):
    """Algorithm 1 of Jiang et al. 2018."""

    def of_class(todo):
        kept, todo = [], list(todo)
        while todo:
            best = max(todo, key=lambda i: float(ious[i]))
            cluster = [i for i in todo if i == best or iou(boxes[best], boxes[i]) > iou_threshold]
            kept.append((best, max(float(scores[i]) for i in cluster)))
            todo = [i for i in todo if i not in cluster]
        return kept

    return per_class(classes, of_class)


def plain_variance_voting(boxes, variances, classes, keep, *, sigma):
    """Lines 8 to 10 of Algorithm 1 of He et al. 2019."""
    voted = []
    for best in keep.tolist():
        total, weight = [0.0] * 4, [0.0] * 4
        for i, box in enumerate(boxes.tolist()):
            overlap = iou(boxes[best].tolist(), box)
            if classes[i] == classes[best] and overlap > 0:
                p = math.exp(-((1 - overlap) ** 2) / sigma)
                for d in range(4):
                    weight[d] += p / float(variances[i, d])
                    total[d] += p * box[d] / float(variances[i, d])
        voted.append([t / w for t, w in zip(total, weight, strict=True)])
    return torch.tensor(voted)


def random_boxes(count, *, spread=20.0, seed=0):
    """Boxes of some 20 to 40 pixels, most of which overlap some other."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * spread
    size = 20 + 20 * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + size], dim=1)


def random(count, seed=1):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


#: what it is -> boxes, scores, classes.
SCENES = {
    "one class": (random_boxes(40), random(40), torch.zeros(40, dtype=torch.long)),
    "many classes, of all sizes": (
        random_boxes(200, spread=60),
        random(200),
        (random(200, seed=2).square() * 30).long() * 7 - 3,
    ),
    "ties": (
        random_boxes(30, spread=30),
        torch.tensor([0.9, 0.5, 0.7]).repeat(10),
        torch.arange(30) // 15,
    ),
    "identical boxes": (
        torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(4, 1),
        torch.tensor([0.5, 0.9, 0.9, 0.2]),
        torch.tensor([1, 1, 1, 0]),
    ),
    "boxes without area": (
        torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9], [1, 0, 9, 9]]),
        torch.tensor([0.5, 0.9, 0.8, 0.7]),
        torch.zeros(4, dtype=torch.long),
    ),
    "one box": (random_boxes(1), torch.tensor([0.4]), torch.tensor([5])),
    "no box": (torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long)),
}
every_scene = pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)


def assert_same(result, expected):
    """The same boxes with the same scores, highest first. (In float32 against float64.)"""
    keep, scores = result
    assert keep.dtype == torch.long and scores.dtype == torch.float32
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    got = dict(zip(keep.tolist(), scores.tolist(), strict=True))
    assert len(got) == len(keep)
    assert got == pytest.approx(dict(expected), rel=1e-4)


@every_scene
@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("min_score", [0.0, 0.05])
def test_soft_nms_is_the_published_algorithm(scene, method, min_score):
    settings = {"method": method, "iou_threshold": 0.4, "sigma": 0.3, "min_score": min_score}
    expected = plain_soft_nms(*scene, **settings)
    assert_same(batched_soft_nms(*scene, **settings), expected)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("limit", [0, 1, 7, 50, 1000])
def test_soft_nms_keeps_the_highest(method, limit):
    """The steps that it saves are those which would change nothing."""
    boxes, _, classes = SCENES["many classes, of all sizes"]
    scores = random(200, seed=3)
    every, all_scores = batched_soft_nms(boxes, scores, classes, method=method)
    keep, new_scores = batched_soft_nms(boxes, scores, classes, method=method, max_detections=limit)
    assert len(keep) == min(limit, len(every))
    assert torch.equal(keep, every[:limit]) and torch.equal(new_scores, all_scores[:limit])


def test_soft_nms_leaves_its_input_alone():
    scene = SCENES["one class"]
    before = [tensor.clone() for tensor in scene]
    batched_soft_nms(*scene, method="gaussian")
    assert all(map(torch.equal, scene, before))


def test_soft_nms_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4], [0, 0, 10, 10]])
    scores, classes = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 0, 1])
    keep, new_scores = batched_soft_nms(boxes, scores, classes, iou_threshold=0.5)
    assert keep.tolist() == [0, 2, 3, 1]
    # The IoU of the second with the first is 0.8, and then, with the third, 0.5.
    assert new_scores.tolist() == pytest.approx([0.9, 0.7, 0.6, 0.8 * 0.2 * 0.5])


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="'linear' or 'gaussian', not 'hard'"):
        batched_soft_nms(*SCENES["one box"], method="hard")


@every_scene
def test_iou_guided_nms_is_the_published_algorithm(scene):
    boxes, scores, classes = scene
    # Negative ones, too: the network's output is normalised.
    ious = torch.randn(len(boxes), generator=torch.Generator().manual_seed(1))
    expected = plain_iou_guided_nms(boxes.tolist(), scores, ious, classes, iou_threshold=0.4)
    result = iou_guided_nms(boxes, scores, ious, classes, iou_threshold=0.4)
    assert_same(result, expected)
    keep, new_scores = iou_guided_nms(
        boxes, scores, ious, classes, iou_threshold=0.4, max_detections=2
    )
    assert torch.equal(keep, result[0][:2]) and torch.equal(new_scores, result[1][:2])


def test_iou_guided_nms_is_nms_where_the_scores_rank_both():
    boxes, _, classes = SCENES["many classes, of all sizes"]
    scores = random(200, seed=3)
    keep, new_scores = iou_guided_nms(boxes, scores, scores, classes, iou_threshold=0.4)
    assert torch.equal(keep, batched_nms(boxes, scores, classes, 0.4))
    assert torch.equal(new_scores, scores[keep])


@pytest.mark.parametrize("scene", ["one class", "many classes, of all sizes", "one box"])
@pytest.mark.parametrize("sigma", [0.02, 0.5])
def test_variance_voting_is_the_published_algorithm(scene, sigma):
    boxes, scores, classes = SCENES[scene]
    generator = torch.Generator().manual_seed(2)
    variances = torch.exp(2 * torch.randn(len(boxes), 4, generator=generator))
    keep = batched_nms(boxes, scores, classes, 0.5)
    voted = variance_voting(boxes, variances, classes, keep, sigma=sigma)
    expected = plain_variance_voting(boxes, variances, classes, keep, sigma=sigma)
    # In float32 against float64, on coordinates of some 100 pixels.
    assert torch.allclose(voted, expected, rtol=0, atol=1e-3)
    assert len(boxes) == 1 or (voted - boxes[keep]).abs().max() > 1


def test_a_box_without_area_is_not_moved():
    boxes, _, classes = SCENES["boxes without area"]
    keep = torch.tensor([1, 2])
    voted = variance_voting(boxes, torch.ones(4, 4), classes, keep)
    assert torch.equal(voted[0], boxes[1])
    assert not torch.equal(voted[1], boxes[2]) and torch.isfinite(voted).all()


def test_voting_without_boxes():
    nothing = torch.zeros(0, 4)
    keep = torch.zeros(0, dtype=torch.long)
    assert variance_voting(nothing, nothing, keep, keep).shape == (0, 4)


def test_variance_voting_keeps_its_precision_under_autocast():
    corner = 1000 + torch.arange(6.0)[:, None] * torch.tensor([1.0, 2.0])
    boxes, variances = torch.cat([corner, corner + 90], dim=1), torch.full((6, 4), 0.5)
    arguments = (boxes, variances, torch.zeros(6, dtype=torch.long), torch.tensor([2]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        voted = variance_voting(*arguments)
    assert torch.equal(voted, variance_voting(*arguments))
