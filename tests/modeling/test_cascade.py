"""SWNCascadeROIHeads: one weighter per stage."""

import copy

import pytest
import torch
from detectron2.layers import ShapeSpec

from swn_d2.errors import UserError
from swn_d2.modeling import SWNCascadeROIHeads, SWNROIHeads
from swn_d2.weighting import SWN
from swn_d2.weighting.task_uncertainty import TaskUncertainty
from tests.tiny import batch, tiny_config, tiny_model, training_losses, weighters


def samples_per_stage(model, inputs):
    seen = []
    for weighter in weighters(model):
        weighter.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    training_losses(model, inputs)
    return seen


def test_every_stage_sees_its_own_regions():
    """A higher threshold on the same, hardly moved boxes leaves fewer positives."""
    opts = ["MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 0.7, 0.95)]
    model = tiny_model(
        tiny_config(*opts, "MODEL.RPN.BBOX_REG_LOSS_WEIGHT", 1.0, detector="cascade_rcnn")
    )
    # Boxes around the objects as the proposals, so that there are positives of every quality.
    label_and_sample = model.roi_heads.label_and_sample_proposals

    def shifted(proposals, targets):
        for proposal, target in zip(proposals, targets, strict=True):
            boxes = target.gt_boxes.tensor
            shifts = torch.linspace(0, 15, len(proposal))[:, None]
            proposal.proposal_boxes.tensor = (
                boxes[torch.arange(len(proposal)) % len(boxes)] + shifts
            )
        return label_and_sample(proposals, targets)

    model.roi_heads.label_and_sample_proposals = shifted
    positives = [int(s.is_foreground.sum()) for s in samples_per_stage(model, batch())]
    assert len(positives) == 3
    assert positives[0] > positives[1] > positives[2] > 0


def test_a_stage_s_weights_reach_its_losses_only():
    opts = ["MODEL.SWN.HEADS", "separate"]
    model = tiny_model(tiny_config(*opts, detector="cascade_mask_rcnn", reading="authors"))
    plain = training_losses(copy.deepcopy(model), batch())
    with torch.no_grad():
        for head in weighters(model)[1].network.heads.values():
            head[-1].bias.fill_(-1.0)
    losses = training_losses(model, batch())
    for name, loss in losses.items():
        if name.startswith("loss_swn"):
            expected = {"loss_swn_cls_stage1": -1.0, "loss_swn_box_stage1": -0.5}.get(name, 0.0)
            assert loss.item() == pytest.approx(expected, abs=1e-4), name
        else:
            factor = torch.e if name in ("loss_cls_stage1", "loss_box_reg_stage1") else 1
            assert loss.item() == pytest.approx(plain[name].item() * factor, rel=1e-4), name


@pytest.mark.parametrize("detector, masked", [("cascade_rcnn", "no"), ("cascade_mask_rcnn", "a")])
def test_weighters_of_ones_own_are_checked(detector, masked):
    """As in a LazyConfig, whose detector does not build them itself."""
    pyramid = {f"p{level}": ShapeSpec(channels=16, stride=2**level) for level in range(2, 6)}
    arguments = SWNCascadeROIHeads.from_config(tiny_config(detector=detector), pyramid)
    for chosen, message in (
        (arguments["sample_weighters"][:2], "2 sample_weighters, but 3 stages"),
        ([SWN(has_mask=masked == "no") for _ in range(3)], f"the detector has {masked} mask loss"),
        ([TaskUncertainty(has_mask=masked == "no")] * 3, f"the detector has {masked} mask loss"),
        ([SWN(has_mask=masked == "a", box_loss_dim=1)] * 3, "build it with box_loss_dim=4"),
    ):
        with pytest.raises(UserError, match=message):
            SWNCascadeROIHeads(**{**arguments, "sample_weighters": chosen})


def test_a_weighter_of_ones_own_is_checked():
    pyramid = {f"p{level}": ShapeSpec(channels=16, stride=2**level) for level in range(2, 6)}
    arguments = SWNROIHeads.from_config(tiny_config(detector="mask_rcnn"), pyramid)
    with pytest.raises(UserError, match="the detector has a mask loss; build it with has_mask=T"):
        SWNROIHeads(**{**arguments, "sample_weighter": SWN()})


def test_masks_belong_to_the_first_stage():
    model = tiny_model(tiny_config(detector="cascade_mask_rcnn"))
    seen = samples_per_stage(model, batch())
    assert [s.mask_loss is not None for s in seen] == [True, False, False]
    assert [w.tasks for w in weighters(model)] == [("box", "mask"), ("box",), ("box",)]
