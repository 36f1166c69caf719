"""What holds for every detector, against Detectron2's own on the same parameters and inputs."""

import logging
import subprocess
import sys

import detectron2.layers
import pytest
import torch
from detectron2.utils.events import EventStorage

from swn_d2 import load_config
from swn_d2.engine import SafeCheckpointer
from swn_d2.errors import UserError
from swn_d2.modeling import LOG_PERIOD
from swn_d2.weighting import check_adapter
from tests.tiny import (
    CONFIGS,
    DETECTORS,
    READINGS,
    batch,
    batch_with_empty_image,
    tiny_config,
    tiny_model,
    training_losses,
    weighters,
)
from tests.weighting.conftest import randomize

from .stock import (
    assert_losses_are_stock,
    assert_same_detections,
    detections,
    every_batch,
    stock_and_swn,
)

# RetinaNet refuses the divisor of the paper's text.
PAIRS = [(d, r) for d in DETECTORS for r in READINGS if (d, r) != ("retinanet", "paper")]

every_detector = pytest.mark.parametrize("detector", DETECTORS)
every_reading = pytest.mark.parametrize("detector, reading", PAIRS)
every_box_loss = pytest.mark.parametrize("box_loss", ["smooth_l1", "l1", "giou", "diou", "ciou"])


def box_loss_opts(detector, box_loss):
    if box_loss in ("diou", "ciou") and not hasattr(detectron2.layers, f"{box_loss}_loss"):
        pytest.skip(f"this Detectron2 has no {box_loss}_loss")
    section, beta = "MODEL.ROI_BOX_HEAD", "SMOOTH_L1_BETA"
    if detector == "retinanet":
        section, beta = "MODEL.RETINANET", "SMOOTH_L1_LOSS_BETA"
    if box_loss == "l1":
        return [f"{section}.{beta}", 0.0]
    return [f"{section}.BBOX_REG_LOSS_TYPE", box_loss]


@every_batch
@every_reading
def test_losses_at_the_start_are_stock(detector, reading, inputs):
    assert_losses_are_stock(*stock_and_swn(detector, reading=reading), inputs())


@every_detector
def test_the_adapters_keep_the_contract(detector):
    models = stock_and_swn(detector, reading="relative")
    with EventStorage():
        check_adapter(*models, batch_with_empty_image())


@every_batch
@every_box_loss
@every_detector
def test_losses_at_the_start_are_stock_with_every_box_loss(detector, box_loss, inputs):
    models = stock_and_swn(detector, *box_loss_opts(detector, box_loss))
    assert_losses_are_stock(*models, inputs())


@every_batch
@every_detector
def test_uniform_has_the_gradients_of_stock(detector, inputs):
    stock = tiny_model(tiny_config(detector=detector, stock=True))
    swn = tiny_model(tiny_config("MODEL.SAMPLE_WEIGHTER.NAME", "Uniform", detector=detector))
    swn.load_state_dict(stock.state_dict())  # strict: Uniform adds no key
    for model in (stock, swn):
        sum(training_losses(model, inputs()).values()).backward()
    expected, actual = (
        torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (stock, swn)
    )
    # Sums in another order: the last digits, which batch normalisation amplifies.
    assert (actual - expected).norm() <= 1e-4 * expected.norm()


@every_box_loss
@every_detector
def test_inference_is_stock_to_the_bit(detector, box_loss):
    stock, swn = stock_and_swn(detector, *box_loss_opts(detector, box_loss))
    for weighter in weighters(swn):
        randomize(weighter)
    expected = detections(stock, batch())
    assert ("pred_masks" in expected[0]) == ("mask" in detector)
    assert_same_detections(detections(swn, batch()), expected)


#: A config of this project -> its twin in Detectron2's model zoo.
TWINS = {
    "COCO-Detection/faster_rcnn_R_50_FPN_1x": "COCO-Detection/faster_rcnn_R_50_FPN_1x",
    "COCO-Detection/retinanet_R_50_FPN_1x": "COCO-Detection/retinanet_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": (
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"
    ),
    "COCO-InstanceSegmentation/cascade_mask_rcnn_R_50_FPN_1x": (
        "Misc/cascade_mask_rcnn_R_50_FPN_1x"
    ),
}


