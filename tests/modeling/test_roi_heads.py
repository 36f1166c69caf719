"""The box branch of SWNROIHeads."""

import copy

import pytest
import torch
from detectron2.modeling import build_model

from swn_d2.errors import UserError
from tests.tiny import (
    READINGS,
    batch,
    batch_with_empty_image,
    tiny_config,
    tiny_model,
    training_losses,
)

from .stock import assert_losses_are_stock, every_batch, stock_and_swn

BOX_HEADS = {
    "class-agnostic": ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True],
    "weight 2": ["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 2.0],
    "GIoU, class-agnostic, weight 2": [
        *("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
        *("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 2.0),
    ],
}
ALL_READINGS = pytest.mark.parametrize("reading", READINGS)


@every_batch
@pytest.mark.parametrize("opts", BOX_HEADS.values(), ids=BOX_HEADS)
def test_losses_at_the_start_are_stock(opts, inputs):
    assert_losses_are_stock(*stock_and_swn("faster_rcnn", *opts), inputs())


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e20])
@ALL_READINGS
def test_non_finite_box_predictions(reading, value):
    """The loss may become infinite, as in stock Detectron2; the weights stay finite."""
    model = tiny_model(tiny_config(reading=reading))
    predictor = model.roi_heads.box_predictor
    with torch.no_grad():
        predictor.bbox_pred.bias[0] = value
    seen = []
    weighter = model.roi_heads.sample_weighter
    weighter.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    training_losses(model, batch())
    statistics, weights = seen[0]
    assert not torch.isfinite(statistics.box_loss).all() or statistics.box_loss.max() > 1e10
    assert torch.isfinite(weights.box).all()
    assert weights.cls is None or torch.isfinite(weights.cls).all()


def test_statistics():
    """Against the definitions, region by region, on boxes that are decoded by hand."""
    model = tiny_model(tiny_config())
    predictor = model.roi_heads.box_predictor
    seen = {}
    sample_losses = predictor.sample_losses

    def spy(predictions, proposals, targets):
        seen.update(predictions=predictions, proposals=proposals)
        seen["losses"], seen["statistics"] = sample_losses(predictions, proposals, targets)
        return seen["losses"], seen["statistics"]

    predictor.sample_losses = spy
    with torch.no_grad():
        predictor.bbox_pred.weight.mul_(100)  # far enough from 0 for boxes to move
    training_losses(model, batch_with_empty_image())
    scores, deltas = (p.detach() for p in seen["predictions"])
    statistics = seen["statistics"]
    assert statistics.is_foreground.any() and not statistics.is_foreground.all()
    row = 0
    for proposals in seen["proposals"]:
        for i in range(len(proposals)):
            gt_class = int(proposals.gt_classes[i])
            expected = -torch.log_softmax(scores[row], 0)[gt_class]
            assert statistics.cls_loss[row].item() == pytest.approx(expected.item(), rel=1e-5)
            if gt_class == model.roi_heads.num_classes:
                assert not statistics.is_foreground[row]
                assert statistics.iou[row] == statistics.prob[row] == 0
                assert (statistics.box_loss[row] == 0).all()
            else:
                assert statistics.is_foreground[row]
                prob = torch.softmax(scores[row], 0)[gt_class]
                assert statistics.prob[row].item() == pytest.approx(prob.item(), rel=1e-5)
                proposal = proposals.proposal_boxes.tensor[i]
                target = proposals.gt_boxes.tensor[i]
                delta = deltas[row, 4 * gt_class : 4 * gt_class + 4]
                iou = intersection_over_union(decode(delta, proposal), target)
                assert statistics.iou[row].item() == pytest.approx(iou, abs=1e-4)
                error = (delta - encode(target, proposal)).abs()
                smooth = torch.where(error < 1, 0.5 * error**2, error - 0.5)
                torch.testing.assert_close(statistics.box_loss[row], smooth, rtol=1e-4, atol=1e-5)
            row += 1
    assert row == len(statistics)


BOX_REG_WEIGHTS = torch.tensor([10.0, 10.0, 5.0, 5.0])


def center_and_size(box):
    return torch.stack(
        [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]]
    )


def encode(target, proposal):
    (x, y, w, h), (px, py, pw, ph) = center_and_size(target), center_and_size(proposal)
    delta = torch.stack([(x - px) / pw, (y - py) / ph, (w / pw).log(), (h / ph).log()])
    return delta * BOX_REG_WEIGHTS


def decode(delta, proposal):
    dx, dy, dw, dh = delta / BOX_REG_WEIGHTS
    px, py, pw, ph = center_and_size(proposal)
    x, y, w, h = px + dx * pw, py + dy * ph, pw * dw.exp(), ph * dh.exp()
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2])


def intersection_over_union(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(float(width), 0.0) * max(float(height), 0.0)
    areas = [float((box[2] - box[0]) * (box[3] - box[1])) for box in (a, b)]
    return intersection / (sum(areas) - intersection)


def test_the_weights_reach_the_losses():
    """Weights that are far from 1 change the losses by what they are."""
    model = tiny_model(tiny_config("MODEL.SWN.HEADS", "separate", reading="authors"))
    plain = training_losses(copy.deepcopy(model), batch())
    network = model.roi_heads.sample_weighter.network
    with torch.no_grad():
        network.heads["cls"][-1].bias.fill_(-1.0)
        network.heads["box"][-1].bias.fill_(1.5)
    losses = training_losses(model, batch())
    e = torch.e
    assert losses["loss_cls"].item() == pytest.approx(plain["loss_cls"].item() * e, rel=1e-4)
    assert losses["loss_box_reg"].item() == pytest.approx(
        plain["loss_box_reg"].item() * e**-1.5, rel=1e-4
    )
    assert losses["loss_swn_cls"].item() == pytest.approx(0.5 * (-1.0 - 1.0), rel=1e-4)
    assert losses["loss_swn_box"].item() == pytest.approx(0.5 * 1.5, rel=1e-4)


def test_train_on_pred_boxes():
    model = tiny_model(tiny_config("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True))
    assert torch.isfinite(sum(training_losses(model, batch()).values()))


def test_sigmoid_classification_is_refused():
    cfg = tiny_config()
    if "USE_SIGMOID_CE" not in cfg.MODEL.ROI_BOX_HEAD:
        pytest.skip("this Detectron2 has no sigmoid classification loss")
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    with pytest.raises(UserError, match="USE_SIGMOID_CE"):
        build_model(cfg)
