"""A training that is told to stop: by a scheduler that needs the machine, or by Ctrl-C."""

import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm

__all__ = ["StopOnSignal"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_logger = logging.getLogger(__name__)


class StopOnSignal(HookBase):
    """On SIGTERM or SIGINT, ends the training with a checkpoint and the exit status 128 + signal.

    It is enough that one process gets the signal. What each got is reduced over all in every
    iteration, on the CPU and while the next iteration runs, so that nobody waits; all of them know
    at the end of that one and stop together.

    A second Ctrl-C ends the process at once. A launcher may pass the first one on to a process that
    has it from the terminal, so one within a second is the same.
    """

    def __init__(self, save: Callable[[], str], go_on: Callable[[], str]):
        """
        Args:
            save: writes a checkpoint, and says its name. It is called in every process.
            go_on: what to do to go on.
        """
        self._save = save
        self._go_on = go_on
        self._signal = 0
        self._handlers: dict[int, Callable | int | None] = {}
        self._reduced: tuple[torch.Tensor, dist.Work] | None = None

    def before_train(self) -> None:
        if comm.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")
        if threading.current_thread() is not threading.main_thread():
            return  # where Python sets no handlers
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                self._handlers[number] = signal.signal(number, self._note)

    def after_step(self) -> None:
        number = self._agreed()
        if not number or self.trainer.iter + 1 >= self.trainer.max_iter:
            return
        name = self._save()
        comm.synchronize()  # nobody ends, and has the others ended, before it is written
        if comm.is_main_process():
            _logger.warning(
                f"Stopped by {signal.Signals(number).name} after iteration {self.trainer.iter}, "
                f"with {name} to go on from: {self._go_on()}"
            )
        self._handlers.clear()  # the launcher may now end this process, which does so by itself
        raise SystemExit(128 + number)

    def after_train(self) -> None:
        # What is left to do, such as the last evaluation, loses nothing when it is killed.
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        parent = multiprocessing.parent_process()
        is_orphan = parent is not None and not parent.is_alive()  # another run may have begun
        is_again = self._signal == number == signal.SIGINT and time.monotonic() > self._since + 1
        if is_orphan or is_again:
            raise KeyboardInterrupt
        if not self._signal:
            self._signal, self._since = number, time.monotonic()

    def _agreed(self) -> int:
        """The signal that all processes know of, 0 if there is none."""
        if comm.get_world_size() == 1:
            return self._signal
        number = 0
        if self._reduced is not None:
            of_all, work = self._reduced
            work.wait()
            number = int(of_all)
        self._reduced = None
        if self.trainer.iter + 1 < self.trainer.max_iter:  # else nobody would wait for it
            of_all = torch.tensor(self._signal)
            work = dist.all_reduce(of_all, dist.ReduceOp.MAX, self._group, async_op=True)
            self._reduced = of_all, work
        return number
