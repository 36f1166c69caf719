"""Looking at what a detector found."""

from .pictures import draw_detections

__all__ = ["draw_detections"]
