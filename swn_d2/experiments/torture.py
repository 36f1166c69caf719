"""A training that is killed again and again, and compared with one that was left alone."""

import json
import multiprocessing
import os
import random
import runpy
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..errors import UserError
from ..recording import RECORDING, SNAPSHOTS, read_recording

__all__ = ["Campaign", "Outcome", "differences"]

_GRACE = 30  # seconds that the other processes have to end in, as torchrun's
_TIMEOUT = 600  # of a training, and far more than one of these takes


@dataclass
class Outcome:
    """Of a campaign.

    Attributes:
        kills: how often each thing was going on that a kill was aimed at, "any" for a random
            moment.
        trainings: how many came to their end, in spite of the kills.
        differences: what in one of them is not as in the one that was left alone.
        repeated: how many iterations were done again.
        missing: evaluations that were due and never made, having been killed.
    """

    kills: Counter = field(default_factory=Counter)
    trainings: int = 0
    differences: list[str] = field(default_factory=list)
    repeated: int = 0
    missing: int = 0

    def __str__(self) -> str:
        aims = ", ".join(f"{count} {aim}" for aim, count in sorted(self.kills.items()))
        equal = "all equal to the one left alone, to the last bit"
        return (
            f"{self.kills.total()} kills ({aims}); {self.trainings} trainings, "
            f"{'; '.join(self.differences) or equal}; {self.repeated} iterations done again, "
            f"{self.missing} evaluations in between killed and not made again"
        )


class Campaign:
    """Kills trainings at random moments, and while a checkpoint or a record is written or an
    evaluation goes on; resumes each until it ends, and compares it.

    A training should record every iteration (``RECORDING.PERIOD`` 1), have a ``SEED``, and
    checkpoints and evaluations on its way.
    """

    def __init__(
        self, script: Path, arguments: Sequence[str], folder: Path, *, num_processes: int, seed: int
    ):
        """
        Args:
            script: train_net.py.
            arguments: its own, without ``--resume`` and ``OUTPUT_DIR``.
            folder: a new one, for all of the trainings.
            num_processes: of each training, all of which one kill ends.
            seed: of the choice of moments.
        """
        self._script = script
        self._arguments = arguments
        self._folder = folder
        self._num_processes = num_processes
        self._random = random.Random(seed)
        # Forked from a process that has imported everything, each start saves seconds.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["swn_d2", "torch.utils.tensorboard"])

    def run(self, num_kills: int, progress: Callable[[str], None] = lambda line: None) -> Outcome:
        """
        Args:
            num_kills: how many, at least.
            progress: is told what happens.

        Raises:
            UserError: a training failed by itself.
        """
        outcome = Outcome()
        alone = self._folder / "alone"
        begin = time.monotonic()
        self._finish(self._start(alone), alone)
        duration = time.monotonic() - begin
        while outcome.kills.total() < num_kills:
            folder = self._folder / f"killed_{outcome.trainings}"
            while outcome.kills.total() < num_kills:
                aim = self._random.choice(["any", *_AIMS])
                processes = self._start(folder)
                if not self._kill(processes, folder, aim, self._random.uniform(0, duration)):
                    break  # it has ended before
                outcome.kills[aim] += 1
                progress(f"kill {outcome.kills.total()} of {num_kills}: {aim}")
            else:
                processes = self._start(folder)
            self._finish(processes, folder)
            outcome.trainings += 1
            outcome.differences += [f"{folder.name}: {d}" for d in differences(alone, folder)]
            outcome.repeated += _num_records(folder) - _num_records(alone)
            outcome.missing += len(_evaluations(alone) - _evaluations(folder))
            progress(f"training {outcome.trainings} has ended; {outcome}")
        return outcome

    def _start(self, folder: Path) -> list:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        folder.mkdir(parents=True, exist_ok=True)
        argv = [str(self._script), "--resume", *self._arguments, "OUTPUT_DIR", str(folder)]
        processes = []
        for rank in range(self._num_processes):
            # As torchrun tells them.
            names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
            numbers = (rank, rank, self._num_processes, self._num_processes, port)
            place = {n: str(number) for n, number in zip(names, numbers, strict=True)}
            log = self._folder / f"{folder.name}.{rank}.log"
            process = self._context.Process(
                target=_train, args=(argv, {**place, "MASTER_ADDR": "127.0.0.1"}, str(log))
            )
            process.start()
            processes.append(process)
        return processes

    def _kill(self, processes: list, folder: Path, aim: str, delay: float) -> bool:
        """Kill one process, after a delay or while something goes on, and have the others end.
        False if all of them ended before."""
        is_time = _AIMS.get(aim, lambda folder: lambda: time.monotonic() > begin + delay)(folder)
        begin = time.monotonic()
        while not is_time():
            if not all(process.is_alive() for process in processes):
                return False
            if time.monotonic() > begin + _TIMEOUT:
                raise UserError(f"a training in {folder} does not end.")
            time.sleep(0.002)
        victim = self._random.choice(processes)
        victim.kill()
        victim.join()
        for process in processes:
            process.terminate()
            process.join(_GRACE)
            process.kill()
            process.join()
        return True

    def _finish(self, processes: list, folder: Path) -> None:
        for process in processes:
            process.join(_TIMEOUT)
            if process.exitcode != 0:
                raise UserError(
                    f"a training in {folder} ended with {process.exitcode}; its output is in "
                    f"{folder}.*.log."
                )


