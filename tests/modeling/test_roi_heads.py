"""SWNROIHeads against Detectron2's StandardROIHeads, on the same parameters and inputs."""

import copy
import logging
import subprocess
import sys

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from swn_d2 import load_config
from swn_d2.engine import SafeCheckpointer, is_sample_weighter_key
from swn_d2.errors import UserError
from swn_d2.modeling import LOG_PERIOD
from tests.tiny import (
    CONFIGS,
    READINGS,
    batch,
    batch_with_empty_image,
    empty_batch,
    tiny_config,
    tiny_model,
    training_losses,
)
from tests.weighting.conftest import randomize

BATCHES = {"objects": batch, "an empty image": batch_with_empty_image, "no objects": empty_batch}
BOX_HEADS = {
    "smooth-L1": [],
    "L1": ["MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 0.0],
    "GIoU": ["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou"],
    "class-agnostic": ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True],
    "GIoU, class-agnostic, weight 2": [
        *("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
        *("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 2.0),
    ],
}
# An untrained ResNet with frozen normalisation multiplies its input by about a thousand.
UNTRAINED = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.PIXEL_STD", [1e5, 1e5, 1e5]]
ALL_READINGS = pytest.mark.parametrize("reading", READINGS)


def stock_and_swn(*opts, reading="relative"):
    """The two models with the same detector parameters."""
    stock = tiny_model(tiny_config(*opts, roi_heads="StandardROIHeads"))
    swn = tiny_model(tiny_config(*opts, reading=reading))
    result = swn.load_state_dict(stock.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert result.missing_keys and all(map(is_sample_weighter_key, result.missing_keys))
    return stock, swn


@pytest.mark.parametrize("inputs", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("opts", BOX_HEADS.values(), ids=BOX_HEADS)
@ALL_READINGS
def test_losses_at_the_start_are_stock(reading, opts, inputs):
    stock, swn = stock_and_swn(*opts, reading=reading)
    expected = training_losses(stock, inputs())
    actual = training_losses(swn, inputs())
    for name, loss in expected.items():
        assert actual[name].item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-8), name
    added = set(actual) - set(expected)
    assert added == {f"loss_swn_{task}" for task in swn.roi_heads.sample_weighter.tasks}
    assert all(abs(actual[name].item()) < 1e-6 for name in added)


def test_uniform_trains_as_stock():
    """Five steps with plain SGD: the same losses at every step."""
    stock = tiny_model(tiny_config(roi_heads="StandardROIHeads"))
    swn = tiny_model(tiny_config("MODEL.SAMPLE_WEIGHTER.NAME", "Uniform"))
    swn.load_state_dict(stock.state_dict())  # strict: Uniform adds no key
    history = []
    for model in (stock, swn):
        sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        history.append([])
        for step in range(5):
            losses = training_losses(model, batch(seed=step), seed=step)
            sgd.zero_grad()
            sum(losses.values()).backward()
            sgd.step()
            history[-1].append({name: loss.item() for name, loss in losses.items()})
    for expected, actual in zip(*history, strict=True):
        assert actual == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("opts", BOX_HEADS.values(), ids=BOX_HEADS)
def test_inference_is_stock_to_the_bit(opts):
    stock, swn = stock_and_swn(*opts)
    randomize(swn.roi_heads.sample_weighter)
    inputs = batch()
    with torch.no_grad():
        expected, actual = stock.eval()(inputs), swn.eval()(inputs)
    for a, e in zip(actual, expected, strict=True):
        assert len(e["instances"]) > 0
        assert torch.equal(a["instances"].pred_boxes.tensor, e["instances"].pred_boxes.tensor)
        assert torch.equal(a["instances"].scores, e["instances"].scores)
        assert torch.equal(a["instances"].pred_classes, e["instances"].pred_classes)


def test_checkpoint_loads_into_stock_detectron2(tmp_path):
    """ResNet-50 from this project's config into the model zoo's, in a fresh interpreter that
    never imports swn_d2."""
    cfg = load_config(
        str(CONFIGS / "COCO-Detection" / "faster_rcnn_R_50_FPN_1x_swn.yaml"),
        ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *UNTRAINED],
    )
    model = tiny_model(cfg)
    SafeCheckpointer(model, str(tmp_path)).save("model")
    images = [i["image"] for i in batch()]
    inputs = [{"image": image, "height": 64, "width": 96} for image in images]
    with torch.no_grad():
        instances = [r["instances"].get_fields() for r in model.eval()(inputs)]
    detections = [(i["pred_boxes"].tensor, i["scores"], i["pred_classes"]) for i in instances]
    torch.save({"inputs": inputs, "detections": detections}, tmp_path / "io.pt")
    code = f"""
import sys, torch
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
cfg = get_cfg()
cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
cfg.merge_from_list(["MODEL.DEVICE", "cpu", *{UNTRAINED}])
model = build_model(cfg)
path = {str(tmp_path / "model.pth")!r}
result = model.load_state_dict(torch.load(path)["model"], strict=False)
assert not result.missing_keys
assert result.unexpected_keys and all("sample_weighter" in key for key in result.unexpected_keys)
model = build_model(cfg).eval()
DetectionCheckpointer(model).load(path)
io = torch.load({str(tmp_path / "io.pt")!r})
with torch.no_grad():
    results = [r["instances"] for r in model(io["inputs"])]
for actual, (boxes, scores, classes) in zip(results, io["detections"]):
    assert len(scores) > 0
    assert torch.equal(actual.pred_boxes.tensor, boxes)
    assert torch.equal(actual.scores, scores) and torch.equal(actual.pred_classes, classes)
assert "swn_d2" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("inputs", BATCHES.values(), ids=BATCHES)
@ALL_READINGS
def test_every_parameter_gets_a_gradient(reading, inputs):
    """DistributedDataParallel stops on a parameter that took no part in the loss."""
    model = tiny_model(tiny_config(reading=reading))
    losses = training_losses(model, inputs())
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("inputs", BATCHES.values(), ids=BATCHES)
@ALL_READINGS
def test_bfloat16_autocast_trains(reading, inputs):
    model = tiny_model(tiny_config(reading=reading))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = training_losses(model, inputs())
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_cls"].dtype == torch.float32
    weighter = model.roi_heads.sample_weighter
    assert all(torch.isfinite(p.grad).all() for p in weighter.parameters())


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
    assert torch.isfinite(weights.box).all() and torch.isfinite(weights.cls).all()


def test_statistics():
    """Against the definitions, region by region, on boxes that are decoded by hand."""
    model = tiny_model(tiny_config())
    predictor = model.roi_heads.box_predictor
    seen = {}
    sample_losses = predictor.sample_losses

    def spy(predictions, proposals):
        seen.update(predictions=predictions, proposals=proposals)
        seen["losses"], seen["statistics"] = sample_losses(predictions, proposals)
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


def test_scalars_are_logged_when_detectron2_writes():
    model = tiny_model(tiny_config(reading="authors")).train()
    for iteration, is_logged in ((LOG_PERIOD - 2, False), (LOG_PERIOD - 1, True)):
        with EventStorage(iteration) as storage:
            model(batch())
            names = set(storage.latest())
        expected = {
            f"{kind}_{statistic}"
            for kind in ("weights/cls_fg", "weights/cls_bg", "weights/box", "swn/cls_bg", "swn/box")
            for statistic in ("mean", "std")
        }
        assert expected.issubset(names) == is_logged
    assert storage.latest()["weights/box_mean"][0] == pytest.approx(1.0, abs=1e-5)
    assert storage.latest()["swn/box_std"][0] == pytest.approx(0.0, abs=1e-5)


def test_l1_gets_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="swn_d2"):
        build_model(tiny_config())
        assert "SMOOTH_L1_BETA" not in caplog.text
        build_model(tiny_config("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 0.0))
    assert "SMOOTH_L1_BETA" in caplog.text


def test_sigmoid_classification_is_refused():
    cfg = tiny_config()
    if "USE_SIGMOID_CE" not in cfg.MODEL.ROI_BOX_HEAD:
        pytest.skip("this Detectron2 has no sigmoid classification loss")
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    with pytest.raises(UserError, match="USE_SIGMOID_CE"):
        build_model(cfg)


def test_masks_get_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="swn_d2"):
        build_model(tiny_config("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NUM_CONV", 1))
    assert "masks and keypoints keep weight 1" in caplog.text


def test_an_unknown_box_loss_is_refused():
    with pytest.raises(UserError, match="'iou'.*smooth_l1 or giou"):
        build_model(tiny_config("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "iou"))


def test_a_seed_gives_the_detector_that_it_gives_without_swn():
    """And the random numbers that follow, from which regions are sampled."""
    after = []
    states = []
    for roi_heads in ("StandardROIHeads", "SWNROIHeads"):
        states.append(tiny_model(tiny_config(roi_heads=roi_heads), seed=3).state_dict())
        after.append(torch.rand(4))
    stock, swn = states
    for name, value in stock.items():
        assert torch.equal(swn[name], value), name
    assert torch.equal(*after)


def test_a_new_run_from_a_checkpoint_eases_in_again():
    model = tiny_model(tiny_config("MODEL.SWN.EASE_IN", [0.5, 0.5]))
    randomize(model.roi_heads.sample_weighter)
    late = training_losses(model, batch(), start_iter=60)["loss_box_reg"]
    model.load_state_dict(model.state_dict())
    weights = []
    model.roi_heads.sample_weighter.register_forward_hook(lambda *args: weights.append(args[-1]))
    training_losses(model, batch(), start_iter=0)
    assert (weights[0].box == 1).all() and late > 0
