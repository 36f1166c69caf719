"""What MODEL.NMS makes of a detector's predictions."""

from functools import cache

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances

from swn_d2.errors import UserError
from swn_d2.modeling import SWNFastRCNNOutputLayers
from swn_d2.modeling.inference import Suppression, corner_variances
from swn_d2.modeling.soft_nms import batched_soft_nms, iou_guided_nms, variance_voting
from tests.tiny import batch, tiny_config, tiny_model, training_losses

from .stock import detections

EVERY_DETECTOR = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet")
R_CNNS = ("faster_rcnn", "cascade_rcnn")
THRESHOLD = 0.4
SOFT = {
    "linear": ["MODEL.NMS.METHOD", "linear", "MODEL.NMS.MIN_SCORE", 0.02],
    "gaussian": ["MODEL.NMS.METHOD", "gaussian", "MODEL.NMS.SIGMA", 0.3],
}
VARIANCES = ["MODEL.ROI_BOX_HEAD.LOG_VARIANCE", True, "MODEL.SAMPLE_WEIGHTER.NAME", "KLLoss"]
VOTING = ["MODEL.NMS.VARIANCE_VOTING", True]
IOU_GUIDED = ["MODEL.NMS.METHOD", "iou_guided", "MODEL.IOU_HEAD.ENABLED", True]


@cache
def parameters(name):
    """Parameters with which class scores differ, and running means that fit the images: without,
    scores are 0 and 1."""
    opts = {"retinanet": [], "cascade_rcnn": VARIANCES}.get(name, VARIANCES + IOU_GUIDED[2:])
    model = tiny_model(tiny_config(*opts, detector=name))
    scales = {"cls_score.weight": 5, "log_variance.weight": 100, "layers.5.weight": 100}
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.mul_(next((x for end, x in scales.items() if key.endswith(end)), 1))
    for seed in range(5):
        training_losses(model, batch(seed=seed))
    return model.state_dict()


def detected(name, *opts, stock=False):
    """What a detector with these parameters makes of the images, before it is clipped to them."""
    section = "RETINANET" if name == "retinanet" else "ROI_HEADS"
    threshold = (f"MODEL.{section}.NMS_THRESH_TEST", THRESHOLD)
    model = tiny_model(tiny_config(*threshold, *opts, detector=name, stock=stock))
    missing = model.load_state_dict(parameters(name), strict=False).missing_keys
    assert not [key for key in missing if "sample_weighter" not in key]
    if name != "retinanet":
        return detections(model, batch())
    results, of_image = [], model.inference_single_image

    def spy(*args):
        found = of_image(*args)
        boxes = found.pred_boxes.tensor.clone()  # which are clipped in place
        results.append({**found.get_fields(), "pred_boxes": boxes})
        return found

    model.inference_single_image = spy
    detections(model, batch())
    return results


def candidates_of(name):
    """What Detectron2's own detector finds if its NMS suppresses nothing."""
    section = "RETINANET" if name == "retinanet" else "ROI_HEADS"
    opts = (f"MODEL.{section}.NMS_THRESH_TEST", 2.0, "TEST.DETECTIONS_PER_IMAGE", 100_000)
    return detected(name, *opts, stock=True)


@pytest.mark.parametrize("limit", [100, 7])
@pytest.mark.parametrize("method", SOFT)
@pytest.mark.parametrize("name", EVERY_DETECTOR)
def test_soft_nms_of_all_candidates(name, method, limit):
    settings = {
        "linear": {"method": "linear", "iou_threshold": THRESHOLD, "min_score": 0.02},
        "gaussian": {"method": "gaussian", "sigma": 0.3, "min_score": 0.001},
    }[method]
    actual = detected(name, *SOFT[method], "TEST.DETECTIONS_PER_IMAGE", limit)
    for found, candidates in zip(actual, candidates_of(name), strict=True):
        boxes, scores, classes = (candidates[k] for k in ("pred_boxes", "scores", "pred_classes"))
        keep, new_scores = batched_soft_nms(boxes, scores, classes, **settings)
        keep, new_scores = keep[:limit], new_scores[:limit]
        assert 5 <= len(keep) < len(boxes)
        assert limit == 7 or not torch.equal(new_scores, scores[keep])
        # The mean over a cascade's stages is taken in another order.
        assert torch.allclose(found["scores"], new_scores, rtol=1e-5, atol=0)
        assert torch.equal(found["pred_classes"], classes[keep])
        assert torch.equal(found["pred_boxes"], boxes[keep])
        assert ("pred_masks" in found) == (name == "mask_rcnn")