def test_checkpoints_load_into_stock_detectron2(tmp_path):
    """ResNet-50 from this project's configs into the model zoo's, in a fresh interpreter that
    never imports swn_d2."""
    opts = [
        *("MODEL.DEVICE", "cpu"),
        *("MODEL.WEIGHTS", ""),
        # An untrained ResNet with frozen normalisation multiplies its input by about a thousand,
        # and an untrained RetinaNet gives no object a score.
        *("MODEL.PIXEL_STD", [1e5, 1e5, 1e5]),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
        *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
        *("TEST.DETECTIONS_PER_IMAGE", 5),
        # The largest layers are smaller, and there are fewer regions, for the time of it.
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 64),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", 100),
    ]
    images = [i["image"] for i in batch()]
    inputs = [{"image": image, "height": 64, "width": 96} for image in images]
    runs = []
    for i, (ours, zoo) in enumerate(TWINS.items()):
        model = tiny_model(load_config(str(CONFIGS / f"{ours}_swn.yaml"), opts))
        SafeCheckpointer(model, str(tmp_path)).save(f"model{i}")
        runs.append((zoo, str(tmp_path / f"model{i}.pth"), detections(model, inputs)))
    torch.save((opts, inputs, runs), tmp_path / "runs.pt")
    code = f"""
import sys, torch
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
opts, inputs, runs = torch.load({str(tmp_path / "runs.pt")!r})
for zoo, path, expected in runs:
    print(zoo)
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(zoo + ".yaml"))
    cfg.merge_from_list(opts)
    model = build_model(cfg).eval()
    result = model.load_state_dict(torch.load(path)["model"], strict=False)
    assert not result.missing_keys
    added = result.unexpected_keys
    assert added and all("sample_weighter" in key for key in added)
    for tensor in model.state_dict().values():
        tensor.zero_()
    DetectionCheckpointer(model).load(path)
    with torch.no_grad():
        results = [r["instances"].get_fields() for r in model(inputs)]
    for actual, fields in zip(results, expected, strict=True):
        actual["pred_boxes"] = actual["pred_boxes"].tensor
        assert actual.keys() == fields.keys() and len(fields["scores"]) > 0
        assert all(torch.equal(actual[name], fields[name]) for name in fields)
assert "swn_d2" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.split() == list(TWINS.values())


@every_batch
@every_reading
def test_every_parameter_gets_a_gradient(detector, reading, inputs):
    """DistributedDataParallel stops on a parameter that took no part in the loss."""
    model = tiny_model(tiny_config(detector=detector, reading=reading))
    losses = training_losses(model, inputs())
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@every_batch
@every_reading
def test_bfloat16_autocast_trains(detector, reading, inputs):
    model = tiny_model(tiny_config(detector=detector, reading=reading))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = training_losses(model, inputs())
    sum(losses.values()).backward()
    ours = [name for name in losses if "rpn" not in name]
    assert all(torch.isfinite(losses[name]) for name in losses)
    assert all(losses[name].dtype == torch.float32 for name in ours)
    for weighter in weighters(model):
        assert all(torch.isfinite(p.grad).all() for p in weighter.parameters())


@every_detector
def test_weights_are_learned(detector):
    """After some steps of its own optimiser, the (first) weighter's weights differ."""
    model = tiny_model(tiny_config(detector=detector))
    weighter = weighters(model)[0]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bbox_pred.weight" in name:
                parameter.mul_(100)  # else the boxes of an untrained R-CNN are hardly moved
    seen = []
    weighter.register_forward_hook(lambda module, inputs, output: seen.append(output))
    adam = torch.optim.Adam(weighter.parameters(), lr=0.03)
    for _ in range(15):
        losses = training_losses(model, batch())
        adam.zero_grad()
        sum(losses.values()).backward()
        adam.step()
    tasks = ["box", "mask"] if "mask" in detector else ["box"]
    assert list(seen[-1].learned) == ["label", *tasks]
    assert (seen[-1].label == 1).all()  # this detector finds no class unlikely yet
    for task in tasks:
        start, end = seen[0].learned[task], seen[-1].learned[task]
        # How far depends on how a processor rounds; what is not learned stays at 1 exactly.
        assert (start == 1).all() and end.max() - end.min() > 1e-3


@every_detector
def test_scalars_are_logged_when_detectron2_writes(detector):
    reading = "relative"
    model = tiny_model(tiny_config(detector=detector, reading=reading)).train()
    for iteration, is_logged in ((LOG_PERIOD - 2, False), (LOG_PERIOD - 1, True)):
        with EventStorage(iteration) as storage:
            model(batch())
            names = set(storage.latest())
        stages = ["stage0/", "stage1/", "stage2/"] if "cascade" in detector else [""]
        expected = {
            f"{stage}{source}/{group}_{statistic}"
            for stage in stages
            for source in ("weights", "swn")
            for group in ("cls_fg", "cls_bg", "box")
            for statistic in ("mean", "std")
        }
        if "mask" in detector:
            expected |= {f"{stages[0]}weights/mask_mean", f"{stages[0]}swn/mask_std"}
            expected |= {"mask_rcnn/accuracy", "mask_rcnn/false_negative"}  # Detectron2's own
        assert expected.issubset(names) == is_logged
    assert storage.latest()[f"{stages[0]}weights/box_mean"][0] == pytest.approx(1.0, abs=1e-5)
    assert storage.latest()[f"{stages[0]}swn/box_std"][0] == pytest.approx(0.0, abs=1e-5)


@every_detector
def test_l1_gets_a_warning(detector, caplog):
    with caplog.at_level(logging.WARNING, logger="swn_d2"):
        tiny_model(tiny_config(detector=detector))
        assert "plain L1" not in caplog.text
        tiny_model(tiny_config(*box_loss_opts(detector, "l1"), detector=detector))
    assert "plain L1" in caplog.text


@every_detector
def test_an_unknown_box_loss_is_refused(detector):
    with pytest.raises(UserError, match="'iou'.*smooth_l1 or giou"):
        tiny_model(tiny_config(*box_loss_opts(detector, "iou"), detector=detector))


@every_detector
def test_a_seed_gives_the_detector_that_it_gives_without_swn(detector):
    """And the random numbers that follow, from which regions are sampled."""
    after, states = [], []
    for stock in (True, False):
        states.append(tiny_model(tiny_config(detector=detector, stock=stock), seed=3).state_dict())
        after.append(torch.rand(4))
    stock, swn = states
    for name, value in stock.items():
        assert torch.equal(swn[name], value), name
    assert torch.equal(*after)


@every_detector
def test_a_new_run_from_a_checkpoint_eases_in_again(detector):
    model = tiny_model(tiny_config("MODEL.SWN.EASE_IN", [0.5, 0.5], detector=detector))
    for weighter in weighters(model):
        randomize(weighter)
    seen = []
    for weighter in weighters(model):
        weighter.register_forward_hook(lambda module, inputs, output: seen.append(output.box))
    training_losses(model, batch(), start_iter=10)
    assert all((weights == 1).all() for weights in seen)
    seen.clear()
    training_losses(model, batch(), start_iter=60)
    assert all((weights != 1).any() for weights in seen)
