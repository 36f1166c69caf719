"""What is checked before a run costs any time."""

import os

import torch

from ..data import check_datasets
from ..errors import UserError

__all__ = ["check_run", "choose_device"]


def choose_device(cfg) -> None:
    """Set ``MODEL.DEVICE`` to the CPU, in place, where there is no GPU."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"


def check_run(cfg, *, eval_only: bool, resume: bool) -> None:
    """Raise a :class:`UserError` for what would fail, or destroy something, later in the run.

    Args:
        cfg: the run's config.
        eval_only, resume: the command line's flags.
    """
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
