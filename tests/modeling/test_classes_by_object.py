"""Classes weighted by object in real detectors."""

import pytest
import torch
from torch.nn import functional as F

from swn_d2.weighting import sigmoid_classification
from tests.tiny import (
    batch,
    batch_with_empty_image,
    empty_batch,
    tiny_config,
    tiny_model,
    training_losses,
    weighters,
)

R_CNNS = ["faster_rcnn", "mask_rcnn", "cascade_rcnn"]
OPTS = ["MODEL.SWN.TASKS", ["cls"]]
JOINT = ["MODEL.SWN.TASKS", ["cls", "box", "mask"]]


def model_of(detector="faster_rcnn", opts=OPTS, *, is_weighted=False):
    """A detector whose classes have the weight 1 at first, or ``is_weighted`` as if by what was
    seen before."""
    model = tiny_model(tiny_config(*opts, detector=detector))
    if is_weighted:
        for weighter in weighters(model):
            last = weighter.rightness.network.heads["cls"][-1]
            torch.nn.init.normal_(last.weight, std=3.0)
            torch.nn.init.constant_(last.bias, -0.5)
            weighter.rightness.unlikely.copy_(torch.tensor([3e8, 1e9]))
    return model


@pytest.mark.parametrize("opts", [OPTS, JOINT], ids=["alone", "with boxes"])
@pytest.mark.parametrize("detector", [*R_CNNS, "retinanet"])
def test_trains_with_finite_losses_and_sees_the_objects(detector, opts):
    model = model_of(detector, opts=opts, is_weighted=True)
    weights = []
    weighters(model)[0].register_forward_hook(lambda *args: weights.append(args[2].label))
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    for step, inputs in enumerate((batch(), empty_batch(), batch_with_empty_image(), batch())):
        losses = training_losses(model, inputs, start_iter=step)
        assert all(torch.isfinite(loss) for loss in losses.values()), losses
        sgd.zero_grad()
        sum(losses.values()).backward()
        # What DistributedDataParallel needs, and a graph through the weights must not spoil.
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
        sgd.step()
    assert (weights[0] - 1).abs().max() > 1e-3
    assert (weighters(model)[0].rightness.recent[-1] >= 0).all()


def test_stages_without_masks_can_weight_classes_alone():
    model = tiny_model(
        tiny_config("MODEL.SWN.TASKS", ["cls", "mask"], detector="cascade_mask_rcnn")
    )
    assert [weighter.tasks for weighter in weighters(model)] == [("mask",), (), ()]
    losses = training_losses(model, batch())
    assert "loss_swn_cls_stage2" in losses
    sum(losses.values()).backward()
    assert all(p.grad is not None for w in weighters(model) for p in w.parameters())


@pytest.mark.parametrize("detector", [*R_CNNS, "retinanet"])
def test_starts_with_the_plain_losses(detector):
    plain = training_losses(tiny_model(tiny_config(detector=detector, stock=True)), batch())
    ours = training_losses(model_of(detector), batch())
    for name, loss in plain.items():
        assert ours[name].item() == pytest.approx(loss.item(), rel=1e-5), name


def test_the_class_part_of_the_cross_entropy():
    model = model_of()
    seen = []
    weighters(model)[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    scores = []
    model.roi_heads.box_predictor.register_forward_hook(lambda *args: scores.append(args[2][0]))
    training_losses(model, batch())
    log_probs = F.log_softmax(scores[0], dim=1)
    classes = seen[0].detail("gt_class")
    is_object = 1 - log_probs[:, -1].exp()
    label_losses = seen[0].detail("label_losses")
    of_classes = -(log_probs[:, :-1] - is_object.log()[:, None])
    assert torch.allclose(label_losses, of_classes[seen[0].is_foreground], atol=1e-5)
    for index in range(len(classes)):
        expected = 0.0
        if seen[0].is_foreground[index]:
            of_class = log_probs[index, classes[index]].exp()
            expected = -torch.log(of_class / is_object[index]).item()
        assert seen[0].detail("label_loss")[index].item() == pytest.approx(expected, abs=1e-5)
    assert seen[0].is_foreground.any() and not seen[0].is_foreground.all()


def test_the_classes_of_binary_losses():
    model = model_of("retinanet", is_weighted=True)
    seen = []
    weighters(model)[0].register_forward_hook(lambda *args: seen.append(args[1:]))
    training_losses(model, batch())
    (statistics,), weights = seen[0]
    prob = torch.linspace(0.1, 0.9, 6).view(2, 3)
    classification = sigmoid_classification(
        torch.logit(prob), torch.tensor([3, 1]), lambda logits, target: logits
    )
    # That a positive is of one class and not of the two others, among such outcomes.
    p, q = prob[1], 1 - prob[1]
    only = torch.stack([p[0] * q[1] * q[2], q[0] * p[1] * q[2], q[0] * q[1] * p[2]])
    expected = -torch.log(only / only.sum())[None]
    assert torch.allclose(classification.details["label_losses"](), expected, atol=1e-5)
    assert statistics.detail("label_losses").shape == (len(statistics.foreground), 3)
    of_positives = statistics.cls_loss * statistics.is_foreground
    torch.testing.assert_close(statistics.detail("label_loss"), of_positives)  # as a whole
    assert (weights.label - 1).abs().max() > 1e-3
