"""Which objects detections are of, against COCO's own evaluation."""

import json

import numpy as np

from swn_d2.evaluation.coco import CocoResults
from swn_d2.evaluation.matching import match_detections
from swn_d2.evaluation.pictures import Objects
from swn_d2.files import write_text

BOX = (10.0, 10.0, 20.0, 20.0)


def objects(*rows):
    """From (box, class, score)."""
    return Objects.from_rows(list(rows))


def found(truth, *detections, **options):
    matches = match_detections(objects(*truth), objects(*detections), **options)
    return np.isin(np.arange(len(truth)), matches).tolist()


def test_an_object_is_found_by_a_detection_of_its_class():
    truth = [(BOX, 0, 1.0), ((30.0, 30.0, 40.0, 40.0), 1, 1.0)]
    assert found(truth) == [False, False]
    assert found([], (BOX, 0, 0.9)) == []
    assert found(truth, (BOX, 0, 0.9)) == [True, False]
    assert found(truth, (BOX, 1, 0.9)) == [False, False]


def test_an_iou_of_the_threshold_is_enough():
    half = (10.0, 10.0, 20.0, 15.0)  # IoU 1/2
    assert found([(BOX, 0, 1.0)], (half, 0, 0.9)) == [True]
    assert found([(BOX, 0, 1.0)], (half, 0, 0.9), iou_threshold=0.51) == [False]


def test_a_detection_finds_one_object():
    near = (10.0, 10.0, 20.0, 19.0)
    truth = [(near, 0, 1.0), (BOX, 0, 1.0)]
    assert found(truth, (BOX, 0, 0.9)) == [False, True]
    # The second takes what is left.
    assert found(truth, (BOX, 0, 0.9), (BOX, 0, 0.8)) == [True, True]


def test_the_highest_score_chooses_first():
    left, middle, right = ((x, 0.0, x + 10, 10.0) for x in (0.0, 2.0, 5.0))
    truth = [(left, 0, 1.0), (right, 0, 1.0)]
    # The first overlaps both objects and prefers the left; the second overlaps it alone.
    assert found(truth, (middle, 0, 0.9), (left, 0, 0.8)) == [True, False]
    assert found(truth, (left, 0, 0.9), (middle, 0, 0.8)) == [True, True]
    assert found(truth, (middle, 0, 0.8), (left, 0, 0.9)) == [True, True]


def test_the_rule_is_that_of_coco(tmp_path):
    random = np.random.default_rng(0)
    images, truths, detections = 20, [], []
    for _ in range(images):
        corners = random.uniform(0, 60, (8, 2))
        boxes = np.hstack([corners, corners + random.uniform(15, 40, (8, 2))])
        truths.append(Objects(boxes, random.integers(0, 2, 8), np.ones(8)))
        picks = random.integers(0, 8, 20)
        jittered = boxes[picks] + random.normal(0, 3, (20, 4))
        detections.append(Objects(jittered, random.integers(0, 2, 20), random.uniform(0.5, 1, 20)))

    def entries(per_image):
        return [
            {
                "id": id_,
                "image_id": image,
                "category_id": int(class_),
                "bbox": [*box[:2], *(box[2:] - box[:2])],
                "area": float(np.prod(box[2:] - box[:2])),
                "iscrowd": 0,
                "score": float(score),
            }
            for image, o in enumerate(per_image)
            for id_, (box, class_, score) in enumerate(
                zip(o.boxes, o.classes, o.scores, strict=True), start=1 + image * len(o.scores)
            )
        ]

    truth = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
        "annotations": entries(truths),
    }
    for name, content in (("truth", truth), ("results", entries(detections))):
        write_text(tmp_path / name, json.dumps(content))
    pairs = CocoResults(tmp_path / "results", tmp_path / "truth").pairs(0, by_class=True)
    by_coco = np.zeros(8 * images, dtype=bool)
    for object_, detection in (pair for of_image in pairs.values() for pair in of_image):
        if object_ and detection:
            by_coco[object_["id"] - 1] = True
    by_us = np.concatenate(
        [
            np.isin(np.arange(8), match_detections(*both))
            for both in zip(truths, detections, strict=True)
        ]
    )
    assert 0.2 < by_coco.mean() < 0.8
    assert (by_us == by_coco).all()
