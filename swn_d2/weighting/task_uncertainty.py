"""One learned weight per task, which the paper's network refines to one per sample."""

from typing import Any

import torch
from torch import nn

from .checks import check_masks
from .statistics import TASKS, SampleStatistics, SampleWeights
from .weighters import SAMPLE_WEIGHTER_REGISTRY, SampleWeighter

__all__ = ["TaskUncertainty"]


@SAMPLE_WEIGHTER_REGISTRY.register()
class TaskUncertainty(SampleWeighter):
    """Kendall, Gal and Cipolla, "Multi-task learning using uncertainty to weigh losses", CVPR 2018.

    With s = log sigma^2 of a task, learned beside the detector and 0 at the start, the task's loss
    L becomes ``exp(-s) L + s / 2``: the paper's Eq. 10 for classification. (For a squared error
    its Eq. 7 has ``exp(-s) L / 2``; losses of boxes are not squared errors throughout, and the
    half would make them start at half their weight, so every task is taken alike.)
    """

    learns_by_weights = True

    def __init__(self, *, has_mask: bool = False):
        """
        Args:
            has_mask: whether the detector has a mask loss.
        """
        super().__init__()
        self.log_variance = nn.ParameterDict(
            {task: nn.Parameter(torch.zeros(())) for task in TASKS if has_mask or task != "mask"}
        )

    @classmethod
    def from_config(cls, cfg, *, box_loss_dim: int, has_mask: bool) -> dict[str, Any]:
        return {"has_mask": has_mask}

    def check_detector(self, *, is_dense: bool, box_loss_dim: int, has_mask: bool) -> None:
        super().check_detector(is_dense=is_dense, box_loss_dim=box_loss_dim, has_mask=has_mask)
        check_masks("TaskUncertainty", "mask" in self.log_variance, has_mask)

    def forward(self, statistics: SampleStatistics) -> SampleWeights:
        result = SampleWeights()
        for task, s in self.log_variance.items():
            setattr(result, task, torch.exp(-s).expand(len(statistics)))
            result.regularizers[f"loss_uncertainty_{task}"] = s / 2
        return result
