"""Data sets: DigitScenes, COCO-format data from the command line, Pascal VOC, and their checks."""

from .checks import check_datasets
from .datasets import (
    add_register_coco_argument,
    digit_scenes_root,
    register_coco,
    register_digit_scenes,
    register_from_args,
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
    "add_register_coco_argument",
    "check_datasets",
    "end_with_parent",
    "digit_scenes_root",
    "keep_sample_weights",
    "load_training_set",
    "make_digit_scenes",
    "number_annotations",
    "register_all_voc",
    "register_coco",
    "register_digit_scenes",
    "register_from_args",
    "register_voc",
]

register_digit_scenes()
register_all_voc()
