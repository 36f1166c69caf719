"""The processes of a training: one per GPU, or on the CPU as many as asked for; started here, or
by a cluster's launcher."""

import datetime
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

from ..errors import phase, user_errors_exit
from .cluster import Place

__all__ = ["launch"]

# As Detectron2's: the others wait while the main process evaluates.
_TIMEOUT = datetime.timedelta(minutes=30)


def launch(
    main: Callable,
    num_processes_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple = (),
    device: str = "cuda",
    place: Place | None = None,
) -> None:
    """Run ``main(*args)`` in every process of a job; see :func:`detectron2.engine.launch`.

    Where ``device`` is "cpu" the processes talk by gloo, else by NCCL. SIGTERM and Ctrl-C are
    passed on to them, and they end the job.

    Args:
        place: that of this process, where a cluster's launcher has started all of them, which says
            in the environment how they meet. Nothing is started then, and the numbers before do not
            count.

    Raises:
        SystemExit: a process ended with an exit status, or by a signal.
    """
    if place is None:
        place = Place(0, 0, num_machines * num_processes_per_machine, num_processes_per_machine)
        is_started = place.num_processes == 1
    else:
        is_started = True
        os.environ.setdefault("MASTER_PORT", "29500")  # as torchrun has it
        dist_url = "env://"
    if not is_started:
        if dist_url == "auto":
            dist_url = f"tcp://127.0.0.1:{_free_port()}"
        _start_processes(main, place, machine_rank, dist_url, args, device)
    elif place.num_processes == 1:
        main(*args)
    else:
        _run(main, place, dist_url, args, device)


def _start_processes(main, place, machine_rank, dist_url, args, device):
    # Says of each process that it is ended, also where all of them end as they should.
    logging.getLogger(mp.spawn.__module__).setLevel(logging.ERROR)
    context = mp.spawn(
        _run_started,
        nprocs=place.num_local,
        args=(main, place, machine_rank, dist_url, args, device),
        join=False,
    )
    with _signals_passed_on(context.pids()) as passed_on:
        try:
            while not context.join():
                pass
        except mp.ProcessExitedException as error:
            if error.exit_code > 0:  # by sys.exit(), which has said why
                raise SystemExit(error.exit_code) from None
            if passed_on:  # before the training had begun
                raise SystemExit(128 + passed_on[0]) from None
            raise SystemExit(
                f"error: process {error.error_index} was ended by {error.signal_name}; if that is "
                "SIGKILL, the machine may have run out of memory."
            ) from None


@contextmanager
def _signals_passed_on(processes: list[int]):
    """A scheduler may know of this process only, and would end it."""
    passed_on: list[int] = []

    def pass_on(number, frame):
        passed_on.append(number)
        for process in processes:
            try:
                os.kill(process, number)
            except ProcessLookupError:  # which has ended
                pass

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield passed_on
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_started(local_rank, main, of_first, machine_rank, dist_url, args, device):
    if device == "cpu":
        # Each process taking all cores would be slower than one process alone.
        torch.set_num_threads(max(torch.get_num_threads() // of_first.num_local, 1))
    rank = machine_rank * of_first.num_local + local_rank
    place = Place(rank, local_rank, of_first.num_processes, of_first.num_local)
    _run(main, place, dist_url, args, device)


def _run(main, place, dist_url, args, device):
    if device != "cpu":
        # Slurm may have each process see its own GPU only.
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    job = {"rank": place.rank, "world_size": place.num_processes, "timeout": _TIMEOUT}
    where = dist_url
    if dist_url == "env://":
        where = "{MASTER_ADDR}, MASTER_PORT {MASTER_PORT}".format_map(os.environ)
    with user_errors_exit(), phase(f"meeting the other processes at {where}"):
        store, *_ = next(dist.rendezvous(dist_url, **job))
        # torchrun may keep the store over a restart, and what the processes before have left in it.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt_{attempt}", store)
        dist.init_process_group("gloo" if device == "cpu" else "nccl", store=store, **job)
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(place.num_local)
    else:  # Detectron2 before 0.6 keeps this group for its own launch to set
        for first in range(0, place.num_processes, place.num_local):
            group = dist.new_group(list(range(first, first + place.num_local)))
            if first <= place.rank < first + place.num_local:
                comm._LOCAL_PROCESS_GROUP = group
    try:
        main(*args)
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
