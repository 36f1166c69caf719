"""SWNFCOS, where Detectron2 has FCOS."""

import importlib.util

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.events import EventStorage

from swn_d2.engine import is_sample_weighter_key
from swn_d2.errors import UserError
from swn_d2.weighting import SWN, check_adapter
from swn_d2.weighting.ohem import OHEM
from tests.tiny import CONFIGS, batch, batch_with_empty_image, empty_batch, training_losses
from tests.weighting.conftest import randomize

from .stock import assert_losses_are_stock, assert_same_detections, detections

HAS_FCOS = importlib.util.find_spec("detectron2.modeling.meta_arch.fcos") is not None
needs_fcos = pytest.mark.skipif(not HAS_FCOS, reason="this Detectron2 has no FCOS")
every_batch = pytest.mark.parametrize("inputs", [batch, batch_with_empty_image, empty_batch])


def build(sample_weighter=None):
    """A model of the example config, small, or Detectron2's without a weighter."""
    from detectron2.model_zoo import get_config

    stock = get_config("COCO-Detection/fcos_R_50_FPN_1x.py").model
    ours = LazyConfig.load(str(CONFIGS / "COCO-Detection" / "fcos_R_50_FPN_1x_swn.py")).model
    model = stock if sample_weighter is None else ours
    model.num_classes = 3
    model.test_score_thresh = 0.0
    # Else an untrained network explodes.
    model.backbone.bottom_up.stem.norm = model.backbone.bottom_up.stages.norm = "BN"
    model.backbone.bottom_up.freeze_at = 0
    if sample_weighter is not None:
        model.sample_weighter = sample_weighter
    torch.manual_seed(0)
    return instantiate(model)


def stock_and_swn():
    stock, swn = build(), build(SWN(box_loss_dim=1))
    result = swn.load_state_dict(stock.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert result.missing_keys and all(map(is_sample_weighter_key, result.missing_keys))
    return stock, swn


@needs_fcos
def test_losses_and_detections_at_the_start_are_stock():
    stock, swn = stock_and_swn()
    for step, inputs in enumerate((batch, empty_batch, batch_with_empty_image)):
        assert_losses_are_stock(stock, swn, inputs(step))
        assert swn.loss_normalizer == stock.loss_normalizer != 300
    randomize(swn.sample_weighter)
    assert_same_detections(detections(swn, batch()), detections(stock, batch()))


@needs_fcos
@every_batch
def test_the_adapter_keeps_the_contract(inputs):
    with EventStorage():
        check_adapter(*stock_and_swn(), inputs())


@needs_fcos
def test_all_locations_are_samples_and_none_has_a_weight_in_the_centerness():
    swn = build(  # which does not keep the total loss
        SWN(box_loss_dim=1, relative=False, cls_averaging="none")
    )
    seen = []
    swn.sample_weighter.register_forward_hook(lambda *a: seen.append((a[1][0], a[2])))
    plain = training_losses(swn, batch())
    del swn.loss_normalizer
    randomize(swn.sample_weighter)
    weighted = training_losses(swn, batch())
    (statistics, _), (_, weights) = seen
    assert len(statistics) == 2 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1)
    assert statistics.box_loss.shape[1] == 1
    assert (weights.box != 1).any()
    assert weighted["loss_fcos_ctr"] == plain["loss_fcos_ctr"]
    assert weighted["loss_fcos_cls"] != plain["loss_fcos_cls"]


@needs_fcos
def test_a_weighter_that_is_not_for_it_is_refused():
    with pytest.raises(UserError, match="weights the regions of an R-CNN"):
        build(OHEM())
    with pytest.raises(UserError, match="box_loss_dim=1"):
        build(SWN())


@pytest.mark.skipif(HAS_FCOS, reason="this Detectron2 has FCOS")
def test_a_detectron2_without_fcos():
    with pytest.raises(UserError, match="has no FCOS; SWNFCOS needs its main branch"):
        importlib.import_module("swn_d2.modeling.fcos")
