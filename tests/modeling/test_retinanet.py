"""SWNRetinaNet: anchors as samples."""

import copy

import pytest
import torch
from detectron2.structures import Boxes
from fvcore.nn import sigmoid_focal_loss, smooth_l1_loss

from swn_d2.errors import UserError
from tests.tiny import batch, batch_with_empty_image, empty_batch, tiny_config, tiny_model
from tests.tiny import training_losses as run

from .stock import stock_and_swn

READING = {"detector": "retinanet", "reading": "authors"}


def gathered(model, inputs):
    """The arguments and the results of one call of ``sample_losses``."""
    seen = {}
    sample_losses = model.sample_losses

    def spy(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        seen.update(anchors=Boxes.cat(anchors).tensor, labels=gt_labels, gt_boxes=gt_boxes)
        seen.update(pred_logits=pred_logits)
        seen.update(logits=torch.cat(pred_logits, 1), deltas=torch.cat(pred_anchor_deltas, 1))
        result = sample_losses(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes)
        seen["losses"], seen["statistics"] = result
        return result

    model.sample_losses = spy
    seen["reduced"] = run(model, inputs)
    return seen


def test_statistics():
    """Against the definitions, anchor by anchor."""
    model = tiny_model(tiny_config(**READING))
    with torch.no_grad():
        model.head.bbox_pred.weight.mul_(30)  # far enough from 0 for boxes to move
    # The positives are in the second image.
    seen = gathered(model, [*empty_batch(), *batch()])
    statistics, row = seen["statistics"], 0
    assert statistics.is_foreground.any() and not statistics.is_foreground.all()
    for image, labels in enumerate(seen["labels"]):
        for anchor, label in enumerate(labels.tolist()):
            if label < 0:
                continue
            logits = seen["logits"][image, anchor].detach()
            target = torch.zeros_like(logits)
            if label < model.num_classes:
                target[label] = 1
            if label < model.num_classes or row % 50 == 0:  # all positives, some negatives
                focal = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2, reduction="sum")
                assert statistics.cls_loss[row].item() == pytest.approx(focal.item(), rel=1e-5)
            if label == model.num_classes:
                assert not statistics.is_foreground[row]
                assert statistics.iou[row] == statistics.prob[row] == 0
                assert (statistics.box_loss[row] == 0).all()
            else:
                assert statistics.is_foreground[row]
                assert statistics.prob[row].item() == pytest.approx(logits[label].sigmoid().item())
                delta = seen["deltas"][image, anchor].detach()[None]
                source, target = (
                    seen["anchors"][anchor][None],
                    seen["gt_boxes"][image][anchor][None],
                )
                expected = smooth_l1_loss(
                    delta, model.box2box_transform.get_deltas(source, target), beta=0.11
                )[0]
                torch.testing.assert_close(statistics.box_loss[row], expected)
                predicted = model.box2box_transform.apply_deltas(delta, source)[0]
                iou = intersection_over_union(predicted, target[0])
                assert statistics.iou[row].item() == pytest.approx(iou, abs=1e-5)
            row += 1
    assert row == len(statistics)


def intersection_over_union(a, b):
    width, height = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
    areas = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()
    return float(width * height / (areas - width * height))


def test_ignored_anchors_are_no_samples():
    model = tiny_model(tiny_config(**READING))
    seen = gathered(model, batch())
    labels = torch.stack(seen["labels"])
    ignored = labels < 0
    assert ignored.any()
    assert len(seen["statistics"]) == (~ignored).sum()
    grad = torch.cat(torch.autograd.grad(seen["reduced"]["loss_cls"], seen["pred_logits"]), dim=1)
    assert (grad[ignored] == 0).all() and (grad[~ignored] != 0).all()


def test_the_normalizer_is_stock():
    """The moving average of positives, through batches with and without any."""
    models = stock_and_swn("retinanet")
    for step, inputs in enumerate((batch, empty_batch, batch_with_empty_image)):
        for model in models:
            run(model, inputs(seed=step))
        stock, swn = (model.loss_normalizer for model in models)
        assert swn == stock != 100


def test_the_weights_reach_the_losses():
    model = tiny_model(tiny_config("MODEL.SWN.HEADS", "separate", **READING))
    plain = run(copy.deepcopy(model), batch())
    with torch.no_grad():
        model.sample_weighter.network.heads["cls"][-1].bias.fill_(-1.0)
        model.sample_weighter.network.heads["box"][-1].bias.fill_(1.5)
    losses = run(model, batch())
    e = torch.e
    assert losses["loss_cls"].item() == pytest.approx(plain["loss_cls"].item() * e, rel=1e-4)
    assert losses["loss_box_reg"].item() == pytest.approx(
        plain["loss_box_reg"].item() * e**-1.5, rel=1e-4
    )
    # Means over their groups, which here are all anchors and the positives.
    assert losses["loss_swn_cls"].item() == pytest.approx(0.5 * -1.0, rel=1e-4)
    assert losses["loss_swn_box"].item() == pytest.approx(0.5 * 1.5, rel=1e-4)


def test_the_divisor_of_the_loss_is_refused():
    with pytest.raises(UserError, match="REGULARIZER_DIVISOR.*set it to group"):
        tiny_model(tiny_config(detector="retinanet", reading="paper"))
