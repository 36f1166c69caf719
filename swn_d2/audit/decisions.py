"""What a person has decided after a look at an audit: the column "decision" of ``audit.csv``."""

import copy
import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_text
from .audit import KINDS, MISPLACED_BOX, MISSING_OBJECT, WRONG_CLASS

__all__ = ["DECIDED", "DECISION", "decided", "read_decisions"]

DECISION = "decision"
#: The key of a row of ``audit.json`` whose suspicions are a person's.
DECIDED = "decided"
#: The annotation is right; it is as suggested; it is wrong, and not as suggested either.
KEEP, CHANGE, DROP = "keep", "change", "drop"

_SEPARATORS = ",;\t"  # spreadsheets have one of their own
_NEEDED = ("id", "image_id", "kind", "bbox")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
_SUGGESTIONS = ("suggested_category_id", "suggested_bbox", "duplicate_of")


def read_decisions(file: Path, *, is_used: bool = True) -> list[dict[str, str]]:
    """The rows of an ``audit.csv`` that have a decision; none where there is no such file.

    Args:
        is_used: its audit is, too; so that there must be a column of decisions.

    Raises:
        UserError: the file can't be read, is no such list, or has a decision that is not one of
            the three words.
    """
    if not os.path.isfile(file):
        return []
    text = read_text(file).removeprefix("\ufeff")
    separator = max(_SEPARATORS, key=text.partition("\n")[0].count)
    # Lines may end as on any system.
    reader = csv.DictReader(io.StringIO(text, newline=None), delimiter=separator, strict=True)
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        needed = (*_NEEDED, DECISION) if is_used else _NEEDED
        if missing := [name for name in needed if name not in reader.fieldnames]:
            raise UserError(
                f"{file} has no column {missing[0]!r} in its first line; save it as CSV, with all "
                "of its columns and commas, semicolons or tabs between them."
            )
        return [row for row in reader if _has_decision(row, f"{file}, line {reader.line_num}")]
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: {error}; is a quote missing?") from error


def _has_decision(row: dict[Any, Any], where: str) -> bool:
    if any(cell.strip() for cell in row.get(None, ())):
        raise UserError(f"{where} has more cells than columns; move them to where they belong.")
    row[DECISION] = (row.get(DECISION) or "").strip().lower()
    if row[DECISION] not in ("", KEEP, CHANGE, DROP):
        raise UserError(
            f"{where}: the decision is {row[DECISION]!r}; make it {KEEP}, {CHANGE} or {DROP}, or "
            "leave it empty."
        )
    return row[DECISION] != ""


def decided(content: dict, decisions: Sequence[Mapping[str, str]]) -> dict:
    """The content of an ``audit.json`` with what has been decided: suspicions of 0 and 1.

    Args:
        content: stays as it is.
        decisions: see :func:`read_decisions`.

    Raises:
        UserError: a decision is about something that this audit does not say, or there are two
            about one thing.
    """
    content = copy.deepcopy(content)
    annotations = _Rows((row["id"], row) for row in content["annotations"] if row["kind"])
    missing = {_place(row): row for row in content["missing"]}
    words: dict[int, str] = {}
    for decision in decisions:
        is_missing = decision["kind"] == MISSING_OBJECT
        row = missing.get(_place(decision)) if is_missing else annotations.find(decision["id"])
        what = "a missing object" if is_missing else f"annotation {decision['id']}"
        what = f"{what}, picture {decision['image_id']}"
        if row is None or not (is_missing or _is_about(decision, row)):
            raise UserError(
                f"audit.csv has a decision about {what}, of which audit.json says something else; "
                "decide on the list of the same audit, and change no other column."
            )
        word = words.setdefault(id(row), decision[DECISION])
        if word != decision[DECISION]:
            raise UserError(
                f"audit.csv has two decisions about {what}: {word} and {decision[DECISION]}; leave "
                "one of them."
            )
        if is_missing:
            row["suspicion"] = float(decision[DECISION] == CHANGE)
        else:
            _decide(row, decision[DECISION])
    return content


class _Rows:
    """Rows of ``audit.json``, to be found by an id as a spreadsheet has saved it."""

    def __init__(self, rows: Iterable[tuple[Any, dict[str, Any]]]):
        self._exactly, self._plainly = {}, defaultdict(list)
        for id_, row in rows:
            self._exactly[str(id_)] = row
            self._plainly[_plain(id_)].append(row)

    def find(self, word: str) -> dict[str, Any] | None:
        """The row; None if there is none, or it can't be told which it is."""
        alike = self._plainly.get(_plain(word), [])
        return self._exactly.get(_unquoted(word)) or (alike[0] if len(alike) == 1 else None)


def _is_about(decision: Mapping[str, str], row: dict[str, Any]) -> bool:
    """Whether a decision is about what this row says: what is kept is right, whatever it says."""
    if any(_plain(decision[key]) != _plain(row[key]) for key in ("image_id", "bbox")):
        return False
    if decision[DECISION] == KEEP:
        return True
    return decision["kind"] == row["kind"] and all(
        _plain(decision.get(key) or "") == _plain(row.get(key, "")) for key in _SUGGESTIONS
    )


def _decide(row: dict[str, Any], decision: str) -> None:
    kind, likeliest = row["kind"], row["likeliest"]
    row[DECIDED] = True
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


def _place(row: Mapping[str, Any]) -> tuple:
    """What tells a missing object from others, in ``audit.json`` and in ``audit.csv`` alike."""
    return _plain(row["image_id"]), _plain(row["bbox"])


def _plain(value: Any) -> Any:
    """An id, or a box, the same however a spreadsheet has formatted it."""
    words = list(map(str, value)) if isinstance(value, list) else _unquoted(str(value)).split()
    if all(map(_NUMBER.fullmatch, words)):
        return tuple(map(Decimal, words))
    return " ".join(words)  # an id may be a word


def _unquoted(word: str) -> str:
    """A text as it was before :func:`~.files.to_csv` made it safe for spreadsheets."""
    return word.strip().removeprefix("'")
