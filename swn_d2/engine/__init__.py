"""Training: two optimisers as one, the trainer, its checkpoints, the launch of processes."""

from .checkpoint import (
    SafeCheckpointer,
    is_sample_weighter_key,
    read_checkpoint,
    write_checkpoint,
    write_new_checkpoint,
)
from .launch import launch
from .optimizer import (
    JointOptimizer,
    build_joint_optimizer,
    join_adam,
    sample_weighter_parameters,
)
from .setup import check_run, choose_device
from .start import start_run, write_config
from .trainer import SWNTrainer
from .values import check_values

__all__ = [
    "JointOptimizer",
    "SWNTrainer",
    "SafeCheckpointer",
    "build_joint_optimizer",
    "check_run",
    "check_values",
    "choose_device",
    "is_sample_weighter_key",
    "join_adam",
    "launch",
    "read_checkpoint",
    "sample_weighter_parameters",
    "start_run",
    "write_checkpoint",
    "write_config",
    "write_new_checkpoint",
]
