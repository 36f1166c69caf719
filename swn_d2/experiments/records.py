"""What a run leaves in its folder, so that the next start of the tool knows what is there."""

import contextlib
import fcntl
import json
import os
import re
import socket
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import flat_config, load_config
from ..engine.setup import trace_of_training
from ..errors import UserError
from ..files import read_json, write_text
from .matrix import Matrix, Run

__all__ = [
    "Holder",
    "check_unchanged",
    "has_checkpoint",
    "holder",
    "iterations_done",
    "lock",
    "lock_data",
    "note_holder",
    "read_result",
    "write_result",
    "write_start",
]

LOG = "run.log"  # what the processes of the run printed
START = "run.json"  # what was asked for, written before the first process starts
RESULT = "result.json"  # appears when the run is complete
LOCK = "lock"
DATA_LOCK = ".data.lock"  # in the folder of the matrix


@dataclass(frozen=True)
class Holder:
    """Who has a run's lock.

    Attributes:
        text: in words.
        is_here: whether it is on this machine, or may be.
        gpu: the one that it has for itself, None if it has none.
    """

    text: str
    is_here: bool
    gpu: str | None


def lock(run: Run) -> int | None:
    """Lock the run's folder, which it makes: see :func:`_lock`."""
    return _lock(run.folder, LOCK)


def lock_data(matrix: Matrix) -> int | None:
    """Lock what the commands of a matrix make: see :func:`_lock`."""
    return _lock(matrix.output, DATA_LOCK)


def _lock(folder: Path, name: str) -> int | None:
    """Make a folder, and lock the file of that name in it.

    The lock belongs to the file descriptor and to every process that inherits it: it ends with the
    last of them, however that dies.

    Returns:
        The file descriptor, or None if another process has the lock.

    Raises:
        UserError: the folder can't be made, or its file system has no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return None
            raise
        os.ftruncate(descriptor, 0)  # what its last holder noted
    except OSError as error:
        raise UserError(f"cannot use {folder} as an output: {error.strerror}.") from error
    return descriptor


def note_holder(descriptor: int, process: int, gpu: str | None) -> None:
    """Note in a file that :func:`lock` gave who has the lock, for :func:`holder`."""
    text = f"process {process} on {socket.gethostname()}"
    with contextlib.suppress(OSError):  # a full disk: the lock counts without a note
        os.pwrite(descriptor, (text + (f", GPU {gpu}" if gpu is not None else "")).encode(), 0)


def holder(run: Run) -> Holder | None:
    """Who has the folder's lock; None if nobody has it."""
    if not (run.folder / LOCK).exists():
        return None
    descriptor = lock(run)
    if descriptor is None:
        text = (run.folder / LOCK).read_text()
        note = re.fullmatch(r"process \d+ on (\S+?)(?:, GPU (\S+))?", text)
        if note is None:  # it has the lock, but has not noted it yet
            return Holder("another process", is_here=True, gpu=None)
        return Holder(text, is_here=note[1] == socket.gethostname(), gpu=note[2])
    os.close(descriptor)
    return None


def write_start(run: Run) -> float:
    """Note what is asked for, before a process of the run starts.

    Returns:
        How many seconds the processes before it took.
    """
    before = _read_json(run.folder / START)
    seconds = 0.0
    if before:
        # The last sign of life, since it may have been killed.
        last_sign = (run.folder / LOG).stat().st_mtime if (run.folder / LOG).exists() else 0.0
        seconds = before["seconds_before"] + max(0.0, last_sign - before["started"])
    start = {
        "settings": run.settings,
        "source_finished": run.source and read_result(run.source)["finished"],
        "seconds_before": seconds,
        "started": time.time(),
    }
    _write_json(run.folder / START, start)
    return seconds


def read_result(run: Run) -> dict[str, Any] | None:
    """What :func:`write_result` wrote, None if the run is not complete."""
    return _read_json(run.folder / RESULT)


def write_result(
    run: Run, metrics: dict[str, float | None], seconds: float, context: dict[str, Any]
) -> dict[str, Any]:
    """Write, and return, the result of a complete run.

    Args:
        metrics: "task/metric" -> percent, None where it is not defined.
        seconds: that its processes took, together.
        context: more to be noted, like :func:`swn_d2.engine.environment.surroundings`.
    """
    result = {
        "row": run.row,
        "seed": run.seed,
        "metrics": metrics,
        "seconds": round(seconds, 1),
        "iterations": run.iterations,
        "iterations_per_second": _iterations_per_second(run.folder / "metrics.json"),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        **context,
    }
    _write_json(run.folder / RESULT, result)
    return result


def iterations_done(run: Run) -> int:
    """How far the training is, in iterations, by the last line that it logged."""
    for line in reversed(_metric_lines(run.folder / "metrics.json")):
        if "iteration" in line:
            return min(int(line["iteration"]) + 1, run.iterations)
    return 0


def has_checkpoint(run: Run) -> bool:
    """Whether there is one to go on from."""
    return (run.folder / "last_checkpoint").exists()


def check_unchanged(run: Run) -> None:
    """Raise a :class:`UserError` if the folder holds a run that the matrix does not ask for."""
    remedy = f"Delete or move {run.folder}, or give the matrix another output."
    start = _read_json(run.folder / START)
    if start is None:
        if trace_of_training(run.folder):
            raise UserError(f"{run.folder} holds a run of something else. {remedy}")
        return
    for key, value in run.settings.items():
        if key != "config" and start["settings"][key] != value:
            raise UserError(
                f"{run.folder} was run with {key} {start['settings'][key]!r}, but the matrix now "
                f"says {value!r}. {remedy}"
            )
    before, now = start["settings"]["config"], run.settings["config"]
    if before != now:
        # A key that is new in this version had its default; one that is gone tells nothing.
        defaults = flat_config(load_config())
        for key, value in now.items():
            value_before = before.get(key, defaults.get(key))
            if value != value_before:
                raise UserError(
                    f"{run.folder} was run with {key} {value_before!r}, but the matrix now gives "
                    f"{value!r}. {remedy}"
                )
    source = run.source and read_result(run.source)
    if run.source and start["source_finished"] != (source or {}).get("finished"):
        raise UserError(
            f"{run.folder} was made from a checkpoint of {run.source.name!r} that is no longer "
            f"there. {remedy}"
        )


def _iterations_per_second(metrics_file: Path) -> float | None:
    times = [line["time"] for line in _metric_lines(metrics_file) if line.get("time")]
    return round(1 / statistics.median(times), 3) if times else None


def _metric_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of Detectron2's metrics.json; what a kill has cut short is left out."""
    lines = []
    for text in file.read_bytes().splitlines() if file.is_file() else ():
        with contextlib.suppress(ValueError, RecursionError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict)]


def _read_json(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        content = read_json(file)
        if not _is_ours(content):
            raise UserError(f"{file} is not what this tool writes.")
    except UserError as error:
        raise UserError(f"{error} Move its folder away.") from error
    return content


def _is_ours(content: Any) -> bool:
    """Whether it may be a START or a RESULT."""
    try:
        of_start = isinstance(content.get("settings", {"config": {}})["config"], dict)
        return of_start and ("settings" in content or isinstance(content["metrics"], dict))
    except (AttributeError, KeyError, TypeError):
        return False


def _write_json(file: Path, content: dict[str, Any]) -> None:
    write_text(file, json.dumps(content, indent=1))
