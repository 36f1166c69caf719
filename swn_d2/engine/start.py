"""The start of a run, in each of its processes."""

import logging
import os
from argparse import Namespace
from pathlib import Path

import torch
from detectron2.engine import defaults
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..files import write_text
from .setup import trace_of_training

__all__ = ["EVALUATION_CONFIG", "start_run", "write_config"]

#: The config of the last evaluation in a run's folder, beside what it found.
EVALUATION_CONFIG = os.path.join("inference", "config.yaml")

_logger = logging.getLogger(__name__)


def start_run(cfg, args: Namespace) -> None:
    """Begin the log and seed the random numbers, as Detectron2's ``default_setup`` does. That also
    replaces config.yaml, before it is known whether the run can go on: see :func:`write_config`.

    Args:
        cfg: the run's config.
        args: the command line, with ``eval_only``.
    """
    rank = comm.get_rank()
    for name in ("fvcore", "detectron2", "swn_d2"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name)
    _logger.info(f"Rank of current process: {rank}. World size: {comm.get_world_size()}")
    _logger.info(f"Environment info:\n{collect_env_info()}")
    _logger.info(f"Command line arguments: {args}")
    _logger.info(f"Running with full config:\n{cfg.dump()}")
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not args.eval_only:  # a test set is too small to make up for its cost
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.get("FLOAT32_PRECISION"):  # which Detectron2 has since 2024
        defaults._set_float32_precision(cfg.FLOAT32_PRECISION)


def write_config(cfg, *, eval_only: bool) -> None:
    """Write the run's config.yaml, once its weights are loaded and nothing keeps it from going on.

    An evaluation in the folder of a training leaves the training's as it is; its own will be
    :data:`EVALUATION_CONFIG`.

    Raises:
        UserError: it can't be written.
    """
    if not comm.is_main_process():
        return
    folder = Path(cfg.OUTPUT_DIR)
    if not (eval_only and trace_of_training(folder)):
        write_text(folder / "config.yaml", cfg.dump())
