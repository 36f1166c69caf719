"""The audit as files for other programs: JSON, CSV, and annotations to train on."""

import csv
import hashlib
import io
import itertools
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from ..data.sample_weights import BOX_WEIGHT, LABEL_WEIGHT, MASK_WEIGHT, SAMPLE_WEIGHT
from .annotations import Annotations, to_xywh, to_xyxy
from .audit import DUPLICATE, KINDS, MISPLACED_BOX, MISSING_OBJECT, WRONG_CLASS, Audit
from .decisions import DECIDED, DECISION
from .earlier import FORMAT, VERSION, check_audit

__all__ = ["corrected_json", "is_as_written", "to_csv", "to_json", "weighted_json"]

# The key of "info" in the annotation files that are written here, with a digest of all the rest.
_AUDITED = "audited"

#: For each of KINDS, which weight of an annotation goes with what it makes wrong: where a class is
#: wrong, there is an object all the same, and it is where the box is.
_WRONG_IN = (LABEL_WEIGHT, BOX_WEIGHT, SAMPLE_WEIGHT)

#: How far rounding may have moved two probabilities of an ``audit.json`` towards each other.
_ROUNDING = 1e-5

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
    DECISION,  # empty, for a person to fill in
)


def to_json(audit: Audit, *, run: str, made_of: Mapping[str, Any]) -> str:
    """The text of ``audit.json``; docs/audit.md describes it.

    Args:
        run: the name of what has judged.
        made_of: see :func:`.earlier.made_of`.
    """
    expected = {
        kind: {name: round(value, 1) for name, value in e._asdict().items()}
        for kind, e in audit.expected.items()
    }
    content = {
        "format": FORMAT,
        "version": VERSION,
        "run": run,
        "annotation_file": audit.annotations.file.name,
        "made_of": dict(made_of),
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
        row |= {key: _quoted(value) for key, value in row.items() if isinstance(value, str)}
        row |= {kind.replace(" ", "_"): s for kind, s in row.get("suspicions", {}).items()}
        for box in ("bbox", "suggested_bbox"):
            row[box] = " ".join(map(str, row.get(box, [])))
        writer.writerow([row.get(column, "") for column in _COLUMNS])
    return stream.getvalue()


def weighted_json(
    annotations: Annotations,
    content: dict,
    *,
    drop: int | None = None,
    kinds: Collection[str] = KINDS,
) -> str:
    """The annotation file again, with what each annotation is to count: each kind of error takes
    the weight from what it makes wrong (:data:`_WRONG_IN`), and from nothing else.

    Args:
        content: of the ``audit.json`` of these annotations.
        drop: if given, so many of the most suspicious lose all of that weight, and the others
            nothing; else each loses as much as it is likely to be wrong. What a person has decided
            comes first.
        kinds: of error, for which annotations are dropped; what a person has decided is of any.

    Raises:
        UserError: see :func:`~.earlier.check_audit`.
    """
    examined = _examined(annotations, content)
    suspicions = np.array(
        [[row["suspicions"][kind] for kind in KINDS] for row in examined.values()]
    ).reshape(-1, len(KINDS))
    if drop is not None:
        is_decided = np.array([DECIDED in row for row in examined.values()], dtype=bool)
        suspicions = suspicions * (np.isin(KINDS, list(kinds)) | is_decided[:, None])
        worst, largest = suspicions.argmax(axis=1), suspicions.max(axis=1, initial=0)
        wrong = is_decided & (largest > 0)
        # What a person calls wrong is among them, however many that are; what nobody suspects is
        # not.
        order = np.argsort(-np.where(wrong, 2, largest), kind="stable")
        dropped = order[largest[order] > 0][: max(drop, wrong.sum())]
        suspicions = np.zeros_like(suspicions)
        suspicions[dropped, worst[dropped]] = 1
    weights = dict(zip(examined, 1 - suspicions, strict=True))
    result = []
    for a in annotations.content["annotations"]:
        if a["id"] in weights:
            a = _reweighted(a, dict(zip(_WRONG_IN, weights[a["id"]], strict=True)))
        result.append(a)
    return _with_annotations(annotations, result)


def corrected_json(annotations: Annotations, content: dict) -> str:
    """The annotation file again, corrected: each object with its likeliest class, with another box
    where its own is more likely wrong than right, and with annotations for missing objects that
    are more likely there than not. A class counts as much as it is likely to be right, and so does
    a box that is left as it is; duplicates do not count.

    Args:
        content: of the ``audit.json`` of these annotations.

    Raises:
        UserError: see :func:`~.earlier.check_audit`.
    """
    examined = _examined(annotations, content)
    images = {image["id"]: image for image in annotations.images}
    result = []
    for a in annotations.content["annotations"]:
        if a["id"] in examined:
            a = _corrected(a, examined[a["id"]], images[a["image_id"]])
        result.append(a)
    new_ids = _new_ids(result)
    objects = [a for a in result if a["id"] in examined]
    have_masks = any(a.get("segmentation") for a in objects)
    num_keypoints = max((len(a.get("keypoints") or ()) for a in objects), default=0)
    for row in content["missing"]:
        box = _inside(row["bbox"], images[row["image_id"]])
        if row["suspicion"] > 0.5 and box:
            found = {
                "id": next(new_ids),
                "image_id": row["image_id"],
                "category_id": row["category_id"],
                "bbox": box,
                "area": round(box[2] * box[3], 2),
                "iscrowd": 0,
            }
            if have_masks:
                # Without a mask nothing could be trained on the file; nobody is to learn this one.
                found |= {"segmentation": [_corners(box)], MASK_WEIGHT: 0}
            if num_keypoints:  # likewise; none of them is labelled
                found |= {"keypoints": [0] * num_keypoints, "num_keypoints": 0}
            result.append(found)
    return _with_annotations(annotations, result)


def _corrected(annotation: dict, row: dict, image: dict) -> dict:
    """An annotation as its row of an audit says that it should be."""
    suspicions, likeliest = row["suspicions"], row["likeliest"]
    weights = {LABEL_WEIGHT: 1 - suspicions[WRONG_CLASS]}
    is_other = likeliest["category_id"] != annotation["category_id"]
    if is_other and likeliest["probability"] + _ROUNDING >= weights[LABEL_WEIGHT]:
        annotation = {**annotation, "category_id": likeliest["category_id"]}
        weights[LABEL_WEIGHT] = likeliest["probability"]
    can_move = "bbox" in likeliest and suspicions[MISPLACED_BOX] > 0.5
    # A mask tells where its object is better than a box, and must fit it.
    if can_move and not annotation.get("segmentation"):
        box = _inside(likeliest["bbox"], image)
    else:
        box = None
    if box:
        annotation = {**annotation, "bbox": box, "area": round(box[2] * box[3], 2)}
    else:
        weights[BOX_WEIGHT] = 1 - suspicions[MISPLACED_BOX]
    if suspicions[DUPLICATE] > 0.5:
        weights[SAMPLE_WEIGHT] = 0
    return _reweighted(annotation, weights)


def _examined(annotations: Annotations, content: dict) -> dict[Any, dict]:
    """Id -> row of the audit, for the annotations that were examined, in their order."""
    check_audit(content, annotations)
    rows = {row["id"]: row for row in content["annotations"]}
    return {id_: rows[id_] for id_ in annotations.ids}


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
    suggestion, likeliest = others.argmax(axis=1), audit.classes.probs.argmax(axis=1)
    boxes_are_judged = audit.localised or not audit.before_training
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
                "likeliest": {
                    "category_id": annotations.category_ids[likeliest[i]],
                    "probability": _probability(audit.classes.probs[i, likeliest[i]]),
                },
            }
            if boxes_are_judged:
                row["likeliest"]["bbox"] = to_xywh(audit.boxes.suggestion[i])
            if kind == WRONG_CLASS and suspicion[i] > 0 and len(annotations.category_ids) > 1:
                row["suggested_category_id"] = annotations.category_ids[suggestion[i]]
            elif kind == MISPLACED_BOX and min(a["bbox"][2:]) > 0:  # else nobody knows
                row["suggested_bbox"] = to_xywh(audit.boxes.suggestion[i])
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
            "bbox": to_xywh(missing.boxes[i]),
            "category_id": annotations.category_ids[missing.classes[i]],
            "suspicion": _probability(missing.suspicion[i]),
        }
        for i in np.argsort(-missing.suspicion, kind="stable")
    ]


