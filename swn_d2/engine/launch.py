"""One process per GPU, or, without a GPU, as many CPU processes as asked for."""

import socket
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import launch as launch_on_gpus
from detectron2.utils import comm

__all__ = ["launch"]


def launch(
    main: Callable,
    num_processes_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple = (),
    device: str = "cuda",
) -> None:
    """Run ``main(*args)`` in every process of a job; see :func:`detectron2.engine.launch`.

    Where ``device`` is "cpu" the processes talk by gloo, on every version of Detectron2.

    Raises:
        SystemExit: a process ended with an exit status, or by a signal.
    """
    job = (num_processes_per_machine, num_machines, machine_rank, dist_url, args)
    try:
        if device == "cpu" and num_machines * num_processes_per_machine > 1:
            _launch_on_cpu(main, *job)
        else:
            launch_on_gpus(main, *job)
    except mp.ProcessExitedException as error:
        if error.exit_code > 0:  # by sys.exit(), which has said why
            raise SystemExit(error.exit_code) from None
        raise SystemExit(
            f"error: process {error.error_index} was ended by {error.signal_name}; if that is "
            "SIGKILL, the machine may have run out of memory."
        ) from None


def _launch_on_cpu(main, num_processes_per_machine, num_machines, machine_rank, dist_url, args):
    if dist_url == "auto":
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    mp.spawn(
        _run_on_cpu,
        nprocs=num_processes_per_machine,
        args=(main, num_processes_per_machine, num_machines, machine_rank, dist_url, args),
    )


def _run_on_cpu(
    local_rank, main, num_processes_per_machine, num_machines, machine_rank, dist_url, args
):
    # Each process taking all cores would be slower than one process alone.
    torch.set_num_threads(max(torch.get_num_threads() // num_processes_per_machine, 1))
    dist.init_process_group(
        "gloo",
        init_method=dist_url,
        world_size=num_machines * num_processes_per_machine,
        rank=machine_rank * num_processes_per_machine + local_rank,
    )
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(num_processes_per_machine)
    else:  # Detectron2 before 0.6 keeps this group for its own launch to set
        for machine in range(num_machines):
            first = machine * num_processes_per_machine
            group = dist.new_group(list(range(first, first + num_processes_per_machine)))
            if machine == machine_rank:
                comm._LOCAL_PROCESS_GROUP = group
    try:
        main(*args)
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
