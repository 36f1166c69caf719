"""What is checked before a run costs any time."""

import difflib
import os
import re
from importlib.util import find_spec
from pathlib import Path

import torch
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, ROI_HEADS_REGISTRY

from ..config import num_classes
from ..data import check_datasets
from ..data.proposals import check_are_of_the_data, read_proposal_ids
from ..data.sample_weights import WEIGHTS_ARE, is_sample_weight, without_weights
from ..errors import UserError, phase
from ..modeling.inference import Suppression
from ..modeling.timm_backbone import check_timm_config
from ..own.notes import REGISTERED, check_learned_classes
from ..recording import RECORDING, SNAPSHOTS
from ..weighting import build_sample_weighter
from ..weighting.checks import check
from .best import read_best
from .checkpoint import BEST, checkpoints, last_checkpoint
from .environment import ENVIRONMENT
from .values import check_values

__all__ = [
    "check_detector",
    "check_output_dir",
    "check_run",
    "check_weights",
    "choose_device",
    "make_output_dir",
    "trace_of_training",
]

# What a training would write over, or go on with.
_TRACES = ("last_checkpoint", "model_*.pth", "metrics.json", RECORDING, f"{SNAPSHOTS}/*.pth")
# What it writes.
_FILES = (
    *("log.txt", "metrics.json", "config.yaml", "last_checkpoint", "model_final.pth", BEST),
    *(RECORDING, ENVIRONMENT, REGISTERED),
)
_FOLDERS = (SNAPSHOTS, "inference")
_NUM_COCO_SIGMAS = 17


def choose_device(cfg) -> None:
    """Set ``MODEL.DEVICE`` to the CPU, in place, where there is no GPU."""
    if re.fullmatch(r"cuda(:\d+)?", cfg.MODEL.DEVICE) and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"


def check_run(
    cfg,
    *,
    eval_only: bool,
    resume: bool,
    num_processes_per_machine: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    is_placed: bool = False,
) -> None:
    """Raise a :class:`UserError` for what would fail, or destroy something, later in the run.

    Args:
        cfg: the run's config.
        eval_only, resume, num_processes_per_machine, num_machines, machine_rank: from the command
            line.
        is_placed: a cluster's launcher has started the processes, and may have each see its own GPU
            only.
    """
    key = "DATASETS.TEST" if eval_only else "DATASETS.TRAIN"
    if not (cfg.DATASETS.TEST if eval_only else cfg.DATASETS.TRAIN):
        raise UserError(f"{key} is empty: give a --config-file, or {key} \"('NAME',)\".")
    with phase("checking the config"):
        check_values(cfg)
        numbers = num_processes_per_machine, num_machines, machine_rank
        _check_processes(cfg, eval_only, *numbers, is_placed=is_placed)
        _check_masks_and_keypoints(cfg, eval_only)
        check_detector(cfg)
        proposals = _check_files(cfg, eval_only, resume)
    with phase("checking the data sets"):
        categories = check_datasets(cfg, eval_only=eval_only)
        check_are_of_the_data(proposals)
        if eval_only:
            check_learned_classes(os.path.dirname(cfg.MODEL.WEIGHTS), categories)
        elif resume and last_checkpoint(cfg.OUTPUT_DIR):
            check_learned_classes(cfg.OUTPUT_DIR, categories)


def _check_processes(
    cfg,
    eval_only: bool,
    num_processes_per_machine: int,
    num_machines: int,
    machine_rank: int,
    *,
    is_placed: bool,
):
    if num_processes_per_machine < 1 or num_machines < 1:
        raise UserError("--num-gpus and --num-machines must be at least 1.")
    if not 0 <= machine_rank < num_machines:
        raise UserError(
            f"--machine-rank is {machine_rank}, but it must be at least 0 and less than "
            f"--num-machines, which is {num_machines}."
        )
    num_gpus = torch.cuda.device_count()
    # A launcher that binds GPUs says which one this process may see.
    has_own = is_placed and num_gpus == 1 and os.environ.get("CUDA_VISIBLE_DEVICES")
    if cfg.MODEL.DEVICE != "cpu" and num_processes_per_machine > num_gpus and not has_own:
        raise UserError(
            f"--num-gpus is {num_processes_per_machine}, but this machine has {num_gpus}."
        )
    world_size = num_processes_per_machine * num_machines
    batch, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and not eval_only:  # for which Detectron2 scales the batch
        if batch % reference:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH {batch} can't be divided by SOLVER.REFERENCE_WORLD_SIZE "
                f"{reference}; change one of them, or set the latter to 0."
            )
        batch = batch // reference * world_size
    if not eval_only and batch % world_size:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {batch} can't be divided among {world_size} processes; change "
            "it, or --num-gpus."
        )
    if cfg.SOLVER.AMP.ENABLED and not eval_only and cfg.MODEL.DEVICE == "cpu":
        remedy = "MODEL.DEVICE cuda" if torch.cuda.is_available() else "SOLVER.AMP.ENABLED False"
        raise UserError(f"SOLVER.AMP.ENABLED needs a GPU, and MODEL.DEVICE is cpu; add {remedy}.")


