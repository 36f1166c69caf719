"""The samples of many records together, as the figures take them."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from ..errors import UserError
from ..recording import Record
from .run_folder import RunFolder

__all__ = [
    "EARLY",
    "LATE",
    "LOSS_NAMES",
    "WEIGHTS_OF",
    "able",
    "part",
    "pooled",
    "recording_of",
    "row_title",
    "stage_name",
    "stages_of",
]

_Needed = TypeVar("_Needed")

#: Parts of a training in percent: after its warm-up, and at its end.
EARLY, LATE = (10, 20), (90, 100)

#: Task -> the weights in its loss.
WEIGHTS_OF = {"cls": ("cls", "label"), "box": ("box",), "mask": ("mask",)}

#: Weights -> what the loss is called that they are of.
LOSS_NAMES = {"cls": "classification", "label": "label", "box": "box", "mask": "mask"}


def able(
    runs: Iterable[RunFolder], get: Callable[[RunFolder], _Needed]
) -> list[tuple[RunFolder, _Needed]]:
    """The runs that have what a figure needs, with it; the others are left out of the figure.

    Args:
        get: what it needs of a run; raises a UserError that says what is missing.

    Raises:
        UserError: no run has it; that of the first run.
    """
    found, reasons = [], []
    for run in runs:
        try:
            found.append((run, get(run)))
        except UserError as error:
            reasons.append(error)
    if not found:
        raise reasons[0]
    return found


def recording_of(run: RunFolder) -> list[Record]:
    """The run's records.

    Raises:
        UserError: it has none.
    """
    if not run.recording:
        raise UserError(run.problem("recording"))
    return run.recording


def stages_of(records: Iterable[Record]) -> list[str]:
    """The stages of the detector, [""] if it has none."""
    return sorted({record.stage for record in records})


def part(records: Sequence[Record], stage: str, percent: tuple[int, int]) -> list[Record]:
    """Of the records of a stage those of a part of the training.

    Args:
        percent: where the part begins and ends, in percent of the records. It has one record at
            least, if there is any.
    """
    of_stage = [record for record in records if record.stage == stage]
    first, end = (share * len(of_stage) // 100 for share in percent)
    return of_stage[first : max(end, first + 1)]


def pooled(records: Iterable[Record], column: str, group: str = "positives") -> np.ndarray:
    """(n,) a column of all samples of the records, empty if it is not recorded.

    Args:
        group: "positives" or "negatives".
    """
    values = [getattr(record, group).get(column, ()) for record in records]
    return np.concatenate([np.zeros(0, dtype=np.float32), *values])


def row_title(*words: str) -> str:
    """What a row of panels is of: its run, stage, task, as far as there is a choice."""
    return ", ".join(word for word in words if word)


def stage_name(stage: str) -> str:
    """ "stage0" -> "stage 0"."""
    return stage.replace("stage", "stage ")