@pytest.mark.parametrize("name", EVERY_DETECTOR)
def test_the_score_threshold_comes_first(name):
    section = "RETINANET" if name == "retinanet" else "ROI_HEADS"
    scores = torch.cat([found["scores"] for found in candidates_of(name)])
    threshold = scores.median().item()
    opts = [f"MODEL.{section}.SCORE_THRESH_TEST", threshold, "TEST.DETECTIONS_PER_IMAGE", 100_000]
    found = torch.cat([f["scores"] for f in detected(name, *SOFT["gaussian"], *opts)])
    # No score below the threshold takes part; those above may fall below it.
    assert len(found) <= int((scores > threshold).sum())
    assert found.min() < threshold


@pytest.mark.parametrize("name", R_CNNS)
@pytest.mark.parametrize("sigma", [1e-9, 0.2])
def test_variance_voting(name, sigma):
    """Only boxes move, and hardly if others must overlap a box exactly to have a say in it."""
    voting = detected(name, *VARIANCES, *VOTING, "MODEL.NMS.VOTING_SIGMA", sigma)
    for voted, found in zip(voting, detected(name, stock=True), strict=True):
        assert len(voted["scores"]) > 5
        assert torch.allclose(voted["scores"], found["scores"], rtol=1e-5, atol=0)
        assert torch.equal(voted["pred_classes"], found["pred_classes"])
        moved = (voted["pred_boxes"] - found["pred_boxes"]).abs().max()
        assert moved < 1e-2 if sigma == 1e-9 else moved > 0.1


@pytest.mark.parametrize("method", ["hard", "gaussian"])
def test_all_candidates_vote_with_either_nms(method):
    generator = torch.Generator().manual_seed(0)
    corner = 20 * torch.rand(60, 2, generator=generator)
    candidates = Instances((100, 100))
    candidates.pred_boxes = Boxes(torch.cat([corner, corner + 30], dim=1))
    candidates.scores = torch.rand(60, generator=generator)
    candidates.pred_classes = torch.arange(60) % 2
    candidates.variances = 0.1 + torch.rand(60, 4, generator=generator)
    found, keep = Suppression(method=method, voting_sigma=0.05)(
        candidates, iou_threshold=0.5, max_detections=5
    )
    assert len(found) == len(keep) == 5 and found.image_size == (100, 100)
    expected = variance_voting(
        candidates.pred_boxes.tensor,
        candidates.variances,
        candidates.pred_classes,
        keep,
        sigma=0.05,
    )
    assert torch.equal(found.pred_boxes.tensor, expected)
    assert set(found.get_fields()) == {"pred_boxes", "scores", "pred_classes"}


def test_iou_guided_nms_of_all_candidates(monkeypatch):
    seen = []
    suppress = SWNFastRCNNOutputLayers.suppress

    def spy(self, candidates):
        seen.extend(candidates)
        return suppress(self, candidates)

    monkeypatch.setattr(SWNFastRCNNOutputLayers, "suppress", spy)
    opts = ["MODEL.SAMPLE_WEIGHTER.NAME", "Uniform", "TEST.DETECTIONS_PER_IMAGE", 20]
    actual = detected("faster_rcnn", *IOU_GUIDED, *opts)
    for found, rated, expected in zip(actual, seen, candidates_of("faster_rcnn"), strict=True):
        boxes, scores, classes = (expected[k] for k in ("pred_boxes", "scores", "pred_classes"))
        rated = rated[rated.scores.argsort(descending=True)]  # as Detectron2 sorts them
        assert torch.equal(rated.pred_boxes.tensor, boxes)
        assert rated.predicted_iou.std() > 1e-3
        keep, new_scores = iou_guided_nms(
            *(boxes, scores, rated.predicted_iou, classes),
            iou_threshold=THRESHOLD,
            max_detections=20,
        )
        assert len(keep) == 20 and not torch.equal(new_scores, scores[keep])
        assert torch.equal(found["pred_boxes"], boxes[keep])
        assert torch.equal(found["scores"], new_scores)
        assert torch.equal(found["pred_classes"], classes[keep])


def output_layers(agnostic):
    torch.manual_seed(0)
    layers = SWNFastRCNNOutputLayers(
        8,
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=3,
        cls_agnostic_bbox_reg=agnostic,
        log_variance=True,
        suppression=Suppression(voting_sigma=0.02),
    )
    with torch.no_grad():
        layers.bbox_pred.weight.mul_(300)
        layers.log_variance.weight.mul_(1e4)
    return layers