def _check_masks_and_keypoints(cfg, eval_only: bool):
    """What would else be known in the training, or after it."""
    cuts = cfg.INPUT.CROP.ENABLED and cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon"
    if cuts and not eval_only and find_spec("shapely") is None:
        raise UserError(
            "INPUT.CROP.ENABLED cuts polygons by shapely, which is not installed; pip install "
            "shapely, or set INPUT.MASK_FORMAT to bitmask."
        )
    number, sigmas = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, cfg.TEST.KEYPOINT_OKS_SIGMAS
    if cfg.MODEL.KEYPOINT_ON and cfg.DATASETS.TEST:
        right = (len(sigmas) or _NUM_COCO_SIGMAS) == number  # COCO's own where there are none
        rule = f"{number} numbers, with MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS {number}"
        check("TEST.KEYPOINT_OKS_SIGMAS", sigmas, right, rule)


def check_detector(cfg) -> None:
    """Raise a :class:`UserError` for a detector, a backbone or a sample weighter that does not
    exist, or does not go with the rest of the config. Looks at no file."""
    for key, name, registry in (
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
        ("MODEL.ROI_HEADS.NAME", cfg.MODEL.ROI_HEADS.NAME, ROI_HEADS_REGISTRY),
    ):
        if name not in registry:
            known = [known for known, _ in registry]
            similar = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {similar[0]}?" if similar else f"it can be {', '.join(known)}."
            raise UserError(f"{key} is {name!r}, which does not exist; {hint}")
    if cfg.MODEL.BACKBONE.NAME.startswith("build_timm_"):
        check_timm_config(cfg)
    meta_architecture, roi_heads = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME
    if meta_architecture == "RetinaNet" and roi_heads.startswith("SWN"):
        raise UserError(
            f"MODEL.ROI_HEADS.NAME is {roi_heads!r}, but a RetinaNet has no ROI heads; to weight "
            "its samples, set MODEL.META_ARCHITECTURE to SWNRetinaNet instead."
        )
    if "RetinaNet" in meta_architecture and cfg.MODEL.MASK_ON:
        raise UserError(
            f"MODEL.MASK_ON is True, but a {meta_architecture} has no masks; set it to False."
        )
    if "CascadeROIHeads" in roi_heads and not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise UserError(
            f"MODEL.ROI_HEADS.NAME is {roi_heads!r}, which needs boxes that do not depend on the "
            "class; set MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG to True."
        )
    # What the weighter itself checks, whatever the type of the box loss.
    build_sample_weighter(cfg, box_loss_dim=4, has_mask=cfg.MODEL.MASK_ON)
    _check_class_weights(cfg)
    _check_options_of_our_classes(cfg)


def _check_options_of_our_classes(cfg):
    """What would silently be left out: Detectron2's own classes do not know ours, and nothing
    here does test-time augmentation."""
    Suppression.from_config(cfg)
    if cfg.TEST.AUG.ENABLED:
        raise UserError(
            "TEST.AUG.ENABLED is True, but pictures are evaluated as they are, without test-time "
            "augmentation; set it to False."
        )
    if not (stock := without_weights(cfg)):
        return
    for option, is_on in (
        ("MODEL.NMS.METHOD", cfg.MODEL.NMS.METHOD != "hard"),
        ("MODEL.NMS.VARIANCE_VOTING", cfg.MODEL.NMS.VARIANCE_VOTING),
        ("MODEL.ROI_BOX_HEAD.LOG_VARIANCE", cfg.MODEL.ROI_BOX_HEAD.LOG_VARIANCE),
        ("MODEL.IOU_HEAD.ENABLED", cfg.MODEL.IOU_HEAD.ENABLED),
        ("MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS", len(cfg.MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS) > 0),
        ("MODEL.SAMPLE_WEIGHTER.NAME", cfg.MODEL.SAMPLE_WEIGHTER.NAME not in ("SWN", "Uniform")),
        ("MODEL.SAMPLE_WEIGHTER.CONTROL", cfg.MODEL.SAMPLE_WEIGHTER.CONTROL != "none"),
    ):
        if is_on:
            raise UserError(f"{option} has no effect on {stock}")


