"""From registered data sets to a config file."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import load_config
from ..data.checks import check_data
from ..data.checks.pictures import picture_fault
from ..errors import UserError
from .choices import CPU, GPU, choose
from .facts import Facts, look_at
from .text import config_text

__all__ = ["DETECTORS", "NewProject", "plan_project"]

DETECTORS = ("faster_rcnn", "mask_rcnn", "retinanet")


@dataclass(frozen=True)
class NewProject:
    """
    Attributes:
        train, test: what the data are like.
        config: the text of the config file.
    """

    train: Facts
    test: Facts
    config: str


def plan_project(names: Sequence[str], *, detector: str, has_gpu: bool, output: str) -> NewProject:
    """A config for a detector of data sets.

    Args:
        names: of the training set and of the test set, which are registered.
        detector: one of :data:`DETECTORS`.
        has_gpu: the machine's; more fits into it.
        output: the folder of the training.

    Raises:
        UserError: these are not two data sets, there is a mistake in one, or they share pictures.
    """
    if len(names) != 2:
        raise UserError(_how_many(names))
    cfg = load_config()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (names[0],), (names[1],)
    cfg.MODEL.ROI_HEADS.NAME = "SWNROIHeads"  # which looks at a sample_weight
    cfg.MODEL.MASK_ON = detector == "mask_rcnn"
    cfg.INPUT.MASK_FORMAT = "bitmask"
    check_data(cfg)
    train, test = map(look_at, names)
    shared = set(train.files) & set(test.files)
    if shared:
        raise UserError(
            f"{len(shared)} pictures, such as {min(shared)}, are in {train.name} and in "
            f"{test.name}: AP would be of what was learned by heart. Take them out of one."
        )
    _check_whole([*train.files, *test.files])
    machine = GPU if has_gpu else CPU
    choices = choose(train, test, machine, is_retinanet=detector == "retinanet")
    return NewProject(train, test, config_text(train, test, detector, machine, choices, output))


def _check_whole(files: Sequence[str]) -> None:
    """A training would stop at a damaged picture, and only when it is the picture's turn."""
    faults = {file: fault for file in files if (fault := picture_fault(file))}
    if faults:
        file, fault = next(iter(faults.items()))
        raise UserError(
            f"{len(faults)} of {len(files)} pictures can't be read to their end; the first is "
            f"{file}: {fault}. Put the originals there, or take them out of the annotations."
        )


def _how_many(names: Sequence[str]) -> str:
    if not names:
        return (
            "there are no data: give --split NAME ANNOTATIONS IMAGE_DIR, or --register-coco NAME "
            "ANNOTATIONS.json IMAGE_DIR twice, the training set first, then the one to test on."
        )
    if len(names) == 1:
        return (
            f"{names[0]} alone can't be tested on: give a second data set, of other pictures, or "
            "--split NAME ANNOTATIONS IMAGE_DIR in its place, which makes two of one."
        )
    return (
        f"{len(names)} data sets are given, {', '.join(names)}; give one to train on, then one "
        "to test on."
    )
