"""An audit that was made earlier: whether it is the one that would be made now, and can be used."""

import contextlib
import hashlib
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from .. import __version__
from ..errors import UserError
from ..files import check_is_file, read_json
from .annotations import Annotations
from .audit import KINDS

__all__ = ["FORMAT", "VERSION", "check_audit", "find_audit", "is_audit", "made_of"]

#: What an ``audit.json`` says of itself.
FORMAT, VERSION = "swn_d2 audit", 1

#: Of how annotations are judged, as docs/audit.md has it. It is raised where that changes.
_METHOD = 8

_ANEW = "replace it with --overwrite, or give another folder with --output."

#: What "made_of" has, in words.
_NAMES = {
    "annotations": "the annotations",
    "weights": "the weights",
    "start_weights": "the weights that the training started from",
    "config": "the config (INPUT, MODEL or TEST)",
    "quick": "--quick or --no-quick",
    "before_training": "--before-training",
    "method": "how this version of swn_d2 judges",
    "swn_d2": "the version of swn_d2",
}


def made_of(
    cfg: CfgNode,
    annotations: Annotations,
    start_weights: str,
    *,
    quick: bool,
    before_training: bool,
) -> dict[str, Any]:
    """What decides what an audit says, but for the pictures, which are taken to be the same.

    Args:
        cfg: with the weights that judge in ``MODEL.WEIGHTS``.
        start_weights: as :func:`.audit.audit_run` takes them.
        quick: whether no localiser judges.
        before_training: whether no trained detector judges.
    """
    cfg = cfg.clone()
    weights, cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = cfg.MODEL.WEIGHTS, "", ""
    config = "".join(cfg[section].dump() for section in ("INPUT", "MODEL", "TEST"))
    return {
        "annotations": _sha256(str(annotations.file)),
        "weights": _sha256(weights),
        "start_weights": _sha256(start_weights),
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "quick": quick,
        "before_training": before_training,
        "method": _METHOD,
        "swn_d2": __version__,
    }


def find_audit(
    files: Sequence[Path], annotations: Annotations, now: Mapping[str, Any]
) -> dict | None:
    """The content of an ``audit.json`` that is there; None if there is nothing.

    Args:
        files: ``audit.json``, ``audit.csv`` and ``audit.html``, of which the last may be missing.
        now: what an audit would be made of now; see :func:`made_of`. What is left out of it may be
            anything.

    Raises:
        UserError: not all are there, or they are of an audit of something else, or can't be
            read.
    """
    there = [file for file in files if os.path.exists(file)]
    if not there:
        return None
    if not set(files[:2]) <= set(there):
        raise UserError(f"{there[0]} exists already, but not the rest of an audit; {_ANEW}")
    content = read_json(files[0])
    before = content.get("made_of") if isinstance(content, dict) else None
    if not isinstance(before, dict):
        raise UserError(f"{files[0]} exists already, and does not say what it is made of; {_ANEW}")
    if others := [key for key, value in now.items() if before.get(key) != value]:
        raise UserError(
            f"{files[0]} exists already, and is an audit of something else, which differs in "
            f"{', '.join(_NAMES[key] for key in others)}; {_ANEW}"
        )
    check_audit(content, annotations)
    return content


def is_audit(content: object) -> bool:
    """Whether this is the content of an ``audit.json``."""
    if not isinstance(content, dict):
        return False
    return (content.get("format"), content.get("version")) == (FORMAT, VERSION)


def check_audit(content: object, annotations: Annotations) -> None:
    """Check what is written from the content of an ``audit.json``, which a person may have changed.

    Raises:
        UserError: it is no audit, or one of other annotations; a probability is not from 0 to 1;
            or something is missing, or of the wrong type.
    """
    if not is_audit(content):
        raise UserError(f"audit.json is no audit of version {VERSION}; audit again.")
    try:
        rows = {row["id"]: row for row in content["annotations"]}
        ids = {a["id"] for a in annotations.content["annotations"]}
        if others := len(ids ^ rows.keys()):
            raise UserError(
                f"audit.json is of other annotations: {others} ids are either in it or in "
                f"{annotations.file}, and not in both. Leave all annotations in it, or audit again."
            )
        examined = [rows[id_] for id_ in annotations.ids]
        for what, value in _probabilities(examined, content["missing"]):
            if not (isinstance(value, int | float) and 0 <= value <= 1):
                raise UserError(
                    f"audit.json has {value!r} as {what}; make it a number from 0 to 1."
                )
        is_whole = _is_whole(content, annotations)
    except (AttributeError, KeyError, OverflowError, TypeError):
        is_whole = False
    if not is_whole:
        raise UserError("audit.json is damaged, or was changed too much; audit again.")


def _probabilities(examined: list[dict], missing: list[dict]) -> Iterator[tuple[str, Any]]:
    for row in examined:
        for kind in KINDS:
            yield f"the suspicion of a {kind}, annotation {row['id']}", row["suspicions"][kind]
        yield f"the likeliest class's, annotation {row['id']}", row["likeliest"]["probability"]
    for row in missing:
        yield f"the suspicion of a missing object, picture {row['image_id']}", row["suspicion"]


def _is_whole(content: dict, annotations: Annotations) -> bool:
    """Whether the pictures and categories exist, and the other numbers are finite."""
    images = {image["id"] for image in annotations.images}
    missing = content["missing"]
    things = [row["likeliest"] for row in content["annotations"] if "likeliest" in row] + missing
    categories = {thing["category_id"] for thing in things + content["annotations"]}
    boxes = [thing["bbox"] for thing in things if "bbox" in thing]
    boxes += [row["bbox"] for row in missing]
    estimates = [[e["value"], e["low"], e["high"]] for e in content["expected"].values()]
    kinds = {row["kind"] for row in content["annotations"]}
    return (
        kinds.issubset((*KINDS, None))
        and categories.issubset(annotations.category_ids)
        and images.issuperset(row["image_id"] for row in missing)
        and all(len(box) == 4 for box in boxes)
        and all(map(math.isfinite, itertools.chain(*boxes, *estimates)))
    )


def _sha256(file: str) -> str:
    """64 hexadecimal digits; none if there is no such file."""
    check_is_file(file)
    digest = hashlib.sha256()
    with contextlib.suppress(OSError, RuntimeError):  # whoever loads it has a sentence for that
        with PathManager.open(file, "rb") as stream:
            while part := stream.read(1 << 20):
                digest.update(part)
        return digest.hexdigest()
    return ""
