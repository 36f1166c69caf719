"""Mask R-CNN: masks as a third task, and the mask loss as a fifth statistic."""

import copy
import logging

import pytest
import torch
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from tests.tiny import batch, empty_batch, tiny_config, tiny_model, training_losses

from .stock import assert_losses_are_stock, stock_and_swn

MASK_HEADS = {
    "class-specific": [],
    "class-agnostic": ["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True],
    "on predicted boxes": ["MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True],
}


@pytest.mark.parametrize("polygons", [True, False], ids=["polygons", "bitmaps"])
@pytest.mark.parametrize("opts", MASK_HEADS.values(), ids=MASK_HEADS)
def test_losses_at_the_start_are_stock(opts, polygons):
    assert_losses_are_stock(*stock_and_swn("mask_rcnn", *opts), batch(polygons=polygons))


@pytest.mark.parametrize("detector", ["mask_rcnn", "cascade_mask_rcnn"])
def test_the_mask_head_runs_once(detector):
    """Also at an iteration that is logged."""
    model = tiny_model(tiny_config(detector=detector))
    calls = []
    model.roi_heads.mask_head.predictor.register_forward_hook(lambda *args: calls.append(args))
    training_losses(model, batch(), start_iter=19)
    assert len(calls) == 1


def test_the_head_s_loss_weight_counts():
    stock, swn = stock_and_swn("mask_rcnn")
    for model in (stock, swn):
        model.roi_heads.mask_head.loss_weight = 3.0
    assert_losses_are_stock(stock, swn, batch())


def test_statistics():
    """Mean binary cross-entropy over the pixels of the true class's mask, region by region."""
    model = tiny_model(tiny_config(detector="mask_rcnn", reading="authors"))
    seen = {}
    heads = model.roi_heads
    with torch.no_grad():
        heads.mask_head.predictor.weight.mul_(100)  # far enough from 0 for the losses to differ
    heads.mask_head.predictor.register_forward_hook(lambda m, i, out: seen.update(logits=out))
    heads.sample_weighter.register_forward_hook(lambda m, i, out: seen.update(statistics=i[0]))
    box_samples = heads.box_predictor.sample_losses

    def spy(predictions, proposals, targets):
        seen["proposals"] = proposals
        return box_samples(predictions, proposals, targets)

    heads.box_predictor.sample_losses = spy
    losses = training_losses(model, [*batch(), *empty_batch()])

    statistics = seen["statistics"]
    expected = []
    for proposals in seen["proposals"]:
        for i in range(len(proposals)):
            gt_class = int(proposals.gt_classes[i])
            if gt_class == heads.num_classes:
                expected.append(0.0)
                continue
            logits = seen["logits"][sum(value > 0 for value in expected), gt_class]
            mask = proposals.gt_masks[i : i + 1].crop_and_resize(
                proposals.proposal_boxes.tensor[i : i + 1], len(logits)
            )[0]
            expected.append(F.binary_cross_entropy_with_logits(logits, mask.float()).item())
    num_positives = int(statistics.is_foreground.sum())
    assert num_positives == len(seen["logits"]) > 1
    assert statistics.mask_loss.tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(statistics.mask_loss > 0, statistics.is_foreground)
    assert losses["loss_mask"].item() == pytest.approx(sum(expected) / num_positives, rel=1e-5)


def test_the_weights_reach_the_loss():
    model = tiny_model(
        tiny_config("MODEL.SWN.HEADS", "separate", detector="mask_rcnn", reading="authors")
    )
    plain = training_losses(copy.deepcopy(model), batch())
    network = model.roi_heads.sample_weighter.network
    with torch.no_grad():
        network.heads["mask"][-1].bias.fill_(-1.0)
    losses = training_losses(model, batch())
    assert losses["loss_mask"].item() == pytest.approx(
        plain["loss_mask"].item() * torch.e, rel=1e-4
    )
    assert losses["loss_swn_mask"].item() == pytest.approx(0.5 * -1.0, rel=1e-4)
    assert losses["loss_box_reg"].item() == pytest.approx(plain["loss_box_reg"].item(), rel=1e-4)


def test_detectron2_s_scalars_and_pictures():
    """Those of every iteration, as stock logs them, and the pictures where they are asked for."""
    stock, swn = stock_and_swn("mask_rcnn")
    logged = []
    for model in (stock, swn):
        with torch.no_grad():  # predictions that are partly right
            generator = torch.Generator().manual_seed(0)
            weight = model.roi_heads.mask_head.predictor.weight
            weight.copy_(torch.randn(weight.shape, generator=generator))
        model.roi_heads.mask_head.vis_period = 3
        torch.manual_seed(0)
        with EventStorage(3) as storage:
            model.train()(batch())
            latest = storage.latest()
            logged.append({k: v[0] for k, v in latest.items() if k.startswith("mask_rcnn/")})
            logged[-1]["pictures"] = [
                (name, torch.as_tensor(picture).tolist()) for name, picture, _ in storage._vis_data
            ]
    expected, actual = logged
    assert len(expected) == 4 and 0 < expected["mask_rcnn/accuracy"] < 1
    assert len(expected["pictures"]) > 1 and actual.pop("pictures") == expected.pop("pictures")
    assert actual == pytest.approx(expected)


class HeadThatPools(MaskRCNNConvUpsampleHead):
    """Takes the feature maps as they are, as ``POOLER_TYPE ""`` gives them."""

    @classmethod
    def from_config(cls, cfg, input_shape):
        return super().from_config(cfg, input_shape["p2"])

    def forward(self, x, instances):
        if not self.training:
            return instances
        return {"loss_mask": self.layers(x["p2"]).square().mean()}


ROI_MASK_HEAD_REGISTRY.register(HeadThatPools)


def test_a_head_without_a_pooler_keeps_its_loss():
    opts = ["MODEL.ROI_MASK_HEAD.NAME", "HeadThatPools", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""]
    assert_losses_are_stock(*stock_and_swn("mask_rcnn", *opts), batch())


@ROI_MASK_HEAD_REGISTRY.register()
class HeadWithItsOwnLoss(MaskRCNNConvUpsampleHead):
    def forward(self, x, instances):
        return {"loss_mask": self.layers(x).square().mean()} if self.training else instances


@pytest.mark.parametrize("detector", ["mask_rcnn", "cascade_mask_rcnn"])
def test_a_head_with_its_own_loss_keeps_it(detector, caplog):
    with caplog.at_level(logging.WARNING, logger="swn_d2"):
        models = stock_and_swn(detector, "MODEL.ROI_MASK_HEAD.NAME", "HeadWithItsOwnLoss")
    assert "masks of a HeadWithItsOwnLoss are not weighted" in caplog.text
    assert_losses_are_stock(*models, batch())
    assert "loss_swn_mask" not in training_losses(models[1], batch())


def test_keypoints_get_a_warning(caplog):
    opts = ["MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [8]]
    with caplog.at_level(logging.WARNING, logger="swn_d2"):
        tiny_model(tiny_config(*opts, detector="mask_rcnn"))
    assert "The keypoints are not weighted" in caplog.text
