"""KL-loss: the detector says how sure it is of each coordinate of a box."""

from typing import Any

import torch

from ..errors import UserError
from .statistics import SampleStatistics, SampleWeights
from .weighters import SAMPLE_WEIGHTER_REGISTRY, SampleWeighter

__all__ = ["KLLoss"]


@SAMPLE_WEIGHTER_REGISTRY.register()
class KLLoss(SampleWeighter):
    """Bounding box regression with uncertainty (He et al., CVPR 2019).

    The detector predicts a = log sigma^2 of every coordinate of a box, beside the coordinate
    itself. Its loss is the Kullback-Leibler divergence between that Gaussian and the ground truth,
    for an error d

        exp(-a) d^2 / 2 + a / 2              (Eq. 8), and
        exp(-a) (|d| - 1/2) + a / 2          (Eq. 9) where |d| > 1:

    smooth-L1 with beta 1, weighted by exp(-a), and a regulariser. Coordinates here are Detectron2's
    deltas of centre and size; the paper's are the box's corners.
    """

    for_dense_detectors = False
    uses_log_variance = True

    @classmethod
    def from_config(cls, cfg, *, box_loss_dim: int, has_mask: bool) -> dict[str, Any]:
        """Raises a UserError if the detector predicts no variances, or has another box loss."""
        head = cfg.MODEL.ROI_BOX_HEAD
        if not head.LOG_VARIANCE:
            raise UserError(
                "MODEL.SAMPLE_WEIGHTER.NAME is KLLoss, which needs the variances of the predicted "
                "boxes; set MODEL.ROI_BOX_HEAD.LOG_VARIANCE to True."
            )
        cls.check_box_loss(box_loss_dim, head.SMOOTH_L1_BETA, head.BBOX_REG_LOSS_WEIGHT)
        return super().from_config(cfg, box_loss_dim=box_loss_dim, has_mask=has_mask)

    @staticmethod
    def check_box_loss(box_loss_dim: int, beta: float, factor: float) -> None:
        """Raise a UserError unless the box loss has columns, of smooth-L1, with this beta, and the
        detector multiplies it by 1."""
        if box_loss_dim != 4 or beta != 1:
            raise UserError(
                "MODEL.SAMPLE_WEIGHTER.NAME is KLLoss, which is defined on smooth-L1 with beta 1; "
                "set MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE to smooth_l1 and SMOOTH_L1_BETA to 1.0."
            )
        if factor != 1:
            raise UserError(
                "MODEL.SAMPLE_WEIGHTER.NAME is KLLoss, of which MODEL.ROI_BOX_HEAD."
                "BBOX_REG_LOSS_WEIGHT would scale one term and not the other; set it to 1.0."
            )

    def forward(self, statistics: SampleStatistics) -> SampleWeights:
        """Box weights (R, 4) and ``loss_kl``, the mean of a / 2 that is divided as the box loss
        is. Both train the detector, from where a comes."""
        log_variance = statistics.detail("log_variance")  # 0 for negatives
        given = statistics.detail("given_box_weight")
        half = (given[:, None] * log_variance).sum() / 2
        return SampleWeights(
            box=torch.exp(-log_variance),
            regularizers={"loss_kl": half / statistics.normalizers["box"]},
        )
