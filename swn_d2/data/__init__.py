"""Data sets: DigitScenes, one's own in COCO's format or Pascal VOC's, and their checks."""

from .checks import check_datasets
from .datasets import (
    digit_scenes_root,
    origin_of,
    register_coco,
    register_digit_scenes,
    unknown_dataset,
)
from .digit_scenes import make_digit_scenes
from .mapper import NamingDatasetMapper
from .sample_weights import keep_sample_weights
from .train_stream import TrainStream, end_with_parent
from .training_set import load_training_set, number_annotations
from .voc import register_all_voc, register_voc

__all__ = [
    "TrainStream",
    "NamingDatasetMapper",
    "check_datasets",
    "end_with_parent",
    "digit_scenes_root",
    "keep_sample_weights",
    "load_training_set",
    "make_digit_scenes",
    "number_annotations",
    "origin_of",
    "register_all_voc",
    "register_coco",
    "register_digit_scenes",
    "register_voc",
    "unknown_dataset",
]

register_digit_scenes()
register_all_voc()
