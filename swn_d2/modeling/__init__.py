"""Detectron2 adapters: they gather the statistics of the samples and apply the weights."""

from .fast_rcnn import SWNFastRCNNOutputLayers
from .roi_heads import SWNROIHeads

__all__ = ["SWNFastRCNNOutputLayers", "SWNROIHeads"]
