"""What detectors predict for given boxes: their regression is set to widen every box."""

import math

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from PIL import Image
from torch import nn

from swn_d2.audit import evidence
from swn_d2.audit.annotations import Annotations
from swn_d2.engine import SafeCheckpointer
from swn_d2.modeling.box_losses import matched_pairwise_iou
from tests.tiny import NUM_CLASSES, tiny_config, tiny_model

WIDEN = 0.5  # the predicted delta of the width, before it is divided by the weight for it
#: detector -> the sum over its stages of 1 / that weight
DETECTORS = {"faster_rcnn": 1 / 5, "cascade_rcnn": 1 / 5 + 1 / 10 + 1 / 15, "retinanet": 1}
BOXES = torch.tensor([[8.0, 8.0, 40.0, 40.0], [20.0, 4.0, 30.0, 50.0], [50.0, 30.0, 90.0, 60.0]])

every_detector = pytest.mark.parametrize("detector", DETECTORS)


def widening(detector):
    """An untrained detector whose boxes are what they are given, but wider."""
    model = tiny_model(tiny_config("INPUT.MIN_SIZE_TEST", 64, detector=detector)).eval()
    set_deltas(model, WIDEN)
    return model


def set_deltas(model, widen):
    for name, module in model.named_modules():
        if name.endswith("bbox_pred"):
            nn.init.zeros_(module.weight)
            module.bias.data = torch.tensor([0.0, 0.0, widen, 0.0]).repeat(len(module.bias) // 4)


def rate(model):
    image = {"image": torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255}
    heads = getattr(model, "roi_heads", model)
    with torch.no_grad():
        features = model.backbone(model.preprocess_image([image]).tensor)
        return heads.rate_boxes(features, [Boxes(BOXES)], torch.tensor([0, 1, 2]))


def widths(boxes):
    return boxes[..., 2] - boxes[..., 0]


@every_detector
def test_boxes_of_every_stage(detector):
    model = widening(detector)
    _, wider = rate(model)
    set_deltas(model, 0.0)
    _, placed = rate(model)
    if detector != "retinanet":  # whose anchors are others than the boxes
        torch.testing.assert_close(placed, BOXES)
    expected = math.exp(WIDEN * DETECTORS[detector])
    torch.testing.assert_close(widths(wider), widths(placed) * expected)
    torch.testing.assert_close(wider[:, 1::2], placed[:, 1::2])


@every_detector
def test_probabilities_are_among_objects(detector):
    """Where the background is by far the likeliest, too. Of a cascade, in the mean of the stages,
    each of which is surer here than the one before."""
    model = widening(detector)
    layers = [m for name, m in model.named_modules() if name.endswith("cls_score")]
    for stage, layer in enumerate(layers):
        nn.init.zeros_(layer.weight)
        scores = [0.0, 1.0 + stage, 2.0 + 2 * stage]
        if isinstance(layer, nn.Linear):
            scores.append(20.0)
        else:  # whose logits are of each class by itself
            scores = [score - 9 for score in scores]
        layer.bias.data = torch.tensor(scores).repeat(len(layer.bias) // len(scores))
    log_probs, _ = rate(model)
    mean = (len(layers) + 1) / 2 * torch.arange(3.0)
    expected = mean.log_softmax(dim=0).expand(3, NUM_CLASSES)
    torch.testing.assert_close(log_probs, expected, atol=1e-3, rtol=0)


def test_anchors_that_would_be_matched():
    """A RetinaNet's box is the mean of anchors that overlap it by half, or of the best."""
    model = widening("retinanet")
    set_deltas(model, 0.0)
    _, found = rate(model)
    assert (matched_pairwise_iou(Boxes(found), Boxes(BOXES)) > 0.3).all()


@pytest.mark.parametrize("detector", ["faster_rcnn", "cascade_rcnn"])
def test_evidence_is_in_pixels_of_the_picture(detector, tmp_path):
    """The detector sees the picture smaller, and mirrored as well."""
    cfg = tiny_config("INPUT.MIN_SIZE_TEST", 64, "TEST.DETECTIONS_PER_IMAGE", 1, detector=detector)
    SafeCheckpointer(widening(detector), str(tmp_path)).save("model")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    noise = np.random.default_rng(0).integers(0, 256, (96, 144, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "0.png")
    content = {
        "images": [{"id": 0, "file_name": "0.png", "height": 96, "width": 144}],
        "categories": [{"id": k, "name": str(k)} for k in range(NUM_CLASSES)],
        "annotations": [
            {"id": i, "image_id": 0, "category_id": i, "bbox": box, "area": 1, "iscrowd": 0}
            for i, box in enumerate([[5, 6, 40, 50], [60, 10, 30, 30]])
        ],
    }
    found = evidence.gather_evidence(
        evidence.build_judge(cfg), Annotations(tmp_path / "x.json", tmp_path, content)
    )
    factor = math.exp(WIDEN * DETECTORS[detector])
    for step in range(2):
        refined = found.refined[:, :, step]
        np.testing.assert_allclose(
            widths(refined), widths(found.placed) * factor ** (step + 1), rtol=1e-3
        )
        centres = [(boxes[..., 0] + boxes[..., 2]) / 2 for boxes in (refined, found.placed)]
        np.testing.assert_allclose(*centres, atol=1e-2)
        np.testing.assert_allclose(refined[..., 1::2], found.placed[..., 1::2], atol=1e-2)
