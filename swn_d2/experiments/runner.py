"""Runs what is missing, one process for each run, and says how far it is."""

import contextlib
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.environment import surroundings
from ..errors import UserError
from ..shell import duration, join_words
from . import records
from .known import Known, take_stock
from .matrix import Matrix, Run
from .progress import Work, format_metric, time_left

__all__ = ["Runner", "describe", "parse_evaluation"]

POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 300  # the longest time without a line of progress
GRACE_SECONDS = 10  # between SIGTERM and SIGKILL


@dataclass
class _Process:
    run: Run
    popen: subprocess.Popen
    lock: int
    gpu: str | None
    log_start: int  # where its part of the log starts, in bytes
    seconds_before: float  # of the processes before it
    iterations_before: int
    started: float
    context: dict[str, Any]  # what ran it

    @property
    def seconds(self) -> float:
        return time.time() - self.started

    def kill(self, number: int) -> None:
        """Send a signal to all that is left of the run; it may have processes of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)


class Runner:
    """Runs a matrix.

    Args:
        matrix: what to run.
        train_net: path of train_net.py.
        jobs: how many runs at the same time; with ``gpus``, by default, one for each.
        gpus: one GPU, as CUDA_VISIBLE_DEVICES has it, for each of the jobs; a GPU that stands
            there several times is shared by so many. Without them all runs see all GPUs.
        known: runs that were made elsewhere, from :func:`swn_d2.experiments.read_known`.

    Raises:
        UserError: ``jobs`` doesn't fit, or the output folder holds other runs than the matrix says.
    """

    def __init__(
        self,
        matrix: Matrix,
        train_net: Path,
        *,
        jobs: int | None = None,
        gpus: list[str] | None = None,
        known: Known | None = None,
    ):
        self.jobs = jobs if jobs is not None else len(gpus or [None])
        if self.jobs < 1 or (gpus and self.jobs > len(gpus)):
            most = f", and at most {len(gpus)}, the number of --gpus" if gpus else ""
            raise UserError(f"--jobs is {self.jobs}, but it must be at least 1{most}.")
        self.matrix = matrix
        self.train_net = train_net
        self.gpus: list[str | None] = gpus or [None] * self.jobs
        self.running: list[_Process] = []
        self.elsewhere: set[str] = set()  # names of runs that another process runs
        self.failed: dict[str, str] = {}
        self.signal: int | None = None
        self.last_line = time.monotonic()
        results, self.pending = take_stock(matrix, known)
        # Without those that are known and run again, whose checkpoints are not there yet.
        missing = {run.name for run in self.pending}
        self.results = {name: r for name, r in results.items() if name not in missing}

    def run(self) -> dict[str, str]:
        """Run what is missing.

        Returns:
            The name of every run that failed, or could not start, and why.

        Raises:
            UserError: a command that makes the data failed.
            SystemExit: after SIGINT, SIGTERM or SIGHUP, when all processes have ended.
        """
        if not self.pending:
            return {}
        before = {
            number: signal.signal(number, self._note_signal)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) != signal.SIG_IGN  # as nohup has it
        }
        try:
            self._make_data()
            self._say(f"{len(self.pending)} to run, {self.jobs} at a time")
            while (self.pending or self.running) and self.signal is None:
                self._reap()
                self._drop_hopeless()
                self._start_what_fits()
                if time.monotonic() - self.last_line > HEARTBEAT_SECONDS:
                    self._say("still at it")
                time.sleep(POLL_SECONDS)
        finally:
            self._stop_all()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.signal is not None:
            print("Stopped. The same command goes on from the last checkpoints.", flush=True)
            raise SystemExit(128 + self.signal)
        return self.failed

    def _note_signal(self, number: int, frame: Any) -> None:
        self.signal = number

    def _environment(self) -> dict[str, str]:
        threads = max(1, len(os.sched_getaffinity(0)) // self.jobs)
        return {"OMP_NUM_THREADS": str(threads), **os.environ, **self.matrix.environment}

    def _make_data(self) -> None:
        """Run the commands, one start of the tool after another: they may write the same files."""
        commands = self.matrix.data_commands
        if not commands:
            return
        if (lock := records.lock_data(self.matrix)) is None:
            print("Waiting for another start of this tool, which makes the data.", flush=True)
        while lock is None and self.signal is None:
            time.sleep(0.2)
            lock = records.lock_data(self.matrix)
        if lock is None:
            return
        try:
            self._run_commands(commands, lock)
        finally:
            os.close(lock)

    def _run_commands(self, commands: Iterable[str], lock: int) -> None:
        """Run them, each of which holds the lock as long as it lives."""
        for command in commands:
            if self.signal is not None:
                return
            print(f"$ {command}", flush=True)
            words = shlex.split(command)
            if words[0] == "python":
                words[0] = sys.executable
            try:
                # In a session of its own: only this process tells it to end, and once.
                process = subprocess.Popen(
                    words, env=self._environment(), start_new_session=True, pass_fds=[lock]
                )
            except OSError as error:
                raise UserError(f"cannot run {words[0]!r} (data): {error.strerror}.") from error
            while (code := process.poll()) is None and self.signal is None:
                time.sleep(0.05)
            if code is None:
                _end_group(process)
            if code and self.signal is None:
                raise UserError(f"the command above failed with exit status {code} (data).")

    def _start_what_fits(self) -> None:
        holders = {}
        for run in list(self.pending):
            with self._told_of(run):
                if holder := records.holder(run):
                    holders[run.name] = holder
        before, self.elsewhere = self.elsewhere, set(holders)
        for name in self.elsewhere - before:
            self._say(f"{name}: left to {holders[name].text}, which runs it already")
        # A start with other GPUs of this machine has runs of its own.
        mine = {None, *self.gpus} if any(self.gpus) else {user.gpu for user in holders.values()}
        here = [user for user in holders.values() if user.is_here and user.gpu in mine]
        for run in list(self.pending):
            if len(self.running) + len(here) >= self.jobs:
                return
            source_is_there = run.source is None or run.source.name in self.results
            if source_is_there and run.name not in self.elsewhere:
                used = Counter(user.gpu for user in [*self.running, *here])
                free = Counter(self.gpus) - used
                with self._told_of(run):
                    self._start(run, next(iter(free)))

    @contextlib.contextmanager
    def _told_of(self, run: Run) -> Iterator[None]:
        """A folder that can't be used fails its pending run, and no other one."""
        try:
            yield
        except (UserError, OSError) as error:
            self.pending.remove(run)
            self._fail(run, str(error))

    def _start(self, run: Run, gpu: str | None) -> None:
        lock = records.lock(run)
        if lock is None:
            return  # another tool was faster
        try:
            if self._is_settled(run):
                os.close(lock)
                return
            self.running.append(self._launch(run, gpu, lock))
        except BaseException:
            os.close(lock)
            raise
        self.pending.remove(run)
        goes_on = records.has_checkpoint(run) and not run.is_evaluation
        self._say(f"{run.name}: {'goes on' if goes_on else 'starts'}")

    def _launch(self, run: Run, gpu: str | None, lock: int) -> _Process:
        # Of every run, since the code may change while the tool runs.
        context = {**surroundings(self.train_net.parent), "jobs": self.jobs}
        iterations_before = records.iterations_done(run)
        seconds_before = records.write_start(run)
        command = [sys.executable, str(self.train_net), *run.arguments()]
        environment = self._environment()
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        with open(run.folder / records.LOG, "ab") as log:
            log.write(f"\n$ {join_words(command)}\n".encode())
            log.flush()
            log_start = log.tell()  # of the file that the process writes to: it moves on with it
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[lock],  # so that the run is locked even if this tool is killed
                start_new_session=True,  # Ctrl-C reaches the tool only, which then ends the run
            )
        records.note_holder(lock, popen.pid, gpu)
        return _Process(
            run=run,
            popen=popen,
            lock=lock,
            gpu=gpu,
            log_start=log_start,
            seconds_before=seconds_before,
            iterations_before=iterations_before,
            started=time.time(),
            context=context,
        )

    def _is_settled(self, run: Run) -> bool:
        """Whether a pending run is not to be started any more: another tool has completed it, or
        its folder or config file is no longer what it was when this tool started."""
        try:
            records.check_unchanged(run)
            result = records.read_result(run)
            if result is None:
                run.check_config()
                return False
        except UserError as error:
            self.pending.remove(run)
            self._fail(run, str(error))
        else:
            self.pending.remove(run)
            self._finish(run, result, "done elsewhere")
        return True

    def _reap(self) -> None:
        for run in [run for run in self.pending if run.name in self.elsewhere]:
            if records.read_result(run):
                self._is_settled(run)
        for process in list(self.running):
            code = process.popen.poll()
            if code is None:
                continue
            run = process.run
            process.kill(signal.SIGKILL)  # what the main process has left behind
            self.running.remove(process)
            with open(run.folder / records.LOG, "rb") as log:
                log.seek(process.log_start)
                text = log.read().decode(errors="replace")
            metrics = parse_evaluation(text) if code == 0 else {}
            metrics |= _of_nothing(metrics, self.matrix.metrics)
            missing = [metric for metric in self.matrix.metrics if metric not in metrics]
            if not missing:
                seconds = process.seconds_before + process.seconds
                try:
                    result = records.write_result(run, metrics, seconds, process.context)
                    self._finish(run, result, f"done in {duration(seconds)}")
                except UserError as error:  # a full disk
                    self._fail(run, str(error))
            else:
                given = ", ".join(metrics) or "nothing"
                lacks = f"the evaluation gave no {missing[0]}, but {given}"
                why = _why(code, text) if code else lacks
                self._fail(run, f"{why}\n    (log: {run.folder / records.LOG})")
            # Only now, so that no other tool takes it up without seeing the result.
            os.close(process.lock)

    def _drop_hopeless(self) -> None:
        for run in list(self.pending):
            if run.source and run.source.name in self.failed:
                self.pending.remove(run)
                self._fail(run, f"not started, for it needs {run.source.name}, which failed")

    def _stop_all(self) -> None:
        """End the processes of all runs: politely, then not."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.running:
                process.kill(number)
            deadline = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < deadline and any(
                process.popen.poll() is None for process in self.running
            ):
                time.sleep(0.05)
        for process in self.running:
            os.close(process.lock)

    # What it says

    def _finish(self, run: Run, result: dict[str, Any], how: str) -> None:
        self.results[run.name] = result
        self.elsewhere.discard(run.name)
        metric = self.matrix.metrics[0]
        self._say(f"{run.name}: {how}, {metric} {format_metric(result['metrics'], metric)}")

    def _fail(self, run: Run, reason: str) -> None:
        self.failed[run.name] = reason
        self.elsewhere.discard(run.name)
        self._say(f"{run.name}: FAILED: {reason}")

    def _say(self, event: str) -> None:
        """A line: how many are done, what has happened, and what is still to come."""
        self.last_line = time.monotonic()
        to_do = [Work(run.row, run.iterations) for run in self.pending]
        done = []
        for run in self.matrix.runs:
            result = self.results.get(run.name)
            if result and "file" not in result:  # another machine has another speed
                done.append(Work(run.row, result["iterations"], result["seconds"]))
        states = []
        for process in self.running:
            run = process.run
            now = records.iterations_done(run)
            to_do.append(Work(run.row, run.iterations - now))
            if now > process.iterations_before:
                done.append(Work(run.row, now - process.iterations_before, process.seconds))
            states.append(run.name + (f" {now / run.iterations:.0%}" if run.iterations else ""))
        parts = [event]
        if states:
            parts.append("running: " + "; ".join(states))
        if self.elsewhere:
            parts.append("running elsewhere: " + "; ".join(sorted(self.elsewhere)))
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        if to_do:
            seconds = time_left(to_do, done, self.jobs)
            parts.append("no estimate yet" if seconds is None else f"{duration(seconds)} left")
        total = len(self.matrix.runs)
        clock = time.strftime("%H:%M:%S")
        print(f"[{len(self.results)}/{total}] {clock} {' | '.join(parts)}", flush=True)


def describe(matrix: Matrix, train_net: Path, known: Known | None = None) -> list[str]:
    """What a start of the tool would do, in lines.

    Args: as for :class:`Runner`.

    Raises:
        UserError: the output folder holds other runs than the matrix says.
    """
    environment = join_words(f"{key}={value}" for key, value in matrix.environment.items())
    start = f"env {environment} " if environment else ""
    lines = [f"data: {start}{command}" for command in matrix.data_commands]
    results, missing = take_stock(matrix, known)
    for run in matrix.runs:
        metric = matrix.metrics[0]
        if run not in missing:
            result = results[run.name]
            value = f"{metric} {format_metric(result['metrics'], metric)}"
            source = f" (in {result['file']})" if "file" in result else ""
            lines.append(f"{run.name}: done, {value}{source}")
        elif held_by := records.holder(run):
            lines.append(f"{run.name}: being run by {held_by.text}")
        else:
            verb = "evaluate" if run.is_evaluation else "train"
            if records.has_checkpoint(run) and not run.is_evaluation:
                verb = f"go on, {records.iterations_done(run)} of {run.iterations} iterations done"
            command = join_words(["python", os.path.relpath(train_net), *run.arguments()])
            lines.append(f"{run.name}: {verb}\n    {start}{command}")
    return lines


def _end_group(process: subprocess.Popen) -> None:
    """End a process that leads a session, and what it has started: politely, then not."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)


