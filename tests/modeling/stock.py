"""A detector with SWN against Detectron2's own."""

import pytest
import torch

from swn_d2.engine import is_sample_weighter_key
from tests.tiny import (
    batch,
    batch_with_empty_image,
    empty_batch,
    tiny_config,
    tiny_model,
    training_losses,
    weighters,
)
from tests.weighting.conftest import assert_regularizers_start

BATCHES = {"objects": batch, "an empty image": batch_with_empty_image, "no objects": empty_batch}
every_batch = pytest.mark.parametrize("inputs", BATCHES.values(), ids=BATCHES)


def stock_and_swn(detector, *opts, reading="by object"):
    """The two models with the same detector parameters."""
    stock = tiny_model(tiny_config(*opts, detector=detector, stock=True))
    swn = tiny_model(tiny_config(*opts, detector=detector, reading=reading))
    result = swn.load_state_dict(stock.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert result.missing_keys and all(map(is_sample_weighter_key, result.missing_keys))
    return stock, swn


def assert_losses_are_stock(stock, swn, inputs):
    expected = training_losses(stock, inputs)
    actual = training_losses(swn, inputs)
    for name, loss in expected.items():
        assert actual[name].item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-8), name
    added = {name: actual[name] for name in set(actual) - set(expected)}
    by_object = any(
        getattr(weighter, "rightness", None) is not None and (weighter.rightness.recent >= 0).any()
        for weighter in weighters(swn)
    )
    assert_regularizers_start(added, by_object=by_object)


def detections(model, inputs):
    """All fields of the detections, image by image, as tensors."""
    with torch.no_grad():
        results = [result["instances"].get_fields() for result in model.eval()(inputs)]
    for fields in results:
        fields["pred_boxes"] = fields["pred_boxes"].tensor
    return results


def assert_same_detections(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.keys() == e.keys() and len(e["scores"]) > 0
        assert all(torch.equal(a[name], e[name]) for name in e)
