"""Detectron2 adapters: they gather the statistics of the samples and apply the weights."""

from .fast_rcnn import SWNFastRCNNOutputLayers
from .logging import LOG_PERIOD, log_sample_weights
from .roi_heads import SWNROIHeads

__all__ = ["LOG_PERIOD", "SWNFastRCNNOutputLayers", "SWNROIHeads", "log_sample_weights"]
