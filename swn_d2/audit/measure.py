"""How good an audit is, where the truth is known."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou

from ..data import noise
from ..errors import UserError
from ..files import read_json
from .annotations import to_xyxy
from .audit import DUPLICATE, KINDS, MISPLACED_BOX, WRONG_CLASS
from .earlier import VERSION, is_audit

__all__ = ["Measured", "measure_annotations", "measure_missing", "read_audit"]

_FIRST = 100
_FOUND = 0.5  # IoU
#: What an audit's kinds are in the truth.
_NOISE_OF = {WRONG_CLASS: (noise.WRONG_CLASS,), MISPLACED_BOX: (noise.JITTERED_BOX,), DUPLICATE: ()}


class Measured(NamedTuple):
    """What is found among so many, the most suspicious first.

    Attributes:
        number, wrong: how many there are, and how many of them are wrong, or missing.
        area: under the ROC curve; NaN where nothing, or everything, is wrong, and for missing
            objects.
        average_precision: the mean, over the wrong ones, of the precision down to each; 0 for one
            that is not found.
        first: how many of the first 100 are wrong.
        expected: how many the suspicions add up to.
    """

    number: int
    wrong: int
    area: float
    average_precision: float
    first: int
    expected: float


def read_audit(file: Path, truth: Path) -> tuple[dict, list[dict]]:
    """An audit, and the annotations of the truth that ``tools/add_noise.py`` wrote beside the
    annotations that were audited.

    Raises:
        UserError: a file can't be read, is of another kind, or they do not belong together.
    """
    audit, true = read_json(file), read_json(truth)
    if not is_audit(audit):
        raise UserError(
            f"{file} is no audit of version {VERSION}; give the audit.json of tools/audit.py."
        )
    if not (
        _are_rows(audit, "annotations", _is_annotation) and _are_rows(audit, "missing", _is_box)
    ):
        raise UserError(f"{file} is damaged, or was changed; audit again.")
    is_truth = isinstance(true, dict) and _are_rows(true, "annotations", _is_true)
    annotations = true["annotations"] if is_truth else []
    if not any(noise.NOISE in a for a in annotations):
        raise UserError(
            f"{truth} does not say which annotations are noisy; give the .truth.json that "
            "tools/add_noise.py wrote."
        )
    unknown = {row["id"] for row in audit["annotations"]} - {a["id"] for a in annotations}
    if unknown:
        raise UserError(
            f"{len(unknown)} annotations of {file} are not in {truth}: it is the truth of other "
            "data."
        )
    true_of = {a["id"]: a for a in annotations}
    for row in audit["annotations"]:
        annotation = true_of[row["id"]]
        for kind, key in ((noise.WRONG_CLASS, "category_id"), (noise.JITTERED_BOX, "bbox")):
            if kind not in annotation.get(noise.NOISE, []) and row[key] != annotation[key]:
                raise UserError(
                    f"annotation {row['id']} of {file} has another {key} than in {truth}, which "
                    "does not say that it is noisy: it is the truth of other noise."
                )
    return audit, annotations


def _are_rows(content: dict, key: str, is_row: Callable[[dict], bool]) -> bool:
    try:
        return all(map(is_row, content[key]))
    except (AttributeError, KeyError, TypeError):
        return False


def _is_annotation(row: dict) -> bool:
    hash((row["id"], row["category_id"], *row["bbox"]))
    if row["kind"] is None:  # it is left out
        return True
    return all(map(math.isfinite, [row["suspicion"], *(row["suspicions"][k] for k in KINDS)]))


def _is_box(row: dict) -> bool:
    hash(row["image_id"])
    return len(row["bbox"]) == 4 and all(map(math.isfinite, [*row["bbox"], row["suspicion"]]))


def _is_true(annotation: dict) -> bool:
    hash((annotation["id"], annotation["category_id"], *annotation["bbox"]))
    of_it = annotation.get(noise.NOISE, [])
    if not isinstance(of_it, list):
        return False
    if noise.MISSING_OBJECT in of_it:
        hash(annotation["image_id"])
        return len(annotation["bbox"]) == 4 and all(map(math.isfinite, annotation["bbox"]))
    return True


def measure_annotations(audit: dict, truth: list[dict], kind: str | None = None) -> Measured:
    """Whether the wrong annotations are the suspicious ones.

    Args:
        kind: looks at the suspicion of this kind alone, and at the noise that is of it; by default
            at the largest suspicion, and at any noise.
    """
    of_kind = _NOISE_OF.get(kind, noise.KINDS)
    noisy = {a["id"] for a in truth if not set(of_kind).isdisjoint(a.get(noise.NOISE, ()))}
    rows = [row for row in audit["annotations"] if row["kind"] is not None]
    suspicion = np.array([row["suspicions"][kind] if kind else row["suspicion"] for row in rows])
    wrong = np.array([row["id"] in noisy for row in rows])
    order = np.argsort(-suspicion, kind="stable")
    return Measured(
        len(rows),
        int(wrong.sum()),
        _area(suspicion, wrong),
        _average_precision(wrong[order], int(wrong.sum())),
        int(wrong[order][:_FIRST].sum()),
        float(suspicion.sum()),
    )


def measure_missing(audit: dict, truth: list[dict]) -> Measured:
    """Whether the missing objects are found: by a box with an IoU of 0.5 or more, whatever class is
    suggested, and each only once."""
    missing: dict[object, list[list[float]]] = {}
    for annotation in truth:
        if noise.MISSING_OBJECT in annotation.get(noise.NOISE, []):
            missing.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    number = sum(map(len, missing.values()))
    rows = sorted(audit["missing"], key=lambda row: -row["suspicion"])
    found = np.zeros(len(rows), dtype=bool)
    for i, row in enumerate(rows):
        left = missing.get(row["image_id"], [])
        if not left:
            continue
        pair = (Boxes(torch.from_numpy(to_xyxy(boxes))) for boxes in ([row["bbox"]], left))
        iou = pairwise_iou(*pair)
        if iou.max() >= _FOUND:
            found[i] = True
            del left[int(iou.argmax())]
    expected = float(sum(row["suspicion"] for row in rows))
    average_precision = _average_precision(found, number)
    return Measured(
        len(rows), number, float("nan"), average_precision, int(found[:_FIRST].sum()), expected
    )


def _area(suspicion: np.ndarray, wrong: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    if wrong.all() or not wrong.any():
        return float("nan")
    return float(roc_auc_score(wrong, suspicion))


def _average_precision(hits: np.ndarray, number: int) -> float:
    """The mean precision at each of ``number`` hits; NaN if there is none to be made."""
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / number) if number else float("nan")
