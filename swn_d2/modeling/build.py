"""The sample weighter that a detector's config asks for, and what it needs of the detector."""

import logging

import torch
from detectron2.modeling import RetinaNet
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

from ..errors import UserError
from ..weighting import SWN, SampleWeighter, build_sample_weighter
from .box_losses import box_loss_dim

__all__ = [
    "build_weighter",
    "refuse_untrained_variance",
    "same_random_numbers_after",
    "warn_of_l1",
]


def same_random_numbers_after():
    """A block that leaves the CPU's generator, from which models are initialised, as it was.

    So a seed gives the same detector with and without a weighter."""
    return torch.random.fork_rng(devices=[])


def build_weighter(cfg, *, box_loss_type: str, has_mask: bool) -> SampleWeighter:
    """The weighter of a detector.

    Args:
        cfg: a Detectron2 config with swn_d2's keys.
        box_loss_type: the type of the detector's box loss.
        has_mask: whether the detector has a mask loss per region.

    Raises:
        UserError: there is no such box loss or weighter, or the weighter refuses its settings.
    """
    with same_random_numbers_after():
        return build_sample_weighter(
            cfg, box_loss_dim=box_loss_dim(box_loss_type), has_mask=has_mask
        )


def refuse_untrained_variance(weighter: SampleWeighter, detector: FastRCNNOutputLayers) -> None:
    """Raise a UserError if a layer for variances would get no gradient."""
    if detector.log_variance is not None and not weighter.uses_log_variance:
        raise UserError(
            "MODEL.ROI_BOX_HEAD.LOG_VARIANCE is True, but the sample weighter "
            f"{type(weighter).__name__} does not train the variances; set it to False, or "
            "MODEL.SAMPLE_WEIGHTER.NAME to KLLoss."
        )


def warn_of_l1(weighter: SampleWeighter, detector: FastRCNNOutputLayers | RetinaNet) -> None:
    """Warn where learned weights meet a box loss that does not flatten out near zero."""
    is_l1 = detector.box_reg_loss_type == "smooth_l1" and detector.smooth_l1_beta == 0
    if is_l1 and isinstance(weighter, SWN):
        key, value = "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 1.0
        if isinstance(detector, RetinaNet):
            key, value = "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", 0.11
        logging.getLogger(__name__).warning(
            f"The box loss is plain L1, with which SWN gives the best-placed boxes the largest "
            f"gradients, and training can fail. Set {key} to {value}, for SWN and for the baseline "
            "that it is compared with."
        )
