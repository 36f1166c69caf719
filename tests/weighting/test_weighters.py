import re
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from swn_d2 import add_swn_config
from swn_d2.errors import UserError
from swn_d2.weighting import (
    SAMPLE_WEIGHTER_REGISTRY,
    SWN,
    SampleWeighter,
    Uniform,
    build_sample_weighter,
)
from tests.without_detectron2 import run_without_detectron2

from .conftest import make_samples


def config():
    cfg = get_cfg()
    add_swn_config(cfg)
    return cfg


def test_the_config_chooses_the_weighter():
    cfg = config()
    assert isinstance(build_sample_weighter(cfg, box_loss_dim=4, has_mask=False), SWN)
    cfg.MODEL.SAMPLE_WEIGHTER.NAME = "Uniform"
    assert isinstance(build_sample_weighter(cfg, box_loss_dim=4, has_mask=False), Uniform)


def test_an_unknown_weighter_is_told_the_known_ones():
    cfg = config()
    cfg.MODEL.SAMPLE_WEIGHTER.NAME = "OHME"
    with pytest.raises(UserError, match="'OHME'.*OHEM.*SWN.*Uniform"):
        build_sample_weighter(cfg, box_loss_dim=4, has_mask=False)


def test_every_key_reaches_the_weighter():
    cfg = config()
    cfg.SOLVER.MAX_ITER = 1000
    swn = cfg.MODEL.SWN
    swn.TASKS, swn.LAMBDA_CLS, swn.LAMBDA_BOX, swn.LAMBDA_MASK = ["cls", "box"], 0.1, 0.2, 0.3
    swn.EXPONENT, swn.CLAMP, swn.BOX_LOSS_FEATURE, swn.HEADS = 2.0, 1.5, "sum", "shared"
    swn.CLS_AVERAGING, swn.REGULARIZER_DIVISOR, swn.RELATIVE = "all", "loss", False
    swn.STRENGTH, swn.EASE_IN, swn.INIT = 0.7, [0.1, 0.2], "normal"
    weighter = build_sample_weighter(cfg, box_loss_dim=4, has_mask=True)
    assert weighter.tasks == ("cls", "box")
    assert weighter.lambdas == {"cls": 0.1, "box": 0.2, "mask": 0.3}
    assert (weighter.exponent, weighter.clamp, weighter.strength) == (2.0, 1.5, 0.7)
    assert weighter.ease_in == (100, 200)
    assert (weighter.cls_averaging, weighter.regularizer_divisor) == ("all", "loss")
    assert weighter.relative is False
    network = weighter.network
    assert network.box_loss_dim == 1
    assert list(network.heads) == ["shared"]
    assert 0 < network.embeddings["iou"][0].weight.abs().max() < 1e-3
    assert "mask_loss" in network.embeddings


def test_a_weighter_declares_its_own_keys():
    @SAMPLE_WEIGHTER_REGISTRY.register()
    class WithKeys(SampleWeighter):
        KEYS = {"POWER": 2.0, "NAMES": ["a"]}

        def __init__(self, *, power, names):
            super().__init__()
            self.power, self.names = power, names

    try:
        cfg = config()
        cfg.merge_from_list(["MODEL.SAMPLE_WEIGHTER.WITHKEYS.POWER", 3.0])
        cfg.MODEL.SAMPLE_WEIGHTER.NAME = "WithKeys"
        weighter = build_sample_weighter(cfg, box_loss_dim=4, has_mask=False)
        assert (weighter.power, weighter.names) == (3.0, ["a"])
        assert WithKeys.KEYS["POWER"] == 2.0
    finally:
        SAMPLE_WEIGHTER_REGISTRY._obj_map.pop("WithKeys")


def test_the_example_in_the_docs_is_a_weighter():
    """It is run as it stands there."""
    docs = Path(__file__).parents[2] / "docs" / "weighting.md"
    example = re.search(r"```python\n(.*?)```", docs.read_text(), re.DOTALL).group(1)
    exec(example, {"__name__": "example"})
    cfg = config()
    cfg.MODEL.SAMPLE_WEIGHTER.NAME = "HighIoU"
    weighter = build_sample_weighter(cfg, box_loss_dim=4, has_mask=False)
    losses, statistics = make_samples([True, False])
    expected = (0.5 + statistics.iou[0]) * losses.box[0].sum() / 2
    assert losses.weighted(weighter(statistics))["box"].item() == pytest.approx(expected.item())


def test_weighting_needs_no_detectron2():
    printed = run_without_detectron2("""
import swn_d2
import swn_d2.recording
import swn_d2.torchvision
assert swn_d2.weighting.SWN
try:
    swn_d2.SWNTrainer
except swn_d2.UserError as error:
    print(error)
""")
    assert "python tools/install_detectron2.py" in printed


@pytest.mark.parametrize("ease_in", [[0.5], [0.5, 1.5], ["a", "b"], []])
def test_ease_in_is_two_shares(ease_in):
    cfg = config()
    cfg.MODEL.SWN.EASE_IN = ease_in
    with pytest.raises(UserError, match="MODEL.SWN.EASE_IN"):
        build_sample_weighter(cfg, box_loss_dim=4, has_mask=False)
