"""IoU-balanced losses (Wu and Li, arXiv:1908.05641)."""

import torch

from .checks import check
from .objective import preserve_total_loss
from .statistics import SampleStatistics, SampleWeights
from .weighters import SAMPLE_WEIGHTER_REGISTRY, SampleWeighter

__all__ = ["IoUBalanced"]

# Where all IoUs of a batch are 0, its positives weigh the same instead of nothing.
_SMALLEST_IOU = 1e-3


@SAMPLE_WEIGHTER_REGISTRY.register()
class IoUBalanced(SampleWeighter):
    """Positives whose predicted box is better placed count more: in classification by IoU^eta, in
    the box loss by IoU^lambda. The total loss of the positives stays what it is."""

    KEYS = {"CLS_POWER": 1.5, "BOX_POWER": 1.5}

    def __init__(self, *, cls_power: float = 1.5, box_power: float = 1.5):
        """
        Args:
            cls_power: eta of the paper, at least 0; with 0 the task is not weighted.
            box_power: lambda of the paper, the same for the box loss.

        Raises:
            UserError: a value is out of its range.
        """
        super().__init__()
        self.powers = {"cls": cls_power, "box": box_power}
        for task, power in self.powers.items():
            key = f"MODEL.SAMPLE_WEIGHTER.IOUBALANCED.{task.upper()}_POWER"
            check(key, power, power >= 0, "at least 0")

    def forward(self, statistics: SampleStatistics) -> SampleWeights:
        statistics = statistics.finite()
        iou = statistics.iou.clamp(min=_SMALLEST_IOU)
        positives = statistics.is_foreground
        result = SampleWeights()
        for task, power in self.powers.items():
            weights = iou.pow(power)
            factor = preserve_total_loss(weights, statistics.counted_loss(task), positives)
            weights = torch.where(positives, weights * factor, torch.ones_like(weights))
            setattr(result, task, weights)
        return result
