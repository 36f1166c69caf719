import json

import numpy as np
import pytest
from PIL import Image

from swn_d2.data import make_digit_scenes, register_coco
from swn_d2.errors import UserError
from swn_d2.evaluation import draw_detections


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures") / "digits"
    make_digit_scenes(root, num_train=1, num_val=5, image_size=(96, 64))
    annotations = root / "annotations" / "instances_val.json"
    register_coco("pictured_digits", str(annotations), str(root / "val"))
    return json.loads(annotations.read_text())


def draw(folder, name, detections, **options):
    results = folder / f"{name}.json"
    results.write_text(json.dumps(detections))
    picture = folder / f"{name}.png"
    draw_detections(str(results), "pictured_digits", str(picture), **options)
    return np.asarray(Image.open(picture).convert("RGB")).astype(int)


def test_only_confident_detections_change_the_picture(scenes, tmp_path):
    detections = [
        {**{key: a[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for a in scenes["annotations"]
    ]
    nothing = draw(tmp_path, "nothing", [])
    unsure = draw(tmp_path, "unsure", [{**d, "score": 0.4} for d in detections])
    sure = draw(tmp_path, "sure", detections)
    assert np.array_equal(nothing, unsure)
    changed = (nothing != sure).any(axis=2)
    # The pairs stand side by side: columns 2 and 4 hold the detections.
    quarter = changed.shape[1] // 4
    shares = [changed[:, i * quarter : (i + 1) * quarter].mean() for i in range(4)]
    assert shares[0] == shares[2] == 0 and min(shares[1], shares[3]) > 0.01


def test_number_of_images(scenes, tmp_path):
    few, many = (draw(tmp_path, f"n{n}", [], num_images=n) for n in (2, 99))
    assert many.shape[0] > few.shape[0]


def test_missing_detections_are_named(scenes, tmp_path):
    with pytest.raises(UserError, match="none.json.*--eval-only"):
        draw_detections(str(tmp_path / "none.json"), "pictured_digits", str(tmp_path / "x.png"))
