"""torchvision's detectors with sample weights, against torchvision's own."""

import copy

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection import fcos, ssdlite320_mobilenet_v3_large
from torchvision.ops import box_iou, sigmoid_focal_loss

from swn_d2.errors import UserError
from swn_d2.torchvision import join_adam, weight_samples
from swn_d2.weighting import (
    SAMPLE_WEIGHTER_REGISTRY,
    SWN,
    ObjectMemory,
    Uniform,
    check_adapter,
    sample_weighter_parameters,
)
from swn_d2.weighting.focal import FocalWeighting
from swn_d2.weighting.kl_loss import KLLoss
from swn_d2.weighting.ohem import OHEM
from tests.weighting.conftest import assert_regularizers_start, randomize

from .tiny import (
    DETECTORS,
    batch,
    batch_with_empty_image,
    empty_batch,
    keypoint_rcnn,
    plain_and_weighted,
    tiny_model,
    tiny_swn,
    training_losses,
)

BATCHES = {"objects": batch, "an empty image": batch_with_empty_image, "no objects": empty_batch}
every_batch = pytest.mark.parametrize("inputs", BATCHES.values(), ids=BATCHES)
every_detector = pytest.mark.parametrize("detector", DETECTORS)


class Remembering(Uniform):
    """Wants to know which annotation an object is."""

    def __init__(self):
        super().__init__()
        self.memory = ObjectMemory(1)


def assert_same_at_the_start(plain, weighted, inputs):
    expected, actual = training_losses(plain, inputs), training_losses(weighted, inputs)
    for name, loss in expected.items():
        assert actual[name].item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-8), name
    added = {name: actual[name] for name in set(actual) - set(expected)}
    has_objects = any(len(target["boxes"]) for target in inputs[1])
    assert_regularizers_start(added, by_object=has_objects)


@every_batch
@every_detector
def test_losses_at_the_start_are_torchvisions(detector, inputs):
    assert_same_at_the_start(*plain_and_weighted(detector), inputs())


@pytest.mark.parametrize("box_loss", ["l1", "giou", "diou", "ciou"])
def test_every_box_loss_of_retinanet(box_loss):
    assert_same_at_the_start(*plain_and_weighted("retinanet", box_loss), batch())


@every_batch
@every_detector
def test_the_adapters_keep_the_contract(detector, inputs):
    check_adapter(*plain_and_weighted(detector), *inputs())


@every_detector
def test_detections_and_state_dict_are_torchvisions(detector):
    plain, weighted = plain_and_weighted(detector)
    randomize(weighted)
    result = plain.load_state_dict(weighted.state_dict(), strict=False)
    assert not result.missing_keys
    assert all("sample_weighter" in key for key in result.unexpected_keys)
    images, _ = batch()
    with torch.no_grad():
        expected, actual = plain.eval()(images), weighted.eval()(images)
    for e, a in zip(expected, actual, strict=True):
        assert e.keys() == a.keys() and len(e["scores"])
        assert all(torch.equal(e[name], a[name]) for name in e)


@pytest.mark.parametrize("name", sorted(name for name, _ in SAMPLE_WEIGHTER_REGISTRY))
@every_detector
def test_every_weighter_trains_or_is_refused(detector, name):
    """The table in docs/other_detectors.md."""
    regions = {"FocalWeighting", "OHEM"}
    everywhere = {"SWN", "Uniform", "IoUBalanced", "PrimeSample", "TaskUncertainty"}
    is_rcnn, has_mask = "rcnn" in detector, detector == "mask_rcnn"
    arguments = {
        "SWN": {"has_mask": has_mask, "box_loss_dim": 1 if detector == "fcos" else 4},
        "TaskUncertainty": {"has_mask": has_mask},
        "PrimeSample": {} if is_rcnn else {"isr_n_gamma": 0.0},
    }
    all_proposals = {"box_positive_fraction": 1.0, "box_batch_size_per_image": 100}
    model = tiny_model(detector, **(all_proposals if name == "OHEM" and is_rcnn else {}))
    weighter = SAMPLE_WEIGHTER_REGISTRY.get(name)(**arguments.get(name, {}))
    if name not in everywhere and not (is_rcnn and name in regions):
        with pytest.raises(UserError, match="choose another one"):
            weight_samples(model, weighter)
        return
    weight_samples(model, weighter)
    for inputs in BATCHES.values():
        losses = training_losses(model, inputs())
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
    assert all(p.grad is not None for p in sample_weighter_parameters(model))


def seen_by_weighter(model, inputs):
    seen = []
    head = model.roi_heads if hasattr(model, "roi_heads") else model.head
    head.sample_weighter.register_forward_hook(lambda _, inputs, weights: seen.append(inputs[0]))
    losses = training_losses(model, inputs)
    (statistics,) = seen
    return statistics, losses


