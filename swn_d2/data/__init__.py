"""Data sets: DigitScenes, any COCO-format data from the command line, and checks of both."""

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

__all__ = [
    "NamingDatasetMapper",
    "add_register_coco_argument",
    "check_datasets",
    "digit_scenes_root",
    "make_digit_scenes",
    "register_coco",
    "register_digit_scenes",
    "register_from_args",
]

register_digit_scenes()
