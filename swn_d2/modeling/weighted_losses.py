"""From the samples of a batch to the losses that a Detectron2 model returns."""

from collections.abc import Mapping

from torch import Tensor

from .. import weighting
from ..weighting import SampleLosses, SampleStatistics, SampleWeighter
from .logging import log_sample_weights

__all__ = ["weighted_losses"]

#: The names that most of Detectron2's detectors give to the losses of our tasks.
_LOSS_NAMES = {"cls": "loss_cls", "box": "loss_box_reg", "mask": "loss_mask"}


def weighted_losses(
    sample_weighter: SampleWeighter,
    losses: SampleLosses,
    statistics: SampleStatistics,
    names: Mapping[str, str] = _LOSS_NAMES,
) -> dict[str, Tensor]:
    """:func:`swn_d2.weighting.weighted_losses` by Detectron2's names; it logs the weights, too."""
    return weighting.weighted_losses(sample_weighter, losses, statistics, names, log_sample_weights)
