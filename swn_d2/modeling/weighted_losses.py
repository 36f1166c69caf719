"""From the samples of a batch to the losses that a Detectron2 model returns."""

from torch import Tensor

from ..weighting import SampleLosses, SampleStatistics, SampleWeighter
from .logging import log_sample_weights

__all__ = ["weighted_losses"]

#: The names that Detectron2's detectors give to the losses of our tasks.
_LOSS_NAMES = {"cls": "loss_cls", "box": "loss_box_reg", "mask": "loss_mask"}


def weighted_losses(
    sample_weighter: SampleWeighter, losses: SampleLosses, statistics: SampleStatistics
) -> dict[str, Tensor]:
    """Loss name -> 0-d tensor: Detectron2's own losses, weighted, and the weighter's regularisers.

    The step that all detectors share. It logs the weights, too.
    """
    weights = sample_weighter(statistics)
    log_sample_weights(statistics, weights)
    weighted = {_LOSS_NAMES[task]: loss for task, loss in losses.weighted(weights).items()}
    return {**weighted, **weights.regularizers}
