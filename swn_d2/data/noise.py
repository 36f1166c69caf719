"""Noise in the annotations of any COCO-format data set, with the truth beside it.

Three kinds: the class of an object is wrong, the sides of its box are moved, or its annotation is
missing. Crowd regions are never touched.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from swn_d2.errors import UserError
from swn_d2.files import check_outputs, write_new

from .checks.coco import read_coco
from .sample_weights import SAMPLE_WEIGHT

__all__ = [
    "JITTERED_BOX",
    "KINDS",
    "MISSING_OBJECT",
    "NOISE",
    "WRONG_CLASS",
    "AddedNoise",
    "add_noise",
    "jitter",
    "truth_file",
]

WRONG_CLASS, JITTERED_BOX, MISSING_OBJECT = "wrong class", "jittered box", "missing object"
KINDS = (WRONG_CLASS, JITTERED_BOX, MISSING_OBJECT)  # another order would draw other noise
#: The key of an annotation in the truth file, and of "info" in the noisy files.
NOISE = "noise"


class AddedNoise(NamedTuple):
    """What :func:`add_noise` did.

    Attributes:
        num_objects: annotations that are no crowd regions.
        num_changed: kind -> how many of them have such noise, for the kinds that were asked for.
        files: that hold it, the noisy one first.
    """

    num_objects: int
    num_changed: dict[str, int]
    files: list[Path]


class _Noisy(NamedTuple):
    """What became of an annotation."""

    annotation: dict | None  # None: it is missing
    kinds: list[str]  # of its noise


def add_noise(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    shares: Mapping[str, float],
    amount: float = 0.2,
    seed: int = 0,
    truth: str | os.PathLike | None = None,
    left_out: str | os.PathLike | None = None,
) -> AddedNoise:
    """Write a noisy copy of an annotation file, and the truth.

    The noise of an annotation depends on the seed and its id, not on the other annotations, and
    the same request gives the same files, byte for byte. What is noisy at a small share is noisy
    in the same way at a larger share of the same kind. The kinds are drawn independently; but an
    object that is missing has no other noise.

    Args:
        source: an annotation file in COCO's instances format.
        destination: gets the noisy annotations, which have no trace of the noise; only ``info``
            has a new entry ``noise``, with the request and the numbers of objects.
        shares: kind, one of ``KINDS``, -> probability in [0, 1] that an object has such noise.
        amount: each side of a jittered box moves by up to this share of the box's width or
            height, in (0, 0.5).
        seed: non-negative integer.
        truth: gets the annotations of ``source``, each but crowd regions with the list of its
            kinds of noise as ``noise``; by default :func:`truth_file` of ``destination``.
        left_out: if given, gets the noisy annotations, those with noise with a ``sample_weight``
            of 0.

    Raises:
        UserError: an argument is out of range, ``source`` can't be trained on or has noise
            already, or a file can't be written, or exists and is not, byte for byte, what would
            be written. No file is written then.
    """
    _check_request(shares, amount, seed)
    source, destination = Path(source), Path(destination)
    truth = truth_file(destination) if truth is None else Path(truth)
    files = [destination, truth] + ([] if left_out is None else [Path(left_out)])
    check_outputs(source, files)
    content = read_coco(str(source))
    _check_content(source, content, shares)

    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    class_ids = sorted((category["id"] for category in content["categories"]), key=str)
    noisy = [
        _Noisy(a, [])
        if _is_crowd(a)
        else _add_to(a, sizes[a["image_id"]], class_ids, shares, amount, seed)
        for a in content["annotations"]
    ]
    counts = Counter(kind for _, kinds in noisy for kind in kinds)
    num_objects = sum(not _is_crowd(a) for a in content["annotations"])
    num_changed = {kind: counts[kind] for kind in KINDS if kind in shares}
    record = {kind: {"share": float(shares[kind]), "changed": n} for kind, n in num_changed.items()}
    if JITTERED_BOX in record:
        record[JITTERED_BOX]["amount"] = float(amount)
    contents = _contents(content, noisy, {**record, "objects": num_objects, "seed": seed})
    texts = [json.dumps(content, separators=(",", ":")) for content in contents]
    write_new(dict(zip(files, texts, strict=False)))  # `left_out` may be not asked for
    return AddedNoise(num_objects, num_changed, files)


def truth_file(destination: str | os.PathLike) -> Path:
    """Where :func:`add_noise` writes the truth by default: ``noisy.truth.json`` for ``noisy.json``,
    in the same folder."""
    return Path(str(destination).removesuffix(".json") + ".truth.json")


def jitter(
    rng: np.random.Generator, box: list[float], amount: float, size: tuple[float, float]
) -> list[float]:
    """A box with every side moved on its own; always consumes the same random numbers.

    Args:
        rng: draws the moves.
        box: x, y, width, height in pixels.
        amount: each side moves by a uniform share of the box's width or height in ±``amount``.
        size: width and height of the image, to which the box is clipped.

    Returns:
        x, y, width, height, rounded to hundredths of a pixel.
    """
    x, y, width, height = box
    moves = rng.uniform(-amount, amount, size=4) * np.array([width, height] * 2)
    moved = np.array([x, y, x + width, y + height]) + moves
    x0, y0, x1, y1 = np.clip(moved, 0, [*size, *size]).round(2).tolist()
    return [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]


def _check_request(shares: Mapping[str, float], amount: float, seed: int) -> None:
    if not shares:
        raise UserError(
            "No noise is asked for; give the share of wrong classes, jittered boxes or missing "
            "objects."
        )
    for kind, share in shares.items():
        if kind not in KINDS:
            raise UserError(f"There is no noise {kind!r}; the kinds are {', '.join(KINDS)}.")
        if not 0 <= share <= 1:  # NaN, too
            raise UserError(f'The share of noise "{kind}" must be in [0, 1], not {share}.')
    if not 0 < amount < 0.5:  # at 0.5 two opposite sides could meet
        raise UserError(f"The amount of jitter must be in (0, 0.5), not {amount}.")
    if seed < 0:
        raise UserError(f"The seed must not be negative, but is {seed}.")


def _check_content(file: Path, content: dict, shares: Mapping[str, float]) -> None:
    info = content.get("info") or {}
    if not isinstance(info, dict):
        raise UserError(f'{file} is not in COCO format: "info" is not an object.')
    # With it the noise could be told from the noisy file, or the truth would not be true.
    if NOISE in info or any(NOISE in a for a in content["annotations"]):
        raise UserError(
            f'{file} has a "{NOISE}" in "info" or in annotations, as a file made here has; give '
            "the file that it was made from, or rename the key."
        )
    if WRONG_CLASS in shares and len(content["categories"]) < 2:
        raise UserError(
            f"{file} has a single category, so that no class can be wrong; leave out the wrong "
            "classes."
        )


def _is_crowd(annotation: dict) -> bool:
    return bool(annotation.get("iscrowd", 0))


def _add_to(
    annotation: dict,
    size: tuple[float, float],
    class_ids: list,
    shares: Mapping[str, float],
    amount: float,
    seed: int,
) -> _Noisy:
    # Whether it is chosen is drawn first, so that a larger share chooses the same and more.
    generators = {
        kind: rng
        for kind, share in shares.items()
        if (rng := _generator(seed, annotation["id"], kind)).random() < share
    }
    if MISSING_OBJECT in generators:
        return _Noisy(None, [MISSING_OBJECT])
    changes = {}
    if WRONG_CLASS in generators:
        other = generators[WRONG_CLASS].integers(len(class_ids) - 1)
        other += other >= class_ids.index(annotation["category_id"])  # its own is passed over
        changes[WRONG_CLASS] = {"category_id": class_ids[other]}
    if JITTERED_BOX in generators:
        before = annotation["bbox"]
        box = jitter(generators[JITTERED_BOX], before, amount, size)
        # Of a box without area, or of a hundredth of a pixel inside the image, nothing is left.
        if box != before and min(box[2:]) > 0:
            changes[JITTERED_BOX] = {"bbox": box, **_new_area(annotation, box)}
    for change in changes.values():
        annotation = {**annotation, **change}
    return _Noisy(annotation, list(changes))


def _generator(seed: int, annotation_id: object, kind: str) -> np.random.Generator:
    # Ids may be texts, and a generator wants whole numbers.
    digest = hashlib.sha256(json.dumps(annotation_id).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big"), KINDS.index(kind)])


def _new_area(annotation: dict, box: list[float]) -> dict:
    """The change of ``area`` with that of the box; none where the mask, which stays, tells it."""
    area = annotation.get("area")
    if annotation.get("segmentation") or not isinstance(area, (int, float)):
        return {}
    _, _, width, height = annotation["bbox"]
    return {"area": round(area * (box[2] * box[3]) / (width * height), 2)}


def _contents(content: dict, noisy: list[_Noisy], record: dict) -> list[dict]:
    """Of the noisy file, the truth, and the file in which noisy objects have no weight."""
    info = {**(content.get("info") or {}), NOISE: record}
    kept = [n for n in noisy if n.annotation is not None]
    truth = [
        a if _is_crowd(a) else {**a, NOISE: n.kinds}
        for a, n in zip(content["annotations"], noisy, strict=True)
    ]
    return [
        {**content, "info": info, "annotations": [n.annotation for n in kept]},
        {**content, "annotations": truth},
        {**content, "info": info, "annotations": [_weighted(n) for n in kept]},
    ]


def _weighted(noisy: _Noisy) -> dict:
    return {**noisy.annotation, SAMPLE_WEIGHT: 0.0} if noisy.kinds else noisy.annotation
