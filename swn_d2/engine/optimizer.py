"""The optimiser that a config asks for: the detector's and the weighter's as one."""

from detectron2.solver import build_optimizer
from torch import nn

from ..weighting import JointOptimizer, join_adam, sample_weighter_parameters

__all__ = ["JointOptimizer", "build_joint_optimizer", "join_adam", "sample_weighter_parameters"]


def build_joint_optimizer(cfg, model: nn.Module) -> JointOptimizer:
    """The optimiser that a config asks for: :func:`join_adam` on Detectron2's own.

    Args:
        cfg: a Detectron2 config with swn_d2's keys.
        model: the detector with its weighters.
    """
    return join_adam(
        sample_weighter_parameters(model),
        detector=build_optimizer(cfg, model),
        weighter={"lr": cfg.SOLVER.SWN.BASE_LR, "weight_decay": cfg.SOLVER.SWN.WEIGHT_DECAY},
    )
