"""The sample weighter that a detector's config asks for."""

import logging
from functools import reduce

import torch

from ..weighting import SampleWeighter, build_sample_weighter
from .box_losses import box_loss_dim

__all__ = ["build_weighter", "same_random_numbers_after"]


def same_random_numbers_after():
    """A block that leaves the CPU's generator, from which models are initialised, as it was.

    So a seed gives the same detector with and without a weighter."""
    return torch.random.fork_rng(devices=[])


def build_weighter(cfg, *, box_loss_type: str, beta_key: str, has_mask: bool) -> SampleWeighter:
    """The weighter of a detector.

    Args:
        cfg: a Detectron2 config with swn_d2's keys.
        box_loss_type: the type of the detector's box loss.
        beta_key: the config key of its smooth-L1 beta. Where it is 0, a learned weighter warns.
        has_mask: whether the detector has a mask loss per region.

    Raises:
        UserError: there is no such box loss or weighter, or the weighter refuses its settings.
    """
    beta = reduce(getattr, beta_key.split("."), cfg)
    if box_loss_type == "smooth_l1" and beta == 0 and cfg.MODEL.SAMPLE_WEIGHTER.NAME == "SWN":
        logging.getLogger(__name__).warning(
            f"{beta_key} is 0: with plain L1, SWN gives the best-placed boxes the largest "
            "gradients, and training can fail. Set it to 1.0 for an R-CNN and to 0.11 for a "
            "RetinaNet, for SWN and for the baseline that it is compared with."
        )
    with same_random_numbers_after():
        return build_sample_weighter(
            cfg, box_loss_dim=box_loss_dim(box_loss_type), has_mask=has_mask
        )
