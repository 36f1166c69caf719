"""Where the host waits for the GPU: each time it has nothing to do next when it goes on."""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["waits"]

#: What is left out of a path, so that it tells nothing of the machine.
_ROOTS = ("site-packages", "dist-packages")


@contextmanager
def waits(device: str) -> Iterator[Counter]:
    """Count the waits of a block: "file:line" -> how often.

    On a GPU torch's own sync debug mode counts them. On a CPU nothing waits, and what is counted
    are the operations that would on a GPU: those that give the host a number, or a result whose
    size depends on the data. Copies to a GPU, which wait, too, are not among these.
    """
    counter: Counter = Counter()
    if device != "cuda":
        with _HostReads(counter), _DataDependentSizes(counter):
            yield counter
        return
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counter
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in caught:
        if "called a synchronizing" in str(warning.message):
            counter[_short(warning.filename, warning.lineno)] += 1


class _HostReads(TorchFunctionMode):
    """Counts what hands a tensor's values to Python in one go."""

    _READS = (torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy)

    def __init__(self, counter: Counter):
        super().__init__()
        self._counter = counter

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self._READS:
            _count(self._counter, is_copy=function is torch.Tensor.cpu)
        return function(*args, **(kwargs or {}))


class _DataDependentSizes(TorchDispatchMode):
    """Counts operators that end with a number on the host, or need one to allocate their result."""

    _OPERATORS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount")

    def __init__(self, counter: Counter):
        super().__init__()
        self._counter = counter

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if by_mask or name in self._OPERATORS or name.lstrip("_").startswith("unique"):
            _count(self._counter, is_copy=False)
        return function(*args, **(kwargs or {}))


def _count(counter: Counter, *, is_copy: bool) -> None:
    """Count the innermost line that is not torch's or of this file. Not where the numbers are on
    the host of a GPU already: an optimiser's steps, and the losses once they were copied."""
    frame, place, writers = sys._getframe(1), None, 0
    torch_folder = str(Path(torch.__file__).parent)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(f"{torch_folder}/optim/"):
            return
        writers += frame.f_code.co_name == "_write_metrics"
        if place is None and not file.startswith((torch_folder, "<")) and file != __file__:
            place = _short(file, frame.f_lineno)
        frame = frame.f_back
    # Ours copies, and has Detectron2's write; where that writes alone, it copies.
    if writers == 0 or (writers == 1 and is_copy):
        counter[place] += 1


def _short(file: str, line: int) -> str:
    parts = Path(file).parts
    for root in _ROOTS:
        if root in parts:
            parts = parts[len(parts) - parts[::-1].index(root) :]
    if "swn_d2" in parts:
        parts = parts[len(parts) - 1 - parts[::-1].index("swn_d2") :]
    return f"{Path(*parts[-4:]).as_posix()}:{line}"