@pytest.mark.parametrize("agnostic", [False, True])
def test_each_candidate_has_its_own_variances(agnostic):
    """Also where an image before it has other regions, or a region in between is not finite."""
    layers = output_layers(agnostic)
    proposals = [Instances((64, 96)) for _ in range(2)]
    for count, of_image in zip((3, 5), proposals, strict=True):
        corner = 40 * torch.rand(count, 2)
        of_image.proposal_boxes = Boxes(torch.cat([corner, corner + 10], dim=1))
    predictions = layers(torch.randn(8, 8))
    predictions[0][4, 0] = float("nan")  # the second region of the second image
    found = layers.candidates(predictions, proposals)
    assert [len(of_image) for of_image in found] == [3 * 3, 4 * 3]
    assert sorted(set(found[1].region.tolist())) == [0, 2, 3, 4]
    for start, of_image, proposal in zip((0, 3), found, proposals, strict=True):
        for i in range(len(of_image)):
            region, k = int(of_image.region[i]), int(of_image.pred_classes[i])
            columns = slice(0, 4) if agnostic else slice(4 * k, 4 * k + 4)
            box = proposal.proposal_boxes.tensor[region : region + 1]
            deltas = predictions[1][start + region, columns][None]
            decoded = layers.box2box_transform.apply_deltas(deltas, box)
            expected = corner_variances(
                predictions.log_variance[start + region, columns][None],
                box,
                decoded,
                weights=(10.0, 10.0, 5.0, 5.0),
            )
            assert torch.allclose(of_image.variances[i], expected[0])
            inside = decoded[0].clamp(min=0).minimum(torch.tensor([96.0, 64, 96, 64]))
            assert torch.allclose(of_image.pred_boxes.tensor[i], inside)
    _, regions = layers.inference(predictions, proposals)
    assert set(regions[1].tolist()) <= {0, 2, 3, 4}


def test_variances_of_corners_by_monte_carlo():
    torch.manual_seed(0)
    weights = (10.0, 8.0, 5.0, 4.0)
    transform = Box2BoxTransform(weights)
    box = torch.tensor([[10.0, 20.0, 60.0, 45.0]])
    deltas = torch.tensor([[1.0, -2.0, 2.0, -1.0]])
    # Standard deviations of 0.03 to 0.08, which change a width by at most 2 percent: the second
    # order is then some 1e-4 of the first.
    log_variance = torch.tensor([[0.08, 0.05, 0.03, 0.06]]).log() * 2
    count = 200_000
    drawn = deltas + torch.randn(count, 4) * (log_variance / 2).exp()
    sampled = transform.apply_deltas(drawn, box.expand(count, 4)).var(dim=0)
    decoded = transform.apply_deltas(deltas, box)
    predicted = corner_variances(log_variance, box, decoded, weights=weights)[0]
    # The variance of a sampled variance is 2 / count: 0.3 percent, of which these are three.
    assert torch.allclose(predicted, sampled, rtol=0.01, atol=0)
    assert predicted.unique().numel() == 2  # of x and of y


def test_a_variance_of_0_has_a_reciprocal():
    box = torch.tensor([[0.0, 0.0, 5.0, 5.0]])
    variances = corner_variances(torch.full((1, 4), -200.0), box, box, weights=(1.0, 1.0, 1.0, 1.0))
    assert (variances > 0).all() and torch.isfinite(1 / variances).all()


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.NMS.METHOD", "soft"], "MODEL.NMS.METHOD has 'soft', but .* hard, linear"),
        (["MODEL.NMS.SIGMA", 0.0], "MODEL.NMS.SIGMA is 0.0, but it must be greater than 0"),
        (["MODEL.NMS.MIN_SCORE", -0.1], "MODEL.NMS.MIN_SCORE is -0.1"),
        (["MODEL.NMS.MIN_SCORE", 1.0], "MODEL.NMS.MIN_SCORE is 1.0"),
        ([*VARIANCES, *VOTING, "MODEL.NMS.VOTING_SIGMA", 0.0], "MODEL.NMS.VOTING_SIGMA is 0.0"),
        (VOTING, "VARIANCE_VOTING needs .* set MODEL.ROI_BOX_HEAD.LOG_VARIANCE"),
        (IOU_GUIDED[:2], "iou_guided, which needs the IoU head; set MODEL.IOU_HEAD.ENABLED"),
    ],
)
def test_bad_settings(opts, message):
    with pytest.raises(UserError, match=message):
        tiny_model(tiny_config(*opts))


@pytest.mark.parametrize(
    "name, opts, message",
    [
        ("cascade_rcnn", IOU_GUIDED[:2], "SWNCascadeROIHeads has no IoU head"),
        ("cascade_rcnn", IOU_GUIDED[2:], "SWNCascadeROIHeads has no IoU head"),
        ("retinanet", IOU_GUIDED[:2], "MODEL.NMS.METHOD iou_guided is for the regions"),
        ("retinanet", IOU_GUIDED[2:], "MODEL.IOU_HEAD.ENABLED is for the regions"),
        ("retinanet", VARIANCES[:2], "MODEL.ROI_BOX_HEAD.LOG_VARIANCE is for the regions"),
        ("retinanet", VOTING, "MODEL.NMS.VARIANCE_VOTING is for the regions"),
    ],
)
def test_what_a_detector_does_not_have(name, opts, message):
    with pytest.raises(UserError, match=message):
        tiny_model(tiny_config(*opts, detector=name))
