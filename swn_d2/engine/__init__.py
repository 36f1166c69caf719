"""Training: two optimisers as one, the trainer, its checkpoints, the launch of processes."""

from .checkpoint import (
    SafeCheckpointer,
    is_sample_weighter_key,
    last_checkpoint,
    read_checkpoint,
    write_checkpoint,
    write_new_checkpoint,
)
from .cluster import Place, find_place, is_restart, note_start
from .launch import launch
from .optimizer import (
    JointOptimizer,
    build_joint_optimizer,
    join_adam,
    sample_weighter_parameters,
)
from .setup import check_run, check_weights, choose_device
from .start import folder_of_run, note_evaluation, resume_command, start_run, write_config
from .trainer import SWNTrainer
from .values import check_values

__all__ = [
    "JointOptimizer",
    "Place",
    "SWNTrainer",
    "SafeCheckpointer",
    "build_joint_optimizer",
    "check_run",
    "check_values",
    "check_weights",
    "choose_device",
    "find_place",
    "folder_of_run",
    "is_restart",
    "is_sample_weighter_key",
    "join_adam",
    "last_checkpoint",
    "launch",
    "note_evaluation",
    "note_start",
    "read_checkpoint",
    "resume_command",
    "sample_weighter_parameters",
    "start_run",
    "write_checkpoint",
    "write_config",
    "write_new_checkpoint",
]
