"""KL-loss against the formula of He et al. 2019."""

import math

import pytest
import torch
from torch.nn import functional as F

from swn_d2.errors import UserError
from swn_d2.modeling import SWNFastRCNNOutputLayers
from swn_d2.weighting import SampleLosses, SampleStatistics, build_sample_weighter
from swn_d2.weighting.kl_loss import KLLoss
from tests.tiny import (
    batch,
    batch_with_empty_image,
    empty_batch,
    tiny_config,
    tiny_model,
    training_losses,
)

KL_LOSS = ["MODEL.SAMPLE_WEIGHTER.NAME", "KLLoss", "MODEL.ROI_BOX_HEAD.LOG_VARIANCE", True]
LOG_SIGMA2 = 0.7


def plain_kl_loss(errors, a, given, num_samples):
    """Eq. 8 and 9 of He et al., summed, divided like Detectron2's box loss."""
    total = 0.0
    for of_sample, a_of_sample, weight in zip(errors, a, given, strict=True):
        for d, log_variance in zip(of_sample, a_of_sample, strict=True):
            d = abs(d)
            loss = d * d / 2 if d <= 1 else d - 0.5
            total += weight * (math.exp(-log_variance) * loss + log_variance / 2)
    return total / num_samples


@pytest.mark.parametrize("given", [[1.0, 1.0, 1.0], [0.5, 2.0, 0.0]])
def test_is_the_published_loss(given):
    errors = torch.tensor([[0.1, -0.9, 1.5, 4.0], [0.0, 1.0, -2.0, 0.3], [0.2, 0.2, -0.2, 9.0]])
    errors.requires_grad_()
    a = torch.tensor([[0.0, 1.0, -2.0, 0.5], [3.0, -1.0, 0.1, 0.0], [1.0, 2.0, 3.0, 4.0]])
    a.requires_grad_()
    given_weight = torch.tensor([*given, 1.0, 1.0])
    everyone = torch.cat([errors, torch.zeros(2, 4)])  # three positives, two negatives
    losses = SampleLosses(
        cls=torch.rand(5),
        box=F.smooth_l1_loss(everyone, torch.zeros(5, 4), reduction="none") * given_weight[:, None],
        normalizers={"cls": 5, "box": 5},
    )
    statistics = SampleStatistics.of(
        losses,
        iou=torch.zeros(5),
        prob=torch.zeros(5),
        is_foreground=torch.arange(5) < 3,
        details={
            "log_variance": lambda: torch.cat([a, torch.zeros(2, 4)]),
            "given_box_weight": lambda: given_weight,
        },
    )
    weights = KLLoss()(statistics)
    assert weights.cls is None
    total = losses.weighted(weights)["box"] + sum(weights.regularizers.values())
    expected = plain_kl_loss(errors.tolist(), a.tolist(), given, 5)
    assert total.item() == pytest.approx(expected, rel=1e-6)

    # The gradient, by differences of the plain loss.
    total.backward()
    step = 1e-5
    for tensor, make in ((a, lambda x: (errors, x)), (errors, lambda x: (x, a))):
        for i, d in ((0, 2), (1, 0), (2, 3)):
            sides = []
            for sign in (1, -1):
                moved = tensor.detach().double()
                moved[i, d] += sign * step
                moved_errors, moved_a = (t.tolist() for t in make(moved))
                sides.append(plain_kl_loss(moved_errors, moved_a, given, 5))
            slope = (sides[0] - sides[1]) / (2 * step)
            # The other of the two is in float32, the differences of which are worth 1e-5.
            assert tensor.grad[i, d].item() == pytest.approx(slope, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn", "cascade_rcnn"])
def test_in_a_detector(name):
    """With one variance for all, the loss is known from Detectron2's own."""
    stock = tiny_model(tiny_config(detector=name, stock=True))
    model = tiny_model(tiny_config(*KL_LOSS, detector=name))
    trained = dict(model.named_parameters())
    # The same start as without the layer, and the same regions.
    assert all(torch.equal(trained[key], value) for key, value in stock.named_parameters())
    added = {key: value for key, value in trained.items() if key.endswith("log_variance.weight")}
    assert len(added) == (3 if name == "cascade_rcnn" else 1)
    for key, weight in added.items():
        # Some 10 standard errors of a standard deviation, of at least 128 weights.
        assert weight.std().item() == pytest.approx(1e-4, rel=0.6), key
        assert not trained[key.replace("weight", "bias")].any()

    with torch.no_grad():
        for key, weight in added.items():
            weight.zero_()
            trained[key.replace("weight", "bias")].fill_(LOG_SIGMA2)
    positives = []
    for predictor in model.modules():
        if not isinstance(predictor, SWNFastRCNNOutputLayers):
            continue
        of_stage = predictor.sample_losses

        def spy(*args, of_stage=of_stage):
            result = of_stage(*args)
            positives.append(len(result[1].foreground) / len(result[1]))
            return result

        predictor.sample_losses = spy
    expected, actual = training_losses(stock, batch()), training_losses(model, batch())
    suffixes = [f"_stage{i}" for i in range(3)] if name == "cascade_rcnn" else [""]
    assert len(positives) == len(suffixes) and min(positives) > 0
    for suffix, share in zip(suffixes, positives, strict=True):
        scaled = math.exp(-LOG_SIGMA2) * expected.pop(f"loss_box_reg{suffix}").item()
        assert actual.pop(f"loss_box_reg{suffix}").item() == pytest.approx(scaled, rel=1e-5)
        of_positives = share * 4 * LOG_SIGMA2 / 2
        assert actual.pop(f"loss_kl{suffix}").item() == pytest.approx(of_positives, rel=1e-5)
    assert actual.keys() == expected.keys()
    assert all(actual[k].item() == pytest.approx(expected[k].item(), rel=1e-5) for k in expected)


def test_the_variances_are_those_of_the_true_class():
    model = tiny_model(tiny_config(*KL_LOSS))
    predictor = model.roi_heads.box_predictor
    with torch.no_grad():
        predictor.log_variance.weight.zero_()
        predictor.log_variance.bias.copy_(torch.arange(12.0))  # K = 3 classes, 4 coordinates
    seen = []
    model.roi_heads.sample_weighter.register_forward_hook(
        lambda _, args, weights: seen.append((args[0], weights))
    )
    training_losses(model, batch())
    statistics, weights = seen[0]
    classes = statistics.detail("gt_class")
    assert set(classes.tolist()) == {0, 1, 3}
    a = 4.0 * classes[:, None] + torch.arange(4.0)
    a[classes == 3] = 0
    assert torch.equal(statistics.detail("log_variance"), a)
    assert torch.equal(weights.box, torch.exp(-a))


@pytest.mark.parametrize("inputs", [batch, batch_with_empty_image, empty_batch])
def test_every_parameter_has_a_gradient(inputs):
    """Which DistributedDataParallel needs."""
    model = tiny_model(tiny_config(*KL_LOSS))
    sum(training_losses(model, inputs()).values()).backward()
    grads = {key: p.grad for key, p in model.named_parameters()}
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    learns = grads["roi_heads.box_predictor.log_variance.bias"].any().item()
    assert learns == (inputs is not empty_batch)


@pytest.mark.parametrize(
    "opts, message",
    [
        (KL_LOSS[:2], "set MODEL.ROI_BOX_HEAD.LOG_VARIANCE to True"),
        ([*KL_LOSS, "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 0.0], "smooth-L1 with beta 1"),
        ([*KL_LOSS, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou"], "set .*LOSS_TYPE to smooth"),
    ],
)
def test_what_it_needs(opts, message):
    with pytest.raises(UserError, match=message):
        tiny_model(tiny_config(*opts))


def test_the_config_builds_it():
    cfg = tiny_config(*KL_LOSS)
    assert type(build_sample_weighter(cfg, box_loss_dim=4, has_mask=False)) is KLLoss
