"""What a person has decided after a look at an audit: the column "decision" of ``audit.csv``."""

import copy
import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_text
from .audit import KINDS, MISPLACED_BOX, MISSING_OBJECT, WRONG_CLASS

__all__ = ["DECISION", "decided", "read_decisions"]

DECISION = "decision"
#: The annotation is right; it is as suggested; it is wrong, and not as suggested either.
KEEP, CHANGE, DROP = "keep", "change", "drop"

_SEPARATORS = ",;\t"  # spreadsheets have one of their own


def read_decisions(file: Path) -> list[dict[str, str]]:
    """The rows of an ``audit.csv`` that have a decision; none where there is no such file.

    Raises:
        UserError: the file can't be read, or a decision is none.
    """
    if not os.path.exists(file):
        return []
    text = read_text(file).removeprefix("\ufeff")
    separator = max(_SEPARATORS, key=text.partition("\n")[0].count)
    rows = []
    for number, row in enumerate(csv.DictReader(io.StringIO(text), delimiter=separator), 2):
        row[DECISION] = (row.get(DECISION) or "").strip().lower()
        if not row[DECISION]:
            continue
        if row[DECISION] not in (KEEP, CHANGE, DROP):
            raise UserError(
                f"{file}, row {number}: the decision is {row[DECISION]!r}; make it {KEEP}, "
                f"{CHANGE} or {DROP}, or leave it empty."
            )
        rows.append(row)
    return rows


def decided(content: dict, decisions: Sequence[dict[str, str]]) -> dict:
    """The content of an ``audit.json`` with what has been decided: suspicions of 0 and 1.

    Args:
        content: stays as it is.
        decisions: see :func:`read_decisions`.

    Raises:
        UserError: a decision is about nothing that the audit has.
    """
    content = copy.deepcopy(content)
    annotations = {str(row["id"]): row for row in content["annotations"] if row["kind"]}
    missing = {_place(row): row for row in content["missing"]}
    for decision in decisions:
        is_missing = decision.get("kind") == MISSING_OBJECT
        row = missing.get(_place(decision)) if is_missing else annotations.get(decision.get("id"))
        if row is None:
            raise UserError(
                f"audit.csv has a decision about annotation {decision.get('id') or '(missing)'} in "
                f"picture {decision.get('image_id')}, which audit.json does not have, or has not "
                "examined; change nothing but the column of decisions."
            )
        if is_missing:
            row["suspicion"] = float(decision[DECISION] == CHANGE)
        else:
            _decide(row, decision[DECISION])
    return content


def _decide(row: dict[str, Any], decision: str) -> None:
    kind, likeliest = row["kind"], row["likeliest"]
    if decision == KEEP:
        row["suspicions"] = dict.fromkeys(KINDS, 0.0)
        likeliest |= {"category_id": row["category_id"], "probability": 1.0}
        return
    row["suspicions"][kind] = 1.0
    if kind == WRONG_CLASS and decision == CHANGE and "suggested_category_id" in row:
        likeliest |= {"category_id": row["suggested_category_id"], "probability": 1.0}
    elif kind == WRONG_CLASS:
        likeliest["category_id"] = row["category_id"]  # of which nothing is known to be better
    elif kind == MISPLACED_BOX and decision == DROP:
        likeliest.pop("bbox", None)


def _place(row: dict[str, Any]) -> tuple[str, str]:
    """What tells a missing object from others, in ``audit.json`` and in ``audit.csv`` alike."""
    bbox = row.get("bbox")
    return str(row.get("image_id")), bbox if isinstance(bbox, str) else " ".join(map(str, bbox))