def _with_annotations(annotations: Annotations, changed: list[dict]) -> str:
    content = {**annotations.content, "annotations": changed}
    content["info"] = {**(content.get("info") or {}), _AUDITED: _digest(content)}
    return json.dumps(content, separators=(",", ":"))


def is_as_written(content: object) -> bool:
    """Whether the content of an annotation file is what an audit has written, and nobody has
    changed it since."""
    info = content.get("info") if isinstance(content, dict) else None
    return isinstance(info, dict) and info.get(_AUDITED) == _digest(content)


def _digest(content: dict) -> str:
    rest = {key: value for key, value in content.items() if key != "info"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _new_ids(annotations: list[dict]) -> Iterator[int] | Iterator[str]:
    """Ids after the largest; words where not all that there are are whole numbers."""
    ids = {a["id"] for a in annotations}
    if all(isinstance(id_, int) for id_ in ids):
        return itertools.count(max(ids, default=0) + 1)
    words = (f"missing-{number}" for number in itertools.count(1))
    return (word for word in words if word not in ids)


def _quoted(text: str) -> str:
    """A text that no spreadsheet takes for a formula, by a quote before what may be one."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def _probability(value: float) -> float:
    return float(f"{value:.5g}")


def _corners(bbox: list[float]) -> list[float]:
    """Of a box, x, y, width, height, the polygon."""
    x, y, width, height = bbox
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def _inside(bbox: list[float], image: dict) -> list[float] | None:
    """What of a box is in its picture, both x, y, width, height; None if that is nothing."""
    limits = [image["width"], image["height"]] * 2
    result = to_xywh(np.clip(to_xyxy([bbox])[0], 0, limits))
    return result if min(result[2:]) > 0 else None
