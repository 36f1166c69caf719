"""The audit as files for other programs: JSON, CSV, and annotations to train on."""

import csv
import io
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..data.sample_weights import BOX_WEIGHT, LABEL_WEIGHT, SAMPLE_WEIGHT
from ..errors import UserError
from .audit import DUPLICATE, KINDS, MISPLACED_BOX, MISSING_OBJECT, WRONG_CLASS, Audit

__all__ = ["AUDITED", "corrected_json", "to_csv", "to_json", "weighted_json"]

#: The key of "info" in the annotation files that are written here.
AUDITED = "audited"

#: For each of KINDS, which weight of an annotation goes with what it makes wrong: where a class is
#: wrong, there is an object all the same, and it is where the box is.
_WRONG_IN = (LABEL_WEIGHT, BOX_WEIGHT, SAMPLE_WEIGHT)

_COLUMNS = (
    "id",
    "image_id",
    "file_name",
    "kind",
    "suspicion",
    *(kind.replace(" ", "_") for kind in KINDS),
    "category_id",
    "suggested_category_id",
    "bbox",
    "suggested_bbox",
    "duplicate_of",
)


def to_json(audit: Audit, *, run: str) -> str:
    """The text of ``audit.json``; docs/audit.md describes it."""
    expected = {
        kind: {name: round(value, 1) for name, value in zip(e._fields, e, strict=True)}
        for kind, e in audit.expected.items()
    }
    content = {
        "format": "swn_d2 audit",
        "version": 1,
        "run": run,
        "annotation_file": audit.annotations.file.name,
        "expected": expected,
        "annotations": _rows(audit),
        "missing": _missing_rows(audit),
    }
    return json.dumps(content, separators=(",", ":")) + "\n"


def to_csv(audit: Audit) -> str:
    """The text of ``audit.csv``: a row for each annotation, the most suspicious first, and after
    them the missing objects, which have no id."""
    names = {image["id"]: image["file_name"] for image in audit.annotations.images}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    rows = sorted(_rows(audit), key=lambda row: -row["suspicion"])
    missing = [{**row, "kind": MISSING_OBJECT} for row in _missing_rows(audit)]
    for row in [*rows, *missing]:
        row = {**row, "file_name": names[row["image_id"]]}
        row |= {kind.replace(" ", "_"): s for kind, s in row.get("suspicions", {}).items()}
        for box in ("bbox", "suggested_bbox"):
            row[box] = " ".join(map(str, row.get(box, [])))
        writer.writerow([row.get(column, "") for column in _COLUMNS])
    return stream.getvalue()


def weighted_json(audit: Audit, *, drop: int | None = None) -> str:
    """The annotation file again, with what each annotation is to count: each kind of error takes
    the weight from what it makes wrong (:data:`_WRONG_IN`), and from nothing else.

    Args:
        drop: if given, so many of the most suspicious lose all of that weight, and the others
            nothing; else each loses as much as it is likely to be wrong.
    """
    suspicions = audit.suspicions
    if drop is not None:
        suspicions = np.zeros_like(suspicions)
        dropped = np.argsort(-audit.suspicion, kind="stable")[:drop]
        suspicions[dropped, audit.suspicions[dropped].argmax(axis=1)] = 1
    weights = dict(zip(audit.annotations.ids, 1 - suspicions, strict=True))
    result = []
    for a in audit.annotations.content["annotations"]:
        if a["id"] in weights:
            a = _reweighted(a, dict(zip(_WRONG_IN, weights[a["id"]], strict=True)))
        result.append(a)
    return _with_annotations(audit, result)


def corrected_json(audit: Audit) -> str:
    """The annotation file again, corrected: each object with its likeliest class, with another box
    where its own is more likely wrong than right, and with annotations for missing objects that
    are more likely there than not. A class counts as much as it is likely to be right, and so does
    a box that is left as it is; duplicates do not count."""
    annotations = audit.annotations
    changed: dict[Any, dict] = {}
    for i, id_ in enumerate(annotations.ids):
        likeliest = audit.classes.probs[i].argmax()
        annotation = {
            **annotations.objects[i],
            "category_id": annotations.category_ids[likeliest],
        }
        weights = {LABEL_WEIGHT: audit.classes.probs[i, likeliest]}
        box = None
        # A mask tells where its object is better than a box, and must fit it.
        if audit.boxes.suspicion[i] > 0.5 and not annotation.get("segmentation"):
            box = _inside(audit.boxes.suggestion[i], annotations.images[annotations.image[i]])
        if box:
            annotation |= {"bbox": box, "area": round(box[2] * box[3], 2)}
        else:
            weights[BOX_WEIGHT] = 1 - audit.boxes.suspicion[i]
        if audit.duplicates[i]:
            weights[SAMPLE_WEIGHT] = 0
        changed[id_] = _reweighted(annotation, weights)
    result = [changed.get(a["id"], a) for a in annotations.content["annotations"]]
    new_ids = _new_ids(result)
    for i in np.flatnonzero(audit.missing.suspicion > 0.5):
        image = annotations.images[audit.missing.image[i]]
        if box := _inside(audit.missing.boxes[i], image):
            result.append(
                {
                    "id": next(new_ids),
                    "image_id": image["id"],
                    "category_id": annotations.category_ids[audit.missing.classes[i]],
                    "bbox": box,
                    "area": round(box[2] * box[3], 2),
                    "iscrowd": 0,
                }
            )
    return _with_annotations(audit, result)


