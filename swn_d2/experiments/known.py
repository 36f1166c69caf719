"""Runs that were made elsewhere, of which no folder but only a line of a runs.csv is there."""

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..config import flat_config, load_config, section_of
from ..errors import UserError
from ..files import check_is_file
from . import records
from .matrix import Matrix, Run

__all__ = ["Known", "fingerprints", "read_known", "take_stock", "versions_text"]

#: Name of a run -> its result, as :func:`swn_d2.experiments.records.write_result` gives it, and
#: under "file" where it was read.
Known = Mapping[str, Mapping[str, Any]]


def fingerprints(matrix: Matrix) -> dict[str, str]:
    """Name of a run -> 16 hexadecimal digits that stand for all its result depends on but the
    seed, the code and the machine.

    These are the arguments of train_net.py, the environment, the commands that make the data, the
    same of the run whose checkpoint it needs, and the config. Of the config all that is not at
    its default counts, so that a key that this package gains changes nothing; of the weighter's
    own keys each counts, since their defaults are the likeliest to change.
    """
    defaults = flat_config(load_config())
    result: dict[str, str] = {}
    for run in matrix.runs:  # sources come first
        config = run.settings["config"]
        name = config.get("MODEL.SAMPLE_WEIGHTER.NAME", "")  # none in Detectron2's own detectors
        settings = {
            **run.settings,
            "config": {
                key: value
                for key, value in config.items()
                if key.startswith((section_of(name), "SOLVER.SWN.")) or value != defaults.get(key)
            },
            "source": run.source and result[run.source.name],
        }
        text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
        result[run.name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return result


def versions_text(versions: Mapping[str, str]) -> str:
    """A mapping from names to versions, as "torch 2.1, python 3.11"."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def read_known(matrix: Matrix, files: Iterable[str | Path]) -> tuple[Known, list[str]]:
    """The runs of a matrix that stand in runs.csv files, with the settings that it now has.

    Returns:
        The runs, and for each reason why lines of a file are not used a sentence that says so.

    Raises:
        UserError: a file is not one that :func:`~swn_d2.experiments.write_results` wrote, or two
            lines disagree on a run.
    """
    expected = fingerprints(matrix)
    known: dict[str, dict[str, Any]] = {}
    notes = []
    for file in files:
        lines = _read(file)
        unused: dict[str, list[str]] = {}
        for line in lines:
            name = f"{line['row']}, seed {line['seed']}"
            reason = _why_not(line, expected.get(name), matrix.metrics)
            if reason:
                unused.setdefault(reason, []).append(name)
                continue
            result = _parse(line, name, file)
            before = known.setdefault(name, result)
            for metric in matrix.metrics:
                values = before["metrics"][metric], result["metrics"][metric]
                if values[0] != values[1]:
                    raise UserError(
                        f"{name} has {metric} {values[0]} in {before['file']}, but {values[1]} in "
                        f"{file}; leave one of the files out, or take the line out of it."
                    )
        notes += [
            f"{file}: {len(names)} of {len(lines)} lines not used, such as {names[0]}: {reason}."
            for reason, names in unused.items()
        ]
    return known, notes


def take_stock(
    matrix: Matrix, known: Known | None = None
) -> tuple[dict[str, Mapping[str, Any]], list[Run]]:
    """What there is of a matrix, and what is missing. What is in the folder goes before what is
    known of elsewhere.

    Returns:
        Name -> result of every run that has one; and the runs that have to be made, in their
        order. Among these are runs that are known, too, if another one needs their checkpoint;
        and the known evaluations of these, since they are not of the checkpoint that there will
        be.

    Raises:
        UserError: the output folder holds other runs than the matrix says.
    """
    known = known or {}
    here = {}
    for run in matrix.runs:
        records.check_unchanged(run)
        result = records.read_result(run)
        if result:
            here[run.name] = result

    def replaced(source: Run) -> bool:
        """Whether the checkpoint in the folder is not the one that a known evaluation saw."""
        before = known.get(source.name, {}).get("finished")
        return source.name in here and here[source.name]["finished"] != before

    results = {}
    for run in matrix.runs:
        if run.name in here:
            results[run.name] = here[run.name]
        elif run.name in known and not (run.is_evaluation and replaced(run.source)):
            results[run.name] = known[run.name]

    missing = {run.name for run in matrix.runs if run.name not in results}
    for run in reversed(matrix.runs):  # a source comes after all that need it
        if run.name in missing and run.source and run.source.name not in here:
            missing.add(run.source.name)
    for run in matrix.runs:
        if run.is_evaluation and run.source.name in missing and run.name not in here:
            missing.add(run.name)
    return results, [run for run in matrix.runs if run.name in missing]


def _read(file: str | Path) -> list[dict[str, str]]:
    check_is_file(file)
    try:
        with open(file, encoding="utf-8", newline="") as text:
            reader = csv.DictReader(text)
            columns, lines = reader.fieldnames or (), list(reader)
    except OSError as error:
        raise UserError(f"cannot read the known runs of {file}: {error.strerror}.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no runs.csv, since it is no CSV file: {error}.") from error
    for column in ("row", "seed"):
        if column not in columns:
            raise UserError(f"{file} is no runs.csv, since it has no column {column}.")
    return lines


def _why_not(line: Mapping[str, str], expected: str | None, metrics: Iterable[str]) -> str | None:
    """Why a line can't stand for a run of the matrix; None if it can.

    Args:
        expected: the fingerprint of the matrix' run of this name, None if there is none.
    """
    if expected is None:
        return "the matrix has no such run"
    if not line.get("settings"):
        return "it does not say with which settings it was made, as files of older versions"
    if line["settings"] != expected:
        return "it was made with other settings than the matrix now has"
    lacking = [metric for metric in metrics if metric not in line]
    return f"it has no {lacking[0]}" if lacking else None


def _parse(line: Mapping[str, str], name: str, file: str | Path) -> dict[str, Any]:
    try:
        return {
            "row": line["row"],
            "seed": int(line["seed"]),
            "metrics": {key: _number(text) for key, text in line.items() if key and "/" in key},
            "seconds": float(line["seconds"]),
            "iterations": int(line["iterations"]),
            "iterations_per_second": _number(line["iterations_per_second"]),
            "jobs": int(line["jobs"]),
            "finished": line["finished"],
            "machine": line["machine"],
            "commit": line["commit"] or None,
            "versions": dict(item.split(" ", 1) for item in line["versions"].split(", ")),
            "file": str(file),
        }
    # A short line has None in its last columns.
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{file} has a damaged line for {name} ({type(error).__name__}: {error}); take the "
            "file as the tool has written it."
        ) from error


def _number(text: str) -> float | None:
    """None of an empty text, which stands for what is not defined."""
    value = float(text) if text else None
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value
