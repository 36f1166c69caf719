"""The sample weighter that a detector's config asks for, and what it needs of the detector."""

import logging

import torch
from detectron2.modeling import RetinaNet
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

from ..errors import UserError
from ..weighting import SWN, SampleWeighter, build_sample_weighter
from ..weighting.kl_loss import KLLoss
from ..weighting.ohem import OHEM
from .box_losses import box_loss_dim

__all__ = [
    "build_weighter",
    "check_regions",
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


def check_regions(
    weighter: SampleWeighter,
    detector: FastRCNNOutputLayers,
    *,
    has_mask: bool,
    positive_fraction: float,
) -> None:
    """Raise a UserError if the weighter is not for the regions of an R-CNN, or not for their box
    loss. A config is checked before; a detector can be made without one.

    Args:
        has_mask: whether there is a mask loss per region.
        positive_fraction: of the regions that the detector samples.
    """
    columns = box_loss_dim(detector.box_reg_loss_type)
    weighter.check_detector(is_dense=False, box_loss_dim=columns, has_mask=has_mask)
    if isinstance(weighter, KLLoss):
        factor = detector.loss_weight.get("loss_box_reg", 1.0)
        weighter.check_box_loss(columns, detector.smooth_l1_beta, factor)
    if isinstance(weighter, OHEM) and positive_fraction != 1:
        raise UserError(
            "the sample weighter OHEM selects from all proposals; set MODEL.ROI_HEADS."
            "POSITIVE_FRACTION to 1.0, and BATCH_SIZE_PER_IMAGE to more than an image's proposals "
            "and objects."
        )
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
