"""The start of a run, in each of its processes."""

import json
import logging
import math
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.engine import defaults
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..data.sample_weights import without_weights
from ..files import write_text
from ..own import note_own
from ..shell import join_words
from .checkpoint import last_checkpoint
from .console import tidy_console
from .setup import trace_of_training

__all__ = [
    "EVALUATION_CONFIG",
    "EVALUATION_METRICS",
    "folder_of_run",
    "note_evaluation",
    "resume_command",
    "start_run",
    "write_config",
]

#: The config of the last evaluation in a run's folder, beside what it found.
EVALUATION_CONFIG = os.path.join("inference", "config.yaml")
#: What it measured, if it was none of the training, whose metrics.json has that.
EVALUATION_METRICS = os.path.join("inference", "metrics.json")

_logger = logging.getLogger(__name__)


def start_run(cfg, args: Namespace) -> None:
    """Begin the log and seed the random numbers, as Detectron2's ``default_setup`` does. That also
    replaces config.yaml, before it is known whether the run can go on: see :func:`write_config`.

    Args:
        cfg: the run's config. A training without a ``SEED`` is given one, in place: that of the run
            that it resumes, or a new one.
        args: the command line, with ``eval_only`` and ``resume``.
    """
    if cfg.SEED < 0 and not args.eval_only:
        seed = _seed_of_run(cfg.OUTPUT_DIR) if args.resume else None
        if seed is None:
            seed = int.from_bytes(os.urandom(4), "big") // 2
        cfg.defrost()
        cfg.SEED = comm.all_gather(seed)[0]
        cfg.freeze()
    rank = comm.get_rank()
    names = ("fvcore", "detectron2", "swn_d2")
    for name in names:
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name)
    tidy_console([logging.getLogger(name) for name in names])
    # A disk that is full is told once, where something else is written; not for each line of a log.
    logging.raiseExceptions = False
    for line in _introduction(cfg, eval_only=args.eval_only):
        _logger.info(line)
    _logger.debug(f"Rank of current process: {rank}. World size: {comm.get_world_size()}")
    # It has torch look for a compiler for the GPU, and say so on stderr where there is no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    _logger.debug(f"Environment info:\n{collect_env_info()}")
    _logger.debug(f"Command line arguments: {args}")
    _logger.debug(f"Running with full config:\n{cfg.dump()}")
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not args.eval_only:  # a test set is too small to make up for its cost
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.get("FLOAT32_PRECISION"):  # which Detectron2 has since 2024
        defaults._set_float32_precision(cfg.FLOAT32_PRECISION)


def _introduction(cfg, *, eval_only: bool) -> Iterator[str]:
    """What runs, on what, and where the rest is said, in lines for a terminal."""
    detector, weighter = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SAMPLE_WEIGHTER.NAME
    is_weighted = weighter != "Uniform" and not without_weights(cfg)
    if "RetinaNet" not in detector:
        detector += f" with {cfg.MODEL.ROI_HEADS.NAME}"
    yield (
        f"{'Evaluating' if eval_only else 'Training'} {detector}"
        f"{f', weighted by {weighter}' if is_weighted else ''}"
    )
    trained = "" if eval_only else f"{', '.join(cfg.DATASETS.TRAIN)}, "
    yield f"Data: {trained}tested on {', '.join(cfg.DATASETS.TEST) or 'nothing'}"
    device = cfg.MODEL.DEVICE
    if device == "cpu":
        why = "as MODEL.DEVICE says" if torch.cuda.is_available() else "there is no GPU"
        device = f"the CPU ({why})"
    if comm.get_world_size() > 1:
        device += f", {comm.get_world_size()} processes"
    yield f"Device: {device}"
    yield f"Folder: {cfg.OUTPUT_DIR}, with every detail in log.txt"
    if not eval_only and is_weighted:
        yield f"Losses are as {weighter} weights them: compare runs by AP, not by losses"


def folder_of_run(config_file: str) -> str | None:
    """The folder of the training whose ``config.yaml`` a config file is; None if it is of none, or
    there is no checkpoint to go on from.

    The ``OUTPUT_DIR`` in it is that folder only where the training was started, and until it moves.
    """
    folder, name = os.path.split(config_file)
    return (folder or ".") if name == "config.yaml" and last_checkpoint(folder) else None


def resume_command(argv: Sequence[str], folder: str | None = None) -> str:
    """The command that goes on with the run of a train_net.py.

    Args:
        argv: the script and its arguments. A launcher that started it is left to the reader.
        folder: the run's, where the config file would else lead to another run.
    """
    script, *arguments = argv
    if folder is not None and "OUTPUT_DIR" not in arguments:
        arguments += ["OUTPUT_DIR", folder]
    if "--resume" not in arguments:
        arguments.insert(0, "--resume")  # KEY VALUE come last
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    return join_words([python, script, *arguments])


def _seed_of_run(folder: str) -> int | None:
    """What its config.yaml has, which is there before the first checkpoint."""
    try:
        seed = yaml.safe_load(Path(folder, "config.yaml").read_text(encoding="utf-8"))["SEED"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return None
    return seed if isinstance(seed, int) and seed >= 0 else None


def write_config(cfg, *, eval_only: bool) -> None:
    """Write the run's config.yaml, and what is one's own of its data, once its weights are loaded
    and nothing keeps it from going on.

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
    note_own(folder, cfg, is_training=not eval_only)


def note_evaluation(cfg, results: Mapping[str, Any]) -> None:
    """Write :data:`EVALUATION_METRICS` of an evaluation by itself, "task/metric" -> percent.

    Args:
        results: what :meth:`.trainer.SWNTrainer.test` returned.

    Raises:
        UserError: it can't be written.
    """
    if comm.is_main_process():
        metrics = {
            name: float(value) if math.isfinite(value) else None  # AP without objects
            for name, value in flatten_results_dict(results).items()
        }
        write_text(Path(cfg.OUTPUT_DIR) / EVALUATION_METRICS, json.dumps(metrics, indent=1) + "\n")
