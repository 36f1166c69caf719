"""Focal loss on the softmax of an R-CNN (Lin et al., ICCV 2017)."""

import torch

from .checks import check
from .statistics import SampleStatistics, SampleWeights
from .weighters import SAMPLE_WEIGHTER_REGISTRY, SampleWeighter

__all__ = ["FocalWeighting"]


@SAMPLE_WEIGHTER_REGISTRY.register()
class FocalWeighting(SampleWeighter):
    """Weight ``alpha_t (1 - p_t)^gamma`` in classification, p_t being the probability of the
    true class or, for negatives, of the background.

    The weight keeps its graph, so that the weighted cross-entropy is the focal loss, gradient
    and all. As in its paper it is divided by the number of positives.
    """

    KEYS = {"GAMMA": 2.0, "ALPHA": -1.0}
    for_dense_detectors = False

    def __init__(self, *, gamma: float = 2.0, alpha: float = -1.0):
        """
        Args:
            gamma: at least 0; with 0 the loss is the cross-entropy.
            alpha: factor of positives, with 1 - alpha for negatives, both between 0 and 1; or -1
                for no such factors.

        Raises:
            UserError: a value is out of its range.
        """
        super().__init__()
        section = "MODEL.SAMPLE_WEIGHTER.FOCALWEIGHTING"
        check(f"{section}.GAMMA", gamma, gamma >= 0, "at least 0")
        check(f"{section}.ALPHA", alpha, 0 <= alpha <= 1 or alpha == -1, "between 0 and 1, or -1")
        self.gamma = gamma
        self.alpha = alpha

    def forward(self, statistics: SampleStatistics) -> SampleWeights:
        # Not quite 0 at p = 1, where a power below 1 has an infinite gradient.
        miss = (1 - statistics.detail("true_prob").float()).clamp(min=1e-7)
        num_positives = statistics.is_foreground.sum().clamp(min=1)
        weights = miss.pow(self.gamma) * (statistics.normalizers["cls"] / num_positives)
        if self.alpha != -1:
            weights = weights * torch.where(statistics.is_foreground, self.alpha, 1 - self.alpha)
        return SampleWeights(cls=weights)