def test_statistics_of_regions():
    """Against torchvision's functions, region by region."""
    model = weight_samples(tiny_model("mask_rcnn"), Uniform())
    heads, kept = model.roi_heads, {}
    select = heads.select_training_samples
    heads.select_training_samples = lambda *a: kept.setdefault("selected", select(*a))
    heads.box_predictor.register_forward_hook(lambda *a: kept.update(predictions=a[2]))
    images, targets = batch()
    statistics, _ = seen_by_weighter(model, (images, targets))
    logits, deltas = kept["predictions"]
    proposals, matched, labels, regression_targets = map(torch.cat, kept["selected"])
    image = torch.cat([torch.full((len(m),), i) for i, m in enumerate(kept["selected"][1])])
    decoded = heads.box_coder.decode(deltas, [proposals])
    assert 0 < statistics.is_foreground.sum() < len(statistics)
    for i, label in enumerate(labels.tolist()):
        cross_entropy = F.cross_entropy(logits[i], labels[i]).item()
        assert statistics.cls_loss[i].item() == pytest.approx(cross_entropy, rel=1e-5)
        assert statistics.is_foreground[i] == (label > 0)
        if not label:
            assert statistics.iou[i] == statistics.prob[i] == statistics.mask_loss[i] == 0
            assert not statistics.box_loss[i].any()
            continue
        gt_box = targets[image[i]]["boxes"][matched[i]]
        iou = box_iou(decoded[i, label][None], gt_box[None]).item()
        assert statistics.iou[i].item() == pytest.approx(iou, abs=1e-5)
        assert statistics.prob[i].item() == pytest.approx(logits[i].softmax(0)[label].item())
        delta = deltas[i].view(-1, 4)[label]
        loss = F.smooth_l1_loss(delta, regression_targets[i], beta=1 / 9, reduction="none")
        torch.testing.assert_close(statistics.box_loss[i], loss.detach())
    # The box of the true class; of what is none, of the likeliest class.
    likeliest = logits[:, 1:].argmax(dim=1) + 1
    shown = torch.where(labels > 0, labels, likeliest)
    boxes = decoded[torch.arange(len(labels)), shown]
    torch.testing.assert_close(statistics.detail("pred_boxes"), boxes.detach())
    objects = statistics.detail("object")
    first = len(targets[0]["boxes"])
    assert objects.tolist() == [
        m + first * j if label else -1
        for m, j, label in zip(matched.tolist(), image.tolist(), labels.tolist(), strict=True)
    ]
    assert statistics.detail("gt_class").tolist() == [(label - 1) % 4 for label in labels.tolist()]


@pytest.mark.parametrize("detector", ["retinanet", "fcos"])
def test_statistics_of_anchors(detector):
    model = weight_samples(tiny_model(detector), Uniform())
    kept, compute = {}, model.head.compute_loss

    def keep(*arguments):
        kept["arguments"] = arguments
        return compute(*arguments)

    model.head.compute_loss = keep
    statistics, _ = seen_by_weighter(model, batch())
    targets, outputs, anchors, matched_idxs = kept["arguments"]
    ignored = sum(int((m < -1).sum()) for m in matched_idxs)
    assert (ignored > 0) == (detector == "retinanet")
    assert len(statistics) == sum(map(len, anchors)) - ignored
    # torchvision divides by each image's own positives.
    counts = [max(int((m >= 0).sum()), 1) for m in matched_idxs]
    assert statistics.is_foreground.sum() == sum(counts) and counts[0] != counts[1]
    factors = [1.0, 1.0]
    if detector == "retinanet":
        factors = [sum(counts) / 2 / count for count in counts]
    row, pred_boxes = 0, statistics.detail("pred_boxes")
    for image, matched in enumerate(matched_idxs):
        for anchor, index in enumerate(matched.tolist()):
            if index < -1:
                continue
            logits = outputs["cls_logits"][image, anchor].detach()
            target = torch.zeros_like(logits)
            coder = model.head.box_coder if detector == "fcos" else model.box_coder
            decode = coder.decode if detector == "fcos" else coder.decode_single
            delta, source = outputs["bbox_regression"][image, anchor], anchors[image][anchor]
            box = decode(delta[None].detach(), source[None])
            torch.testing.assert_close(pred_boxes[row], box[0])
            if index >= 0:
                label = targets[image]["labels"][index]
                target[label] = 1
                assert statistics.prob[row].item() == pytest.approx(logits[label].sigmoid().item())
                iou = box_iou(box, targets[image]["boxes"][index][None]).item()
                assert statistics.iou[row].item() == pytest.approx(iou, abs=1e-5)
            else:
                assert (
                    statistics.iou[row]
                    == statistics.prob[row]
                    == statistics.box_loss[row].sum()
                    == 0
                )
            focal = sigmoid_focal_loss(logits, target, reduction="sum") * factors[image]
            assert statistics.cls_loss[row].item() == pytest.approx(focal.item(), rel=1e-4)
            assert statistics.detail("image")[row] == image
            row += 1
    assert row == len(statistics)


