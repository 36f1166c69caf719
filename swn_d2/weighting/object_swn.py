"""SWN for wrong classes: an object's class counts as much as it is likely to be right."""

from typing import Any

import torch

from .checks import check
from .rightness import ClassRightness
from .statistics import SampleStatistics, SampleWeights
from .weighters import SAMPLE_WEIGHTER_REGISTRY, SampleWeighter

__all__ = ["ObjectSWN"]


@SAMPLE_WEIGHTER_REGISTRY.register()
class ObjectSWN(SampleWeighter):
    """Weights the class of every positive by :class:`ClassRightness`. (Not in the paper.)"""

    KEYS = {"WINDOW": 1}

    def __init__(self, *, window: int = 1, box_loss_dim: int = 4):
        """
        Args:
            window: of the :class:`~swn_d2.weighting.ObjectMemory`, at least 1: this batch alone.
            box_loss_dim: D, columns of the detector's box loss.

        Raises:
            UserError: an argument is out of its range.
        """
        super().__init__()
        check("MODEL.SAMPLE_WEIGHTER.OBJECTSWN.WINDOW", window, window >= 1, "at least 1")
        self.rightness = ClassRightness(box_loss_dim=box_loss_dim, window=window)

    @classmethod
    def from_config(cls, cfg, *, box_loss_dim: int, has_mask: bool) -> dict[str, Any]:
        return {
            **super().from_config(cfg, box_loss_dim=box_loss_dim, has_mask=has_mask),
            "box_loss_dim": box_loss_dim,
        }

    def forward(self, statistics: SampleStatistics) -> SampleWeights:
        with torch.autocast(statistics.cls_loss.device.type, enabled=False):
            cls, learned, objective = self.rightness(statistics.finite())
        return SampleWeights(
            cls=cls, regularizers={"loss_swn_cls": objective}, learned={"cls": learned}
        )
