"""Detectron2 adapters: they gather the statistics of the samples and apply the weights."""

import importlib.util

from .fast_rcnn import SWNFastRCNNOutputLayers
from .logging import LOG_PERIOD, log_sample_weights
from .retinanet import SWNRetinaNet
from .roi_heads import SWNCascadeROIHeads, SWNROIHeads
from .timm_backbone import TimmBackbone

__all__ = [
    "LOG_PERIOD",
    "SWNCascadeROIHeads",
    "SWNFastRCNNOutputLayers",
    "SWNROIHeads",
    "SWNRetinaNet",
    "TimmBackbone",
    "log_sample_weights",
]

# Only the main branch of Detectron2 has FCOS.
if importlib.util.find_spec("detectron2.modeling.meta_arch.fcos") is not None:
    from .fcos import SWNFCOS

    __all__ += ["SWNFCOS"]
