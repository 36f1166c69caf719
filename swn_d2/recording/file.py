"""The file of a recording: statistics and weights of some samples of a training, as JSON lines.

docs/analysis.md describes the format for those who read it with other tools.
"""

import base64
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError

__all__ = ["RECORDING", "REASONS", "Crop", "Record", "append_records", "read_recording"]

#: The file's name in the run's folder.
RECORDING = "samples.jsonl"

#: Why a sample's picture is kept: the panels (a), (b) and (c) of Figure 1 of the paper.
REASONS = ("hard_but_light", "easy_but_heavy", "mismatch")

_HEADER = {"format": "swn_d2 samples", "version": 1}


@dataclass(frozen=True)
class Crop:
    """A positive sample with its picture, as the detector was shown it.

    Attributes:
        reason: one of :data:`REASONS`.
        image: file name of the image that it is of.
        gt_class: its class, a contiguous id.
        box, gt_box: the predicted box and the object's, XYXY in pixels of the picture.
        stats: its statistics (``cls_loss``, ``box_loss``, ``iou``, ``prob``, ``score``, ...) and
            its weights (``cls_weight``, ``box_weight``, ...).
        jpeg: the picture.
    """

    reason: str
    image: str
    gt_class: int
    box: tuple[float, float, float, float]
    gt_box: tuple[float, float, float, float]
    stats: Mapping[str, float]
    jpeg: bytes


@dataclass(frozen=True)
class Record:
    """Some of the samples of one iteration, chosen at random.

    Attributes:
        iteration: counted from 0.
        stage: "stage0", ... in a cascade, else "".
        num_positives, num_negatives: all samples of the iteration, on the main process.
        positives: column -> (n,) float32: the statistics ``cls_loss``, ``box_loss`` (summed over
            its columns), ``mask_loss`` (of a detector with masks), ``iou``, ``prob``;
            ``label_loss``, the part of the classification loss that asks which class; ``gt_class``;
            ``cls_weight``, ``label_weight``, ``box_weight``, ``mask_weight``, what the losses are
            multiplied by; and ``cls_learned``, ..., the weights as a network predicted them, if it
            is not these.
        negatives: the same with ``cls_loss``, ``cls_weight`` and ``cls_learned``.
        crops: pictures of the most extreme of all positives.
    """

    iteration: int
    stage: str
    num_positives: int
    num_negatives: int
    positives: Mapping[str, np.ndarray]
    negatives: Mapping[str, np.ndarray]
    crops: tuple[Crop, ...] = field(default=())


def append_records(file: Path, records: Iterable[Record]) -> None:
    """Add records to a recording, which is begun if it does not exist.

    A crash can at worst cut the last line short, which the reader then leaves out.
    """
    with open(file, "ab+") as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            stream.write(_line(_HEADER))
        else:
            stream.seek(-1, os.SEEK_END)
            if stream.read() != b"\n":  # the writer before was killed within a line
                stream.write(b"\n")
        stream.write(b"".join(_line(_as_json(record)) for record in records))


def read_recording(file: Path) -> list[Record]:
    """The records of a run, in the order of its iterations.

    A run that was resumed does some iterations twice: only the later records are returned.

    Raises:
        UserError: there is no such file, or it is of another format or version.
    """
    try:
        lines = Path(file).read_bytes().splitlines()
    except OSError as error:
        raise UserError(
            f"cannot read the recording {file} ({error.strerror}); a training writes it where "
            "RECORDING.PERIOD is greater than 0 and the detector is one of swn_d2's, which "
            "MODEL.SAMPLE_WEIGHTER.NAME Uniform makes a baseline."
        ) from error
    entries = [entry for entry in map(_parse, lines) if entry is not None]
    header = entries[0] if entries else {}
    if header.get("format") != _HEADER["format"]:
        raise UserError(f"{file} is not a recording of swn_d2; its first line does not say so.")
    if header.get("version") != _HEADER["version"]:
        raise UserError(
            f"{file} is of version {header.get('version')}, and this swn_d2 reads version "
            f"{_HEADER['version']}; read it with the swn_d2 that wrote it."
        )
    records: list[Record] = []
    for entry in entries:
        if "iteration" not in entry:
            continue
        try:
            record = _from_json(entry)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{file} has a record of iteration {entry['iteration']} that can't be read "
                f"({error!r}); delete that line."
            ) from error
        if records and _place(record) <= _place(records[-1]):
            records = [r for r in records if r.iteration < record.iteration]
        records.append(record)
    return records


def _place(record: Record) -> tuple[int, str]:
    return record.iteration, record.stage


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _as_json(record: Record) -> dict[str, Any]:
    entry = {**vars(record), "crops": [dict(vars(crop)) for crop in record.crops]}
    for group in ("positives", "negatives"):
        entry[group] = {name: _rounded(values) for name, values in entry[group].items()}
    for crop in entry["crops"]:
        crop["jpeg"] = base64.b64encode(crop["jpeg"]).decode()
        for box in ("box", "gt_box"):
            crop[box] = [round(float(x), 1) for x in crop[box]]
        names, values = zip(*crop["stats"].items(), strict=True)
        crop["stats"] = dict(zip(names, _rounded(values), strict=True))
    return entry


def _rounded(values: Iterable[float]) -> list[float]:
    # Four digits are more than a figure shows, and make lines half as long.
    return [float(f"{value:.4g}") for value in values]


def _from_json(entry: dict[str, Any]) -> Record:
    def columns(group: str) -> dict[str, np.ndarray]:
        return {k: np.asarray(v, dtype=np.float32) for k, v in entry[group].items()}

    return Record(
        iteration=int(entry["iteration"]),
        stage=entry["stage"],
        num_positives=int(entry["num_positives"]),
        num_negatives=int(entry["num_negatives"]),
        positives=columns("positives"),
        negatives=columns("negatives"),
        crops=tuple(
            Crop(
                reason=crop["reason"],
                image=crop["image"],
                gt_class=int(crop["gt_class"]),
                box=tuple(crop["box"]),
                gt_box=tuple(crop["gt_box"]),
                stats=crop["stats"],
                jpeg=base64.b64decode(crop["jpeg"]),
            )
            for crop in entry["crops"]
        ),
    )