def _train(argv: list[str], environment: dict[str, str], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.environ.update(environment)
    # As in a training that a user starts; else those that load images would be forked from a server
    # of this one's, and import everything again.
    multiprocessing.set_start_method(None, force=True)
    torch.set_num_threads(1)
    # Which multiprocessing's processes may have ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


def _while_checkpoint(folder: Path) -> Callable[[], bool]:
    return lambda: any(folder.glob("*.pth.partial"))


def _after_record(folder: Path) -> Callable[[], bool]:
    size = _size(folder / RECORDING)
    return lambda: _size(folder / RECORDING) > size


def _while_evaluation(folder: Path) -> Callable[[], bool]:
    log = folder / "log.txt"
    begin = _size(log)

    def is_time() -> bool:
        if _size(log) <= begin:
            return False
        text = log.read_bytes()[begin:]
        return text.rfind(b"Start inference") > text.rfind(b"Evaluation results for")

    return is_time


_AIMS = {
    "in a checkpoint": _while_checkpoint,
    "after a record": _after_record,
    "in an evaluation": _while_evaluation,
}


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _num_records(folder: Path) -> int:
    return (folder / RECORDING).read_text().count('{"iteration"')


def _evaluations(folder: Path) -> set[int]:
    """The iterations after which there was one."""
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return {line["iteration"] for line in lines if "bbox/AP" in line}


def differences(first: Path, second: Path) -> list[str]:
    """What two runs' folders end with that is not the same: parameters, the optimisers' state,
    records, and the weighter's parameters on the way."""
    found = []
    ends = [torch.load(f / "model_final.pth", weights_only=True) for f in (first, second)]
    for part, of_end in (
        ("parameters", lambda end: end["model"]),
        ("the optimisers", lambda end: end["trainer"]["_trainer"]["optimizer"]),
    ):
        if not _equal(*map(of_end, ends)):
            found.append(f"{part} differ")
    if str(read_recording(first / RECORDING)) != str(read_recording(second / RECORDING)):
        found.append("records differ")
    names = {file.name for f in (first, second) for file in (f / SNAPSHOTS).glob("*.pth")}
    for name in sorted(names):
        files = [f / SNAPSHOTS / name for f in (first, second)]
        if not all(file.exists() for file in files) or not _equal(
            *(torch.load(file, weights_only=True) for file in files)
        ):
            found.append(f"{SNAPSHOTS}/{name} differs")
    return found


def _equal(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_equal(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_equal, first, second))
    return first == second
