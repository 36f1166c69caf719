"""The other weighters in real detectors."""

import pytest
import torch
from detectron2.modeling import build_backbone

from swn_d2.engine.setup import check_detector
from swn_d2.errors import UserError
from swn_d2.modeling import SWNROIHeads
from swn_d2.weighting.kl_loss import KLLoss
from swn_d2.weighting.ohem import OHEM
from tests.tiny import (
    batch,
    batch_with_empty_image,
    empty_batch,
    tiny_config,
    tiny_model,
    training_losses,
    weighters,
)

ALL_PROPOSALS = [
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 128),
    *("MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0),
    *("MODEL.SAMPLE_WEIGHTER.OHEM.NUM_SAMPLES", 16),
]
POSITIVES_ONLY = ["MODEL.SAMPLE_WEIGHTER.PRIMESAMPLE.ISR_N_GAMMA", 0.0]
R_CNNS = ("faster_rcnn", "mask_rcnn", "cascade_rcnn")
CASES = [
    *[(detector, "OHEM", ALL_PROPOSALS) for detector in R_CNNS],
    *[(detector, "FocalWeighting", []) for detector in R_CNNS],
    *[(detector, "IoUBalanced", []) for detector in (*R_CNNS, "retinanet")],
    *[(detector, "PrimeSample", []) for detector in R_CNNS],
    *[(detector, "TaskUncertainty", []) for detector in (*R_CNNS, "retinanet")],
    *[(d, "KLLoss", ["MODEL.ROI_BOX_HEAD.LOG_VARIANCE", True]) for d in R_CNNS],
    ("retinanet", "PrimeSample", POSITIVES_ONLY),
]


@pytest.mark.parametrize("detector, weighter, opts", CASES)
def test_trains_with_finite_losses(detector, weighter, opts):
    opts = ["MODEL.SAMPLE_WEIGHTER.NAME", weighter, *opts]
    model = tiny_model(tiny_config(*opts, detector=detector))
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    for step, inputs in enumerate((batch(), empty_batch(), batch_with_empty_image(), batch())):
        losses = training_losses(model, inputs, start_iter=step)
        assert all(torch.isfinite(loss) for loss in losses.values()), losses
        sgd.zero_grad()
        sum(losses.values()).backward()
        # What DistributedDataParallel needs, and a graph through the weights must not spoil.
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
        sgd.step()


@pytest.mark.parametrize("detector, weighter, opts", CASES)
def test_trains_in_half_precision(detector, weighter, opts):
    """bfloat16, the half precision that a CPU has; with weights from the data, too."""
    opts = ["MODEL.SAMPLE_WEIGHTER.NAME", weighter, *opts]
    model = tiny_model(tiny_config(*opts, detector=detector))
    for inputs in (batch(), empty_batch()):
        for x in inputs:
            x["instances"].gt_sample_weight = torch.full((len(x["instances"]),), 2.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = training_losses(model, inputs)
        sum(losses.values()).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_ohem_needs_all_proposals():
    with pytest.raises(UserError, match="POSITIVE_FRACTION to 1.0.* more than the 50 proposals"):
        tiny_model(tiny_config("MODEL.SAMPLE_WEIGHTER.NAME", "OHEM"))
    with pytest.raises(UserError, match="BATCH_SIZE_PER_IMAGE"):
        few = ["MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 50]
        tiny_model(tiny_config("MODEL.SAMPLE_WEIGHTER.NAME", "OHEM", *few))
    few = ("MODEL.LOAD_PROPOSALS", True, *ALL_PROPOSALS)
    with pytest.raises(UserError, match="2000 proposals of DATASETS.PRECOMPUTED_PROPOSAL_TOPK"):
        check_detector(tiny_config("MODEL.SAMPLE_WEIGHTER.NAME", "OHEM", *few))


@pytest.mark.parametrize(
    "weighter, opts, words",
    [
        (OHEM, [], "OHEM selects from all proposals"),
        (KLLoss, ["MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 0.0], "smooth-L1 with beta 1"),
        (KLLoss, ["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou"], "smooth-L1 with beta 1"),
        (KLLoss, ["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 2.0], "would scale one term"),
    ],
)
def test_heads_that_are_made_without_a_config(weighter, opts, words):
    """As by a LazyConfig: no ``from_config`` of the weighter has seen the detector."""
    has_variance = weighter is KLLoss
    opts = ["MODEL.ROI_BOX_HEAD.LOG_VARIANCE", has_variance, *opts]
    cfg = tiny_config("MODEL.SAMPLE_WEIGHTER.NAME", "Uniform", *opts)
    arguments = SWNROIHeads.from_config(cfg, build_backbone(cfg).output_shape())
    arguments["sample_weighter"] = weighter()
    with pytest.raises(UserError, match=words):
        SWNROIHeads(**arguments)


def test_kl_loss_refuses_a_factor_of_one_of_its_terms():
    opts = ["MODEL.SAMPLE_WEIGHTER.NAME", "KLLoss", "MODEL.ROI_BOX_HEAD.LOG_VARIANCE", True]
    with pytest.raises(UserError, match="BBOX_REG_LOSS_WEIGHT would scale one term"):
        tiny_model(tiny_config(*opts, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 2.0))


@pytest.mark.parametrize("detector", R_CNNS)
def test_a_layer_that_nothing_trains_is_refused(detector):
    with pytest.raises(UserError, match="SWN does not train the variances"):
        tiny_model(tiny_config("MODEL.ROI_BOX_HEAD.LOG_VARIANCE", True, detector=detector))


@pytest.mark.parametrize("detector", [*R_CNNS, "retinanet"])
def test_the_objects_of_a_batch_are_not_kept(detector):
    model = tiny_model(tiny_config(detector=detector))
    training_losses(model, batch())
    holders = [m for m in model.modules() if getattr(m, "_targets", None) is not None]
    assert not holders


def weights_in_training(detector, weighter, opts):
    """(statistics, weights) of a detector's first step."""
    model = tiny_model(
        tiny_config("MODEL.SAMPLE_WEIGHTER.NAME", weighter, *opts, detector=detector)
    )
    seen = []
    weighters(model)[0].register_forward_hook(lambda _, args, output: seen.append((*args, output)))
    training_losses(model, batch())
    return seen[0]


def test_ohem_gets_all_proposals_and_takes_a_few():
    statistics, weights = weights_in_training("faster_rcnn", "OHEM", ALL_PROPOSALS)
    image = statistics.detail("image")
    # 50 proposals of each image and its objects.
    assert [int((image == i).sum()) for i in (0, 1)] == [52, 51]
    selected = weights.cls > 0
    assert [int(selected[image == i].sum()) for i in (0, 1)] == [16, 16]
    assert weights.cls[selected].tolist() == pytest.approx([103 / 32] * 32)


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_prime_samples_of_a_detector_differ(detector):
    opts = POSITIVES_ONLY if detector == "retinanet" else []
    statistics, weights = weights_in_training(detector, "PrimeSample", opts)
    positives = statistics.foreground
    assert weights.cls[positives].unique().numel() > 1
    assert weights.box[positives].mean().item() == pytest.approx(1.0)
    assert weights.box.requires_grad
    negatives = weights.cls[~statistics.is_foreground]
    assert (negatives.unique().numel() > 1) == (detector == "faster_rcnn")


@pytest.mark.parametrize("weighter", ["OHEM", "FocalWeighting"])
def test_a_retinanet_refuses_what_is_for_regions(weighter):
    with pytest.raises(UserError, match=weighter):
        tiny_model(tiny_config("MODEL.SAMPLE_WEIGHTER.NAME", weighter, detector="retinanet"))
