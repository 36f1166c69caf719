"""What is found in several looks at one picture."""

import numpy as np
import torch

from swn_d2.audit.detections import Detections, detect, look, merge, mirror
from swn_d2.audit.evidence import build_judge
from swn_d2.engine import SafeCheckpointer
from tests.tiny import tiny_config, tiny_model

BOX = np.array([10, 10, 50, 50])
NEAR, FAR = BOX + [4, 0, 4, 0], BOX + [100, 0, 100, 0]


def seen(*found):
    """Detections of (box, class, score)."""
    boxes, classes, scores = zip(*found, strict=True) if found else ((), (), ())
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(classes, int), np.float32(scores)
    )


def test_an_object_that_is_seen_in_every_look_is_one():
    found = merge([seen((BOX, 0, 0.9), (FAR, 1, 0.2)), seen((NEAR, 0, 0.3))])
    np.testing.assert_allclose(found.boxes, [BOX + [1, 0, 1, 0], FAR])
    np.testing.assert_array_equal(found.classes, [0, 1])
    np.testing.assert_allclose(found.scores, [0.6, 0.1])


def test_twice_in_one_look_counts_once():
    found = merge([seen((BOX, 0, 0.8), (NEAR, 0, 0.4)), seen()])
    np.testing.assert_allclose(found.scores, [0.4])


def test_other_classes_and_places_are_other_objects():
    found = merge([seen((BOX, 0, 0.8), (BOX, 1, 0.4)), seen((BOX + 25, 0, 0.4))])
    np.testing.assert_array_equal(found.classes, [0, 1, 0])
    np.testing.assert_allclose(found.scores, [0.4, 0.2, 0.2])


def test_nothing_and_no_area():
    assert len(merge([seen(), seen()]).scores) == 0
    found = merge([seen(([5, 5, 5, 9], 0, 0.4))])
    np.testing.assert_array_equal(found.boxes, [[5, 5, 5, 9]])


def test_boxes_are_in_pixels_of_the_picture(tmp_path):
    cfg = tiny_config(
        *("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 128),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 8),
    )
    SafeCheckpointer(tiny_model(cfg), str(tmp_path)).save("model")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    judge = build_judge(cfg)
    half = np.random.default_rng(0).integers(0, 256, (128, 96, 3), dtype=np.uint8)
    pixels = np.hstack([half, half[:, ::-1]])  # its own mirror image
    for enlarged in (1, 1.5):
        upright, mirrored = (
            look(judge, pixels, enlarged=enlarged, mirrored=mirrored) for mirrored in (False, True)
        )
        assert upright.boxes[:, 2].max() > 150  # of 192; the detector sees 96 or 144 columns
        back = mirror(torch.from_numpy(mirrored.boxes), 192)
        np.testing.assert_allclose(back, upright.boxes, atol=1e-3)
    assert len(detect(judge, pixels).scores)
