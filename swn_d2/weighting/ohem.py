"""OHEM: only the regions with the largest losses count (Shrivastava et al., CVPR 2016)."""

from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .checks import check
from .ranking import rank_within
from .statistics import SampleStatistics, SampleWeights
from .weighters import SAMPLE_WEIGHTER_REGISTRY, SampleWeighter

__all__ = ["OHEM"]


@SAMPLE_WEIGHTER_REGISTRY.register()
class OHEM(SampleWeighter):
    """Weight for the hardest positives and negatives of every image, none for the others.

    The detector must hand over all of its proposals instead of a random sample of them. Those
    that are selected share one weight, with which the losses are means over them.
    """

    KEYS = {"NUM_SAMPLES": 512, "POSITIVE_FRACTION": 0.25}
    for_dense_detectors = False

    def __init__(self, *, num_samples: int = 512, positive_fraction: float = 0.25):
        """
        Args:
            num_samples: regions to select in each image, at least 1.
            positive_fraction: at most this share of them is positive, from 0 to 1; negatives fill
                up the rest.

        Raises:
            UserError: a value is out of its range.
        """
        super().__init__()
        section = "MODEL.SAMPLE_WEIGHTER.OHEM"
        check(f"{section}.NUM_SAMPLES", num_samples, num_samples >= 1, "at least 1")
        check(
            f"{section}.POSITIVE_FRACTION",
            positive_fraction,
            0 <= positive_fraction <= 1,
            "between 0 and 1",
        )
        self.num_samples = num_samples
        self.max_positives = int(positive_fraction * num_samples)

    @classmethod
    def from_config(cls, cfg, *, box_loss_dim: int, has_mask: bool) -> dict[str, Any]:
        """Raises a UserError if the detector would hand over a random sample of its proposals."""
        heads = cfg.MODEL.ROI_HEADS
        key, num_proposals = "MODEL.RPN.POST_NMS_TOPK_TRAIN", cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN
        if cfg.MODEL.LOAD_PROPOSALS:
            key = "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN"
            num_proposals = cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN
        if heads.POSITIVE_FRACTION != 1 or heads.BATCH_SIZE_PER_IMAGE <= num_proposals:
            raise UserError(
                "MODEL.SAMPLE_WEIGHTER.NAME is OHEM, which selects from all proposals; set "
                "MODEL.ROI_HEADS.POSITIVE_FRACTION to 1.0, and MODEL.ROI_HEADS."
                f"BATCH_SIZE_PER_IMAGE to more than the {num_proposals} proposals of {key} and an "
                "image's objects."
            )
        return super().from_config(cfg, box_loss_dim=box_loss_dim, has_mask=has_mask)

    def forward(self, statistics: SampleStatistics) -> SampleWeights:
        selected = self.select(statistics).float()
        # The detector divides by the number of all regions; the mean is over the selected ones.
        num_selected = selected.sum().clamp(min=1)
        result = SampleWeights(
            cls=selected * (statistics.normalizers["cls"] / num_selected),
            box=selected * (statistics.normalizers["box"] / num_selected),
        )
        if statistics.mask_loss is not None:
            num_positives = (selected * statistics.is_foreground).sum().clamp(min=1)
            result.mask = selected * (statistics.normalizers["mask"] / num_positives)
        return result

    def select(self, statistics: SampleStatistics) -> Tensor:
        """(R,) bool, the regions that count."""
        image, is_foreground = statistics.detail("image"), statistics.is_foreground
        # What the data let count; NaN is sorted last.
        loss = statistics.counted_loss("cls") + statistics.counted_loss("box")
        rank = rank_within(2 * image + is_foreground, -loss)
        positives = is_foreground & statistics.counts() & (rank < self.max_positives)
        positives_of_image = torch.bincount(image, weights=positives.float())
        negatives = ~is_foreground & (rank < self.num_samples - positives_of_image[image])
        return positives | negatives
