"""Training in several processes, which must stay of one mind."""

import multiprocessing
import socket
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from ..engine import build_joint_optimizer
from .detectors import Bench, build_detector, random_picture
from .outcomes import CheckFailed, Figure, LeftOut
from .precision import amp_step, grad_scaler
from .scale import Scale

__all__ = ["check_processes"]

_ITERATIONS = 3
_PATIENCE = 90  # seconds


def check_processes(configs: Path, scale: Scale, *, num_processes: int) -> list[Figure]:
    """A few iterations on different pictures in processes that talk by NCCL, on a CPU by gloo,
    leave all of them with the same, finite parameters.

    Raises:
        CheckFailed: they do not, or they do not come to an end.
        LeftOut: there are fewer GPUs than processes.
    """
    backend = "nccl" if scale.device == "cuda" else "gloo"
    if scale.device == "cuda" and torch.cuda.device_count() < num_processes:
        raise LeftOut(f"this machine has {torch.cuda.device_count()} GPU")
    start = time.monotonic()
    arguments = (num_processes, backend, f"tcp://127.0.0.1:{_free_port()}", configs, scale)
    # From a process that has no GPU in use and has imported all this once, for all of them.
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    context = mp.start_processes(
        _train, args=arguments, nprocs=num_processes, join=False, start_method="forkserver"
    )
    try:
        while not context.join(timeout=1):
            if time.monotonic() - start > _PATIENCE:
                raise CheckFailed(f"{backend} did not come to an end within {_PATIENCE} s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [Figure(f"processes of the same mind, {backend}", num_processes)]


def _train(
    rank: int, num_processes: int, backend: str, url: str, configs: Path, scale: Scale
) -> None:
    if scale.device == "cuda":
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    dist.init_process_group(backend, init_method=url, world_size=num_processes, rank=rank)
    try:
        cfg = Bench(configs, scale).config("faster_rcnn", swn=True)
        model = build_detector(cfg)
        optimizer = build_joint_optimizer(cfg, model)
        model = DistributedDataParallel(
            model,
            device_ids=[rank] if scale.device == "cuda" else None,
            broadcast_buffers=False,
        )
        scaler = grad_scaler(scale.device, enabled=scale.device == "cuda")
        precision = "float16" if scale.device == "cuda" else "float32"
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        pictures = [random_picture(*scale.picture_size, num_classes, seed=rank)]
        for iteration in range(_ITERATIONS):
            amp_step(model, optimizer, scaler, pictures, iteration, precision)
        _compare(model)
    finally:
        dist.destroy_process_group()


def _compare(model: torch.nn.Module) -> None:
    """Raise a CheckFailed unless every process has these parameters."""
    parameters = torch.cat([p.detach().flatten().float() for p in model.parameters()])
    if not parameters.isfinite().all():
        raise CheckFailed("the parameters are not finite")
    smallest, largest = parameters.clone(), parameters.clone()
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    if not torch.equal(smallest, largest):
        raise CheckFailed("the processes have different parameters")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