def _reweighted(annotation: dict, weights: Mapping[str, float]) -> dict:
    """A copy in which the weights that it has are multiplied; those of 1 are left out."""
    result = dict(annotation)
    for key, weight in weights.items():
        value = round(result.get(key, 1) * float(weight), 4)
        if value != 1 or key in result:
            result[key] = value
    return result


def _rows(audit: Audit) -> list[dict[str, Any]]:
    """Every annotation of the file in its order; crowd regions, which are not examined, with a
    suspicion of 0 and no kind."""
    annotations = audit.annotations
    index = {id_: i for i, id_ in enumerate(annotations.ids)}
    others = audit.classes.probs.copy()
    others[np.arange(len(others)), annotations.classes] = -1
    suggestion = others.argmax(axis=1)
    suspicions, suspicion = audit.suspicions, audit.suspicion
    rows = []
    for a in annotations.content["annotations"]:
        row = {
            "id": a["id"],
            "image_id": a["image_id"],
            "kind": None,
            "suspicion": 0.0,
            "category_id": a["category_id"],
            "bbox": a["bbox"],
        }
        if (i := index.get(a["id"])) is not None:
            kind = KINDS[int(suspicions[i].argmax())]
            row |= {
                "kind": kind,
                "suspicion": _probability(suspicion[i]),
                "suspicions": dict(zip(KINDS, map(_probability, suspicions[i]), strict=True)),
            }
            if kind == WRONG_CLASS and len(annotations.category_ids) > 1:
                row["suggested_category_id"] = annotations.category_ids[suggestion[i]]
            elif kind == MISPLACED_BOX:
                row["suggested_bbox"] = _to_xywh(audit.boxes.suggestion[i])
            elif kind == DUPLICATE:
                row["duplicate_of"] = annotations.ids[audit.earlier[i]]
        rows.append(row)
    return rows


def _missing_rows(audit: Audit) -> list[dict[str, Any]]:
    """The missing objects, the likeliest first."""
    annotations, missing = audit.annotations, audit.missing
    return [
        {
            "image_id": annotations.images[missing.image[i]]["id"],
            "bbox": _to_xywh(missing.boxes[i]),
            "category_id": annotations.category_ids[missing.classes[i]],
            "suspicion": _probability(missing.suspicion[i]),
        }
        for i in np.argsort(-missing.suspicion, kind="stable")
    ]


def _with_annotations(audit: Audit, annotations: list[dict]) -> str:
    content = audit.annotations.content
    info = {**(content.get("info") or {}), AUDITED: True}
    content = {**content, "info": info, "annotations": annotations}
    return json.dumps(content, separators=(",", ":"))


def _new_ids(annotations: list[dict]) -> Iterator[int]:
    """Ids after the largest.

    Raises:
        UserError: ids are no numbers; when the first is asked for.
    """
    ids = [a["id"] for a in annotations]
    if not all(isinstance(id_, int) for id_ in ids):
        raise UserError(
            "annotations for missing objects need ids, but those of the file are no numbers to "
            "count on from; number its annotations."
        )
    yield from itertools.count(max(ids, default=0) + 1)


def _probability(value: float) -> float:
    return float(f"{value:.5g}")


def _to_xywh(box: np.ndarray) -> list[float]:
    x0, y0, x1, y1 = (float(side) for side in box)
    return [round(x0, 2), round(y0, 2), round(x1 - x0, 2), round(y1 - y0, 2)]


def _inside(box: np.ndarray, image: dict) -> list[float] | None:
    """x, y, width, height of what of a box is in its picture; None if that is nothing."""
    limits = [image["width"], image["height"]] * 2
    result = _to_xywh(np.clip(box, 0, limits))
    return result if min(result[2:]) > 0 else None