@every_detector
def test_a_training_learns_weights_and_eases_them_in(detector):
    plain = tiny_model(detector)
    model = weight_samples(plain, tiny_swn(detector, ease_in=(2, 2)))
    assert model is plain
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    optimizer = join_adam(sgd, model, lr=0.005)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3], gamma=0.1)
    head = model.roi_heads if hasattr(model, "roi_heads") else model.head
    seen = []
    head.sample_weighter.register_forward_hook(lambda *a: seen.append(a[2].box.detach()))
    for seed in range(4):
        optimizer.zero_grad()
        sum(training_losses(model, batch(), seed).values()).backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():  # is no iteration
        training_losses(model, batch())
    assert [bool((weights == 1).all()) for weights in seen] == [True, True, False, False, False]
    detector_group, adam_group = optimizer.param_groups
    assert (detector_group["lr"], adam_group["lr"]) == pytest.approx((0.001, 0.0005))
    again = weight_samples(tiny_model(detector, seed=5), tiny_swn(detector, ease_in=(5, 5)))
    again.load_state_dict(model.state_dict())
    head = again.roi_heads if hasattr(again, "roi_heads") else again.head
    assert head.sample_weighter_counter.next() == 4


def test_keypoints_keep_weight_1(caplog):
    torch.manual_seed(0)
    plain = keypoint_rcnn()
    weighted = weight_samples(copy.deepcopy(plain), SWN())
    assert "keypoints are not weighted" in caplog.text
    assert_same_at_the_start(plain, weighted, batch())


def test_masks_and_boxes_in_half_precision():
    model = weight_samples(tiny_model("mask_rcnn"), tiny_swn("mask_rcnn"))
    with torch.autocast("cpu", torch.bfloat16):
        losses = training_losses(model, batch())
    assert losses["loss_mask"].dtype == losses["loss_classifier"].dtype == torch.float32
    sum(losses.values()).backward()


def test_plain_l1_is_warned_of(caplog):
    weight_samples(tiny_model("retinanet", box_loss="l1"), SWN())
    assert "_loss_type" in caplog.text
    caplog.clear()
    weight_samples(tiny_model("retinanet"), SWN())
    assert not caplog.text


def test_a_detector_that_is_not_supported_is_refused():
    ssd = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    with pytest.raises(UserError, match="SSD can't be.*FasterRCNN, MaskRCNN, RetinaNet and FCOS"):
        weight_samples(ssd, SWN())


@every_detector
def test_a_second_weighter_is_refused(detector):
    model = weight_samples(tiny_model(detector), Uniform())
    with pytest.raises(UserError, match="a sample weighter already, Uniform"):
        weight_samples(model, Uniform())


@pytest.mark.parametrize(
    "detector, weighter, message",
    [
        ("fcos", lambda: SWN(), "build it with box_loss_dim=1"),
        ("faster_rcnn", lambda: SWN(box_loss_dim=2), "build it with box_loss_dim=4"),
        (
            "fcos",
            lambda: SWN(tasks=["cls"]),
            "the SWN was built for 4 .* build it with box_loss_dim=1",
        ),
        (
            "retinanet",
            lambda: SWN(box_loss_dim=1, cls_averaging="per_object"),
            "the SWN was built for 1 .* build it with box_loss_dim=4",
        ),
        ("mask_rcnn", lambda: SWN(), "build it with has_mask=True"),
        ("faster_rcnn", lambda: SWN(has_mask=True), "build it with has_mask=False"),
        ("retinanet", lambda: SWN(regularizer_divisor="loss"), "set it to group"),
        ("fcos", FocalWeighting, "weights the regions of an R-CNN"),
        ("faster_rcnn", KLLoss, "variances"),
        ("faster_rcnn", Remembering, "which annotation"),
        ("faster_rcnn", OHEM, "box_positive_fraction=1.0"),
        ("faster_rcnn", lambda: SWN, "give an instance"),
        ("faster_rcnn", lambda: torch.nn.Linear(1, 1), "the weighter is a Linear"),
    ],
)
def test_a_weighter_that_is_not_for_the_detector_is_refused(detector, weighter, message):
    model = tiny_model(detector)
    before = set(model.state_dict())
    with pytest.raises(UserError, match=message):
        weight_samples(model, weighter())
    assert set(model.state_dict()) == before
    weight_samples(model, Uniform())  # nothing of the first attempt is left


def test_another_torchvision_is_refused(monkeypatch):
    monkeypatch.setattr(fcos.FCOSHead, "compute_loss", lambda self, targets, outputs, points: {})
    with pytest.raises(UserError, match=r"FCOSHead.compute_loss has the parameters \(self targets"):
        weight_samples(tiny_model("fcos"), Uniform())
    monkeypatch.delattr(fcos.FCOS, "compute_loss")
    with pytest.raises(UserError, match="FCOS.compute_loss is gone"):
        weight_samples(tiny_model("fcos"), Uniform())
    weight_samples(tiny_model("retinanet"), Uniform())


def test_an_optimizer_that_has_made_steps_is_refused():
    model = weight_samples(tiny_model("faster_rcnn"), SWN())
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    sum(training_losses(model, batch()).values()).backward()
    sgd.step()
    with pytest.raises(UserError, match="made steps already"):
        join_adam(sgd, model)