def _check_class_weights(cfg):
    weights = cfg.MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS
    for weight in weights:
        if not is_sample_weight(weight):
            raise UserError(
                f"MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS has {weight!r}, but each weight must be "
                f"{WEIGHTS_ARE}."
            )
    if len(weights) and not any(weights):
        raise UserError(
            "MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS are all 0, so that no object counts; give the "
            "classes that are to be learned other weights."
        )
    key, number = num_classes(cfg)
    if len(weights) not in (0, number):
        raise UserError(
            f"MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS has {len(weights)} weights, but "
            f"{key} is {number}; correct the one that is wrong."
        )


def trace_of_training(folder: str | Path) -> str | None:
    """A file in ``folder`` that shows that a training has been there, None if there is none."""
    for pattern in _TRACES:
        for file in sorted(Path(folder).glob(pattern)):
            # A training that fails as it starts leaves an empty metrics.json.
            if file.is_file() and file.stat().st_size:
                return str(file.relative_to(folder))
    return None


def _check_files(cfg, eval_only: bool, resume: bool) -> dict[str, set[str]]:
    """Returns what :func:`read_proposal_ids` says of all data sets that need proposals."""
    make_output_dir(cfg.OUTPUT_DIR)
    _check_is_writable(Path(cfg.OUTPUT_DIR))
    if not eval_only:
        check_output_dir(cfg.OUTPUT_DIR, resume=resume)
        if resume and cfg.TEST.EVAL_PERIOD > 0 and last_checkpoint(cfg.OUTPUT_DIR):
            read_best(cfg.OUTPUT_DIR)  # as the training will
    if eval_only and not cfg.MODEL.WEIGHTS:
        raise UserError("there is nothing to evaluate: give MODEL.WEIGHTS and a checkpoint.")
    if eval_only or not (resume and last_checkpoint(cfg.OUTPUT_DIR)):  # else not looked at
        check_weights(cfg)
    if not cfg.MODEL.LOAD_PROPOSALS:
        return {}
    training = {} if eval_only else read_proposal_ids(cfg, is_train=True)
    return {**training, **read_proposal_ids(cfg, is_train=False)}


def check_weights(cfg) -> None:
    """Raise a :class:`UserError` if ``MODEL.WEIGHTS`` is a path, and leads to no file."""
    weights = cfg.MODEL.WEIGHTS
    if weights and "://" not in weights and not os.path.isfile(weights):
        backbone = cfg.MODEL.TIMM.NAME
        is_made = weights == f"pretrained/{backbone}.pth"
        raise UserError(
            f"there is no file {weights} (MODEL.WEIGHTS)"
            + (f"; python tools/get_backbone.py {backbone} makes it, once." if is_made else ".")
        )


def make_output_dir(folder: str) -> None:
    """Make a run's folder if there is none.

    Raises:
        UserError: it can't be made.
    """
    if "://" in folder:
        raise UserError(f"OUTPUT_DIR {folder} is a URL; give the path of a folder.")
    if not folder or folder.startswith("~"):
        what = "begins with ~, which only a shell replaces" if folder else "is empty"
        raise UserError(f"OUTPUT_DIR {folder!r} {what}; give the whole path of a folder.")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make OUTPUT_DIR {folder}: {error.strerror}.") from error


def _check_is_writable(folder: Path):
    """What every run writes, or goes on writing."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"OUTPUT_DIR {folder} may not be written to; give another one.")
    for name in _FILES:
        file = folder / name
        if file.exists() and not (file.is_file() and os.access(file, os.W_OK)):
            raise UserError(
                f"{file} may not be written to, or is no file; mend that, or give another "
                "OUTPUT_DIR."
            )
    for name in _FOLDERS:
        if (folder / name).exists() and not (folder / name).is_dir():
            raise UserError(
                f"{folder / name} is no folder; take it away, or give another OUTPUT_DIR."
            )


def check_output_dir(folder: str, *, resume: bool) -> None:
    """Make sure that a training does not write over another one.

    Raises:
        UserError: the folder holds one that is not resumed, or of which it is not known from which
            checkpoint it goes on.
    """
    trace = trace_of_training(folder)
    if trace and not resume:
        raise UserError(
            f"{folder} already holds a run ({trace}). Continue it with --resume (in a script, "
            "resume_or_load(resume=True)), or give this one another OUTPUT_DIR."
        )
    if resume and not last_checkpoint(folder) and (there := checkpoints(folder)):
        raise UserError(
            f"{folder} holds {there[0].name}, but its last_checkpoint is missing, so --resume "
            "would start anew and write over it. Write into that file the name of the checkpoint "
            "to go on from, or give another OUTPUT_DIR."
        )
