"""SWN for wrong classes: an object's class counts as much as it is likely to be right."""

from typing import Any

import torch

from .checks import check_columns
from .rightness import ClassRightness
from .statistics import SampleStatistics, SampleWeights
from .weighters import SAMPLE_WEIGHTER_REGISTRY, SampleWeighter

__all__ = ["ObjectSWN"]


@SAMPLE_WEIGHTER_REGISTRY.register()
class ObjectSWN(SampleWeighter):
    """Weights the class of every positive by :class:`ClassRightness`. (Not in the paper.)"""

    def __init__(self, *, box_loss_dim: int = 4):
        """
        Args:
            box_loss_dim: D, columns of the detector's box loss.
        """
        super().__init__()
        self.rightness = ClassRightness(box_loss_dim=box_loss_dim)

    @classmethod
    def from_config(cls, cfg, *, box_loss_dim: int, has_mask: bool) -> dict[str, Any]:
        return {"box_loss_dim": box_loss_dim}

    def check_detector(self, *, is_dense: bool, box_loss_dim: int, has_mask: bool) -> None:
        super().check_detector(is_dense=is_dense, box_loss_dim=box_loss_dim, has_mask=has_mask)
        check_columns("ObjectSWN", self.rightness.network.box_loss_dim, box_loss_dim)

    def forward(self, statistics: SampleStatistics) -> SampleWeights:
        with torch.autocast(statistics.cls_loss.device.type, enabled=False):
            label, objective = self.rightness(statistics.finite())
        return SampleWeights(
            label=label, regularizers={"loss_swn_cls": objective}, learned={"label": label}
        )
