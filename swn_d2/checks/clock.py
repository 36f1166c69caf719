"""Time and memory of what runs on a CPU or a GPU, two things in turn."""

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

__all__ = ["Pair", "StepMemory", "alternate", "median_seconds", "ratio", "seconds"]


def seconds(function: Callable[[], object], device: str) -> float:
    """Of one call. On a GPU of what it does there, from when it is free of what came before."""
    if device != "cuda":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def median_seconds(function: Callable[[], object], device: str, *, repetitions: int) -> float:
    """Of several calls, after three that warm up."""
    for _ in range(3):
        function()
    return median(seconds(function, device) for _ in range(repetitions))


class StepMemory:
    """The most memory, in MiB, that is in use after :meth:`start` beyond what was in use then:
    the GPU's, or the process's (on Linux)."""

    def __init__(self, device: str):
        self.on_gpu = device == "cuda"

    def start(self) -> None:
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
        else:
            ctypes.CDLL(None).malloc_trim(0)  # gives freed memory back to the system
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the largest VmRSS
            self.before = self._of_process("VmRSS")

    def read(self) -> float:
        if self.on_gpu:
            return torch.cuda.max_memory_allocated() / 2**20 - self.before
        return self._of_process("VmHWM") - self.before

    @staticmethod
    def _of_process(field: str) -> float:
        return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 2**10


@dataclass(frozen=True)
class Pair:
    """What a step of the first and one of the second of two things took."""

    seconds: tuple[float, float]
    mebibytes: tuple[float, float]


def alternate(
    first: Callable[[int], object],
    second: Callable[[int], object],
    device: str,
    *,
    pairs: int,
    warm_up: int = 1,
    after: Callable[[], object] = lambda: None,
) -> Iterator[Pair]:
    """Two steps in turn, so that what slows the machine down slows both.

    Args:
        first, second: a step, given the number of the pair.
        pairs: how many are measured.
        warm_up: pairs before them, with the allocations and, on a GPU, the choice of kernels.
        after: is called after each step, out of the measured time.
    """
    memory = StepMemory(device)
    steps = (first, second)
    for number in range(-warm_up, pairs):
        took, peaks = [0.0, 0.0], [0.0, 0.0]
        # Who goes first changes, since the second finds the caches warm.
        for which in (0, 1) if number % 2 else (1, 0):
            memory.start()
            took[which] = seconds(lambda: steps[which](number + warm_up), device)  # noqa: B023
            peaks[which] = memory.read()
            after()
        if number >= 0:
            yield Pair(tuple(took), tuple(peaks))


def ratio(pairs: Sequence[Pair]) -> tuple[float, float, float]:
    """Of the second's time to the first's: median, smallest and largest."""
    ratios = [pair.seconds[1] / pair.seconds[0] for pair in pairs]
    return median(ratios), min(ratios), max(ratios)
