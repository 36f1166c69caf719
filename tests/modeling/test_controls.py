"""Controls in real detectors."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from swn_d2.weighting.controls import CONTROLS
from tests.tiny import (
    batch,
    batch_with_empty_image,
    empty_batch,
    tiny_config,
    tiny_model,
    training_losses,
    weighters,
)
from tests.weighting.conftest import randomize


def detector_under(control, detector):
    """A detector whose SWN weights differ, also in classification."""
    cfg = tiny_config(
        *("MODEL.SAMPLE_WEIGHTER.CONTROL", control),
        detector=detector,
        reading="relative",
    )
    model = tiny_model(cfg)
    for weighter in weighters(model):
        randomize(weighter)
    return model


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet", "cascade_mask_rcnn"])
def test_trains_under_every_control(detector):
    """On the same regions, with finite losses, and SWN learns the same."""
    losses, gradients = {}, {}
    for control in CONTROLS:
        model = detector_under(control, detector)
        for inputs in (empty_batch(), batch_with_empty_image(), batch()):
            losses[control] = training_losses(model, inputs)
            assert all(torch.isfinite(loss) for loss in losses[control].values())
        sum(losses[control].values()).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
        gradients[control] = [p.grad for w in weighters(model) for p in w.parameters()]
        weighted = {name for name in losses[control] if "rpn" not in name and "swn" not in name}
        for name, loss in losses[control].items():
            is_same = loss.item() == losses["none"][name].item()
            assert is_same == (control == "none" or name not in weighted), name
        for own, plain in zip(gradients[control], gradients["none"], strict=True):
            assert own.abs().max() > 0 and torch.equal(own, plain)


def test_the_log_has_what_the_detector_sees():
    logged = {}
    for control in CONTROLS:
        model = detector_under(control, "faster_rcnn")
        torch.manual_seed(0)
        with EventStorage(19) as storage:
            model.train()(batch())
            logged[control] = {name: value for name, (value, _) in storage.latest().items()}
    own = logged["none"]
    for group in ("cls_fg", "cls_bg", "box"):
        mean, std = f"weights/{group}_mean", f"weights/{group}_std"
        assert own[std] > 1e-3
        for control in ("shuffle", "balance"):
            assert logged[control][mean] == pytest.approx(own[mean], rel=1e-5)
        assert logged["shuffle"][std] == pytest.approx(own[std], rel=1e-4)
        for control in ("balance", "rate"):
            assert logged[control][std] < 1e-5
        learned = [logged[control][f"swn/{group}_mean"] for control in CONTROLS]
        assert learned == [learned[0]] * len(CONTROLS)
    rate = logged["rate"]
    assert rate["weights/cls_fg_mean"] == pytest.approx(rate["weights/cls_bg_mean"], rel=1e-5)
    assert own["weights/cls_fg_mean"] != pytest.approx(own["weights/cls_bg_mean"], rel=1e-5)
