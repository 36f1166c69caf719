"""Evidence as a detector would give it, of objects whose errors are known."""

import json
from pathlib import Path

import numpy as np

from swn_d2.audit.annotations import Annotations
from swn_d2.audit.evidence import NUM_DECOYS, Evidence, with_decoys

PER_PICTURE = 5
SIZE = 200  # of the pictures, in pixels


def class_evidence(share, *, seed=0, number=1500, num_classes=6, skill=2.5, memorised=0.2):
    """(N, K) log_probs, (N,) classes as annotated, (N,) whether that is wrong, (N,) pictures.

    Args:
        share: of wrong classes.
        skill: how far the true class stands out; of one object in five it does not.
        memorised: how much the annotated class does.
    """
    rng = np.random.default_rng(seed)
    true = rng.integers(num_classes, size=number)
    wrong = rng.random(number) < share
    annotated = np.where(wrong, (true + rng.integers(1, num_classes, number)) % num_classes, true)
    rows = np.arange(number)
    logits = rng.normal(size=(number, num_classes))
    logits[rows, true] += np.where(rng.random(number) < 0.2, 0.5, 2 * skill)
    logits[rows, annotated] += memorised
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return log_probs.astype(np.float32), annotated, wrong, rows // PER_PICTURE


def box_evidence(share, *, seed=0, number=1000, precision=0.05):
    """Evidence, and (N,) which boxes are badly placed: the detector sees each object where it is,
    up to ``precision`` of its size."""
    rng = np.random.default_rng(seed)
    corners, sides = rng.uniform(20, 80, (number, 2)), rng.uniform(30, 80, (number, 2))
    true = np.hstack([corners, corners + sides]).astype(np.float32)
    wrong = rng.random(number) < share
    moves = rng.uniform(-0.25, 0.25, (number, 4)) * wrong[:, None] * np.tile(sides, 2)
    placed = with_decoys((true + moves).astype(np.float32), rng)
    noise = rng.normal(size=(number, 1 + NUM_DECOYS, 2, 4)) * precision
    refined = true[:, None, None] + noise * np.tile(sides, 2)[:, None, None]
    return _evidence(placed=placed, refined=refined.astype(np.float32)), wrong


def annotations(boxes, classes, *, image=None, num_classes=2, crowds=(), **more):
    """A data set; box i in picture ``i // PER_PICTURE`` unless ``image`` says another.

    Args:
        crowds: (picture, box in XYXY) of crowd regions.
        more: keys of every annotation.
    """
    image = np.arange(len(boxes)) // PER_PICTURE if image is None else image
    objects = [(i, box, k, 0) for i, box, k in zip(image, boxes, classes, strict=True)]
    objects += [(i, box, 0, 1) for i, box in crowds]
    rows = [
        {
            "id": 100 + n,
            "image_id": int(i),
            "category_id": int(k) + 1,
            "bbox": [float(x) for x in (x0, y0, x1 - x0, y1 - y0)],
            "area": float((x1 - x0) * (y1 - y0)),
            "iscrowd": crowd,
            **more,
        }
        for n, (i, (x0, y0, x1, y1), k, crowd) in enumerate(objects)
    ]
    number = max((row["image_id"] for row in rows), default=0) + 1
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": SIZE, "height": SIZE} for i in range(number)
        ],
        "categories": [{"id": k + 1, "name": f"kind {k}"} for k in range(num_classes)],
        "annotations": rows,
    }
    return Annotations(Path("annotations.json"), Path("images"), json.loads(json.dumps(content)))


def detections(found, *, num_objects=0):
    """Evidence with nothing but detections: (picture, box in XYXY, class, score)."""
    image, boxes, classes, scores = zip(*found, strict=True) if found else ((), (), (), ())
    return _evidence(
        placed=np.zeros((num_objects, 1 + NUM_DECOYS, 4), np.float32),
        detections=np.array(boxes, np.float32).reshape(-1, 4),
        detection_image=np.array(image, np.int64),
        detection_class=np.array(classes, np.int64),
        detection_score=np.array(scores, np.float32),
    )


def _evidence(**known):
    number = len(known["placed"])
    nothing = {
        "log_probs": np.log(np.full((number, 2), 0.5, np.float32)),
        "refined": np.repeat(known["placed"][:, :, None], 2, axis=2),
        "detections": np.zeros((0, 4), np.float32),
        "detection_image": np.zeros(0, np.int64),
        "detection_class": np.zeros(0, np.int64),
        "detection_score": np.zeros(0, np.float32),
    }
    return Evidence(**{**nothing, **known})
