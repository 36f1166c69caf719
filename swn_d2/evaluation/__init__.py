"""Measuring what a detector found, and looking at it."""

from .pictures import draw_detections
from .voc import build_voc_evaluator

__all__ = ["build_voc_evaluator", "draw_detections"]
