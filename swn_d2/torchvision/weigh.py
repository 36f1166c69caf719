"""The two calls that turn a training of a torchvision detector into a weighted one."""

import inspect
import logging
from operator import attrgetter

import torchvision
from torch import nn
from torch.optim import Optimizer
from torchvision.models import detection
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads

from .. import weighting
from ..errors import UserError
from ..weighting import (
    SWN,
    JointOptimizer,
    ObjectMemory,
    SampleWeighter,
    sample_weighter_parameters,
)
from ..weighting.ohem import OHEM
from .dense import WeightedFCOSHead, WeightedRetinaNetHead
from .rcnn import WeightedRoIHeads
from .weighted import WeightedHead

__all__ = ["join_adam", "weight_samples"]

#: torchvision's class of the part that computes the losses -> ours.
_WEIGHTED = {
    RoIHeads: WeightedRoIHeads,
    RetinaNetHead: WeightedRetinaNetHead,
    FCOSHead: WeightedFCOSHead,
}


def weight_samples(model: nn.Module, weighter: SampleWeighter) -> nn.Module:
    """Put a sample weighter between a detector and its losses, in place.

    In training, the model then returns weighted losses by torchvision's names, and the weighter's
    regularisers. Detections stay as they are, and the state dict gets keys with
    ``sample_weighter`` in their names, and no others.

    Args:
        model: torchvision's Faster R-CNN, Mask R-CNN, RetinaNet or FCOS, on any backbone.
        weighter: for instance ``SWN(ease_in=(4000, 6000))``; "the iteration" is the
            number of the model's forward passes in training.

    Returns:
        The model.

    Raises:
        UserError: the detector is not one of these, or is weighted already; the weighter is not
            for it; or the installed torchvision computes its losses in another way.
    """
    head = _head_of(model)
    weighted = _WEIGHTED[type(head)]
    _check_signatures(weighted)
    _check_weighter(weighter, weighted, head)
    # Another class for the same object: its parameters, and all that refers to it, stay.
    head.__class__ = weighted
    head.add_weighter(weighter.to(next(model.parameters()).device))
    _warn(weighter, head)
    return model


def join_adam(
    optimizer: Optimizer, model: nn.Module, *, lr: float = 0.001, weight_decay: float = 1e-4
) -> JointOptimizer:
    """The detector's optimiser and the weighter's own Adam as one object, for the training loop,
    a learning-rate scheduler, a GradScaler and checkpoints.

    Args:
        optimizer: the detector's, before its first step; whether it has the weighter's parameters
            makes no difference. It belongs to the result from here on.
        model: the detector with its weighter.
        lr, weight_decay: Adam's. A scheduler made for the result changes both rates by the same
            factor.

    Raises:
        UserError: the optimiser has made steps already.
    """
    if optimizer.state:
        raise UserError(
            "the optimizer has made steps already; call join_adam on a new one, before the "
            "training, and load a checkpoint into what it returns."
        )
    params = sample_weighter_parameters(model)
    adam = {"lr": lr, "weight_decay": weight_decay}
    return weighting.join_adam(params, detector=optimizer, weighter=adam)


def _head_of(model: nn.Module) -> nn.Module:
    for name in ("roi_heads", "head"):
        head = getattr(model, name, None)
        if isinstance(head, WeightedHead):
            raise UserError(
                f"the {type(model).__name__} has a sample weighter already, "
                f"{type(head.sample_weighter).__name__}; give weight_samples a new model."
            )
        if type(head) in _WEIGHTED:
            return head
    raise UserError(
        f"samples of a {type(model).__name__} can't be weighted; torchvision's FasterRCNN, "
        "MaskRCNN, RetinaNet and FCOS can, with their own heads and before they are wrapped. For "
        "another detector see docs/other_detectors.md."
    )


def _check_signatures(weighted: type[WeightedHead]) -> None:
    """Raise a UserError if torchvision has changed what the weighted losses are made of."""
    for name, parameters in weighted.RELIES_ON.items():
        try:
            found = " ".join(inspect.signature(attrgetter(name)(detection)).parameters)
        except AttributeError:
            found = None
        if found != parameters:
            change = "is gone" if found is None else f"has the parameters ({found})"
            raise UserError(
                f"torchvision {torchvision.__version__} computes its losses in another way: "
                f"torchvision.models.detection.{name} {change}, not ({parameters}); install a "
                "torchvision that this swn_d2 knows, such as 0.29."
            )


def _check_weighter(
    weighter: SampleWeighter, weighted: type[WeightedHead], head: nn.Module
) -> None:
    """Raise a UserError if the weighter is not for the detector."""
    name = type(weighter).__name__
    if not isinstance(weighter, SampleWeighter):
        raise UserError(
            f"the weighter is a {name}; give an instance of a SampleWeighter, such as "
            "swn_d2.weighting.SWN()."
        )
    weighter.check_detector(
        is_dense=weighted.IS_DENSE,
        box_loss_dim=weighted.box_loss_dim(head),
        has_mask=weighted.has_sample_masks(head),
    )
    if weighter.uses_log_variance:
        raise UserError(
            f"the sample weighter {name} needs the variances of the predicted boxes, which "
            "torchvision's detectors do not predict; choose another one."
        )
    if any(isinstance(module, ObjectMemory) for module in weighter.modules()):
        raise UserError(
            f"the sample weighter {name} has to know which annotation of the training set an "
            "object is, which torchvision's detectors do not tell; choose another one."
        )
    if isinstance(weighter, OHEM) and head.fg_bg_sampler.positive_fraction != 1:
        raise UserError(
            "the sample weighter OHEM selects from all proposals; build the detector with "
            "box_positive_fraction=1.0, and box_batch_size_per_image larger than "
            "rpn_post_nms_top_n_train and an image's objects."
        )


def _warn(weighter: SampleWeighter, head: WeightedHead) -> None:
    logger = logging.getLogger(__name__)
    if isinstance(head, RoIHeads) and head.has_keypoint():
        logger.warning("The keypoints are not weighted: they keep weight 1.")
    if isinstance(head, RetinaNetHead) and isinstance(weighter, SWN):
        if head.regression_head._loss_type == "l1":
            logger.warning(
                "The box loss is plain L1, with which SWN gives the best-placed boxes the largest "
                'gradients, and training can fail. Set model.head.regression_head._loss_type = "'
                'smooth_l1" or "giou", for SWN and for the baseline that it is compared with.'
            )
