"""What is checked before a run costs any time."""

import logging
import os

import torch

from ..data import check_datasets
from ..errors import UserError

__all__ = ["check_run", "choose_device"]


def choose_device(cfg) -> None:
    """Set ``MODEL.DEVICE`` to the CPU, in place, where there is no GPU."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logging.getLogger(__name__).warning("There is no GPU: running on the CPU.")
        cfg.MODEL.DEVICE = "cpu"


def check_run(
    cfg, *, eval_only: bool, resume: bool, num_processes_per_machine: int = 1, num_machines: int = 1
) -> None:
    """Raise a :class:`UserError` for what would fail, or destroy something, later in the run.

    Args:
        cfg: the run's config.
        eval_only, resume, num_processes_per_machine, num_machines: from the command line.
    """
    key = "DATASETS.TEST" if eval_only else "DATASETS.TRAIN"
    if not (cfg.DATASETS.TEST if eval_only else cfg.DATASETS.TRAIN):
        raise UserError(f"{key} is empty: give a --config-file, or {key} \"('NAME',)\".")
    num_gpus = torch.cuda.device_count()
    if cfg.MODEL.DEVICE != "cpu" and num_processes_per_machine > num_gpus:
        raise UserError(
            f"--num-gpus is {num_processes_per_machine}, but this machine has {num_gpus}."
        )
    world_size = num_processes_per_machine * num_machines
    if not eval_only and cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} can't be divided among {world_size} "
            "processes; change it, or --num-gpus."
        )
    if not eval_only and not resume:
        for trace in ("last_checkpoint", "metrics.json"):
            if os.path.exists(os.path.join(cfg.OUTPUT_DIR, trace)):
                raise UserError(
                    f"{cfg.OUTPUT_DIR} already holds a run ({trace}). Continue it with --resume, "
                    "or give this one another OUTPUT_DIR."
                )
    if cfg.SOLVER.AMP.ENABLED and not eval_only and cfg.MODEL.DEVICE == "cpu":
        raise UserError(
            "SOLVER.AMP.ENABLED needs a GPU, and there is none; add SOLVER.AMP.ENABLED False."
        )
    check_datasets(cfg, eval_only=eval_only)