def parse_evaluation(log: str) -> dict[str, float | None]:
    """The metrics of the last evaluation in a log, "task/metric" -> percent.

    Detectron2 prints them in lines with "copypaste:", for every test set. With several test sets
    the names are "test set/task/metric", as in Detectron2's metrics.json. A metric is None where it
    is not defined, as AP of large objects without any; but 0 if nothing at all was detected, for
    which Detectron2 gives no number either.
    """
    of_sets: dict[str, dict[str, float | None]] = {}
    current: dict[str, float | None] = {}
    names: list[str] = []
    task = ""
    for line in log.splitlines():
        if match := re.search(r"Evaluation results for (.+) in csv format", line):
            current = of_sets[match[1]] = {}
        elif match := re.search(r"copypaste: Task: (\w+)", line):
            task, names = match[1], []
        elif match := re.search(r"copypaste: ([\w.,+-]+)$", line):
            values = match[1].split(",")
            if not names:
                names = values
                continue
            numbers = [float(value) for value in values]
            nothing_found = all(math.isnan(number) for number in numbers)
            for name, number in zip(names, numbers, strict=True):
                undefined = None if not nothing_found else 0.0
                current[f"{task}/{name}"] = undefined if math.isnan(number) else number
    if len(of_sets) == 1:
        return current
    return {f"{name}/{key}": v for name, metrics in of_sets.items() for key, v in metrics.items()}


def _of_nothing(metrics: Mapping[str, float | None], wanted: Sequence[str]) -> dict[str, float]:
    """Of sets where nothing at all was detected, the wanted metrics that are missing: 0.

    Which tasks there are, Detectron2 sees in what is detected, and of nothing it takes boxes alone.
    """
    result = {}
    for metric in wanted:
        of_set = metric.rpartition("/")[0].rpartition("/")[0]  # "" where there is one set
        values = [value for name, value in metrics.items() if name.startswith(of_set)]
        if metric not in metrics and values and all(value == 0 for value in values):
            result[metric] = 0.0
    return result


def _why(code: int, log: str) -> str:
    """Why a process ended with an exit status that is not 0."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    if code < 0:
        hint = "; the machine may have run out of memory" if -code == signal.SIGKILL else ""
        return f"ended by {signal.Signals(-code).name}{hint}"
    return f"exit status {code}; the log ends with\n    " + "\n    ".join(lines[-5:])
