"""IoU-Net's head: what it is trained on, its loss, and its place in a detector."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F
from torchvision.ops import box_iou

from swn_d2.errors import UserError
from swn_d2.modeling.iou_head import IoUHead, boxes_of_iou, normalized
from swn_d2.weighting import GivenWeights
from tests.tiny import (
    batch,
    batch_with_empty_image,
    empty_batch,
    tiny_config,
    tiny_model,
    training_losses,
)

WITH_HEAD = [
    *("MODEL.SAMPLE_WEIGHTER.NAME", "Uniform"),
    *("MODEL.IOU_HEAD.ENABLED", True),
    *("MODEL.IOU_HEAD.FC_DIM", 32),
]
BOXES = torch.tensor([[10.0, 10.0, 50.0, 30.0], [0.0, 40.0, 8.0, 90.0]])


def test_boxes_have_the_iou_that_is_asked_for():
    torch.manual_seed(0)
    boxes = BOXES.repeat(500, 1)
    ious = 0.5 + 0.5 * torch.rand(1000)
    made = boxes_of_iou(boxes, ious)
    actual = box_iou(made, boxes).diagonal()
    # Bisection to 2 * 2^-24 of a step, along which the IoU changes by at most some 10 per step.
    assert torch.allclose(actual, ious, rtol=0, atol=1e-5)
    # Every coordinate moves, to either side.
    moved = made - boxes
    for column in moved.T:
        assert column.min() < -1 and column.max() > 1
    sizes = (made[:, 2:] - made[:, :2]) / (boxes[:, 2:] - boxes[:, :2])
    assert sizes.min() < 0.8 and sizes.max() > 1.25


def test_boxes_of_iou_1_are_the_boxes():
    assert torch.allclose(boxes_of_iou(BOXES, torch.ones(2)), BOXES, rtol=0, atol=1e-4)


def test_ious_are_normalized_to_1():
    assert normalized(torch.tensor([0.5, 0.75, 1.0])).tolist() == [-1.0, 0.0, 1.0]


def images(*counts, size=(100, 100)):
    result = []
    for count in counts:
        of_image = Instances(size)
        of_image.gt_boxes = Boxes(BOXES[:count])
        of_image.gt_classes = torch.arange(count) + 1
        result.append(of_image)
    return result


def test_loss():
    """Of a head whose prediction is known, on boxes that the pooler is given."""
    torch.manual_seed(0)
    head = IoUHead(
        ShapeSpec(channels=1, height=1, width=1),
        num_classes=3,
        fc_dim=4,
        boxes_per_image=200,
        loss_weight=2.5,
    )
    with torch.no_grad():
        head.layers[-1].weight.zero_()
        head.layers[-1].bias.copy_(torch.tensor([9.0, 0.3, -2.5]))  # class 0 has no object
    pooled = []

    def pool(boxes):
        pooled.extend(boxes)
        return torch.rand(sum(map(len, boxes)), 1, 1, 1)

    targets = images(2, 0, 1)
    loss = head.losses(pool, targets)
    assert loss.keys() == {"loss_iou"}
    assert [len(boxes) for boxes in pooled] == [200, 0, 200]
    total, ious = 0.0, []
    for of_image, boxes in zip(targets, pooled, strict=True):
        inside = boxes.tensor
        assert ((inside >= 0) & (inside <= 100)).all()
        if len(boxes):
            # A box belongs to the object that it overlaps: the two are apart.
            iou, which = box_iou(inside, of_image.gt_boxes.tensor).max(dim=1)
            assert len(of_image) == 1 or 60 < int(which.sum()) < 140  # both are taken
            predicted = torch.where(which == 0, 0.3, -2.5)
            total += F.smooth_l1_loss(predicted, 4 * iou - 3, reduction="sum").item()
            ious.append(iou)
    assert loss["loss_iou"].item() == pytest.approx(2.5 * total / 400, rel=1e-4)
    ious = torch.cat(ious)
    assert ious.min() >= 0.5 - 1e-4
    # Uniform, but for the boxes that are clipped; half of them are below 0.75, give or take
    # four standard deviations of 0.025.
    assert (ious < 0.75).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_it_learns_the_iou():
    """On features that hold the corners of the box, a head tells how well it is placed."""
    torch.manual_seed(0)
    head = IoUHead(ShapeSpec(channels=4, height=1, width=1), num_classes=3, fc_dim=64)
    adam = torch.optim.Adam(head.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = head.losses(lambda boxes: pooled_corners(boxes), images(1))["loss_iou"]
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    # Targets are uniform on [-1, 1], whose mean smooth-L1 loss is 1/6 for a constant.
    assert losses[0] == pytest.approx(1 / 6, rel=0.3)
    assert sum(losses[-10:]) / 10 < 0.06

    candidates = Instances((100, 100))
    corners = BOXES[:1] + torch.tensor([[0.0] * 4, [4.0, 0, 4, 0], [9.0, 4, 9, 4]])
    candidates.pred_boxes = Boxes(corners)
    candidates.pred_classes = torch.ones(3, dtype=torch.long)
    with torch.no_grad():
        head.rate(pooled_corners, [candidates])
    assert candidates.predicted_iou.argsort(descending=True).tolist() == [0, 1, 2]


def test_a_box_counts_as_much_as_its_object_and_where_that_is():
    head = IoUHead(ShapeSpec(channels=4, height=1, width=1), num_classes=3, fc_dim=8)

    def loss(given):
        torch.manual_seed(0)  # the boxes that are made
        return head.losses(lambda boxes: pooled_corners(boxes), images(1, 2), given)["loss_iou"]

    number = sum(len(of_image) for of_image in images(1, 2))
    plain = loss(None)
    assert loss(GivenWeights(None, torch.zeros(number), None)) == plain  # of classes
    of_object = GivenWeights(torch.full((number,), 0.5), None, torch.full((number,), 0.5))
    assert loss(of_object).item() == pytest.approx(plain.item() / 4)
    parts = [loss(GivenWeights(weights, None, None)) for weights in torch.eye(number)]
    assert all(part > 0 for part in parts)
    assert sum(parts).item() == pytest.approx(plain.item())


def pooled_corners(boxes):
    return (torch.cat([b.tensor for b in boxes]) - BOXES[0])[:, :, None, None] / 10


def test_rates_every_box_as_of_its_class_and_image():
    head = IoUHead(ShapeSpec(channels=1, height=2, width=2), num_classes=3, fc_dim=8)
    candidates = []
    for classes in ([0, 2, 1], [], [1, 1]):
        of_image = Instances((100, 100))
        of_image.pred_boxes = Boxes(BOXES[:1].repeat(len(classes), 1))
        of_image.pred_classes = torch.tensor(classes, dtype=torch.long)
        candidates.append(of_image)
    features = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        every_class = head.layers(features)
        head.rate(lambda boxes: features, candidates)
    expected = every_class[torch.arange(5), torch.tensor([0, 2, 1, 1, 1])]
    actual = [of_image.predicted_iou for of_image in candidates]
    assert [len(of_image) for of_image in actual] == [3, 0, 2]
    assert torch.equal(torch.cat(actual), expected)


def test_the_detector_beside_it_is_trained_as_without():
    """The same start and the same regions, so that runs can be compared in pairs."""
    stock = tiny_model(tiny_config(stock=True))
    built = torch.get_rng_state()
    model = tiny_model(tiny_config(*WITH_HEAD))
    assert torch.equal(torch.get_rng_state(), built)
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[key], value) for key, value in stock.named_parameters())
    losses, states = [], []
    for detector in (stock, model):
        losses.append({k: v.item() for k, v in training_losses(detector, batch()).items()})
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert losses[1].pop("loss_iou") > 0
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("inputs", [batch, batch_with_empty_image, empty_batch])
def test_every_parameter_has_a_gradient(inputs):
    """Which DistributedDataParallel needs."""
    model = tiny_model(tiny_config(*WITH_HEAD))
    losses = training_losses(model, inputs())
    assert (losses["loss_iou"] > 0) == (inputs is not empty_batch)
    sum(losses.values()).backward()
    grads = {key: p.grad for key, p in model.named_parameters()}
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    assert grads["roi_heads.iou_head.layers.5.bias"].any() == (inputs is not empty_batch)


@pytest.mark.parametrize(
    "key, value", [("FC_DIM", 0), ("BOXES_PER_IMAGE", 0), ("LOSS_WEIGHT", -1.0)]
)
def test_bad_settings(key, value):
    with pytest.raises(UserError, match=f"MODEL.IOU_HEAD.{key} is {value}, but it must be"):
        tiny_model(tiny_config(*WITH_HEAD, f"MODEL.IOU_HEAD.{key}", value))
