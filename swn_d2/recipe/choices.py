"""The numbers of a config that follow from the data and the machine.

Rules of thumb, around what trains the small detectors on Pascal VOC here
(``configs/PascalVOC-Detection``).
"""

import math
from dataclasses import dataclass

import numpy as np

from .facts import Facts

__all__ = ["Choices", "Machine", "CPU", "GPU", "choose"]

# Pixels that nine of ten objects are to have: smaller ones are hardly found.
_SMALL_OBJECT = 24
_EPOCHS = 12
# The new layers need some steps, however few pictures there are; with very few, more would only
# learn these by heart.
_FEWEST_ITERATIONS, _MOST_EPOCHS = 1000, 200
_MOST_ELONGATED = 4.0  # time and memory go with it
_LARGEST_TEST = 1000  # pictures; evaluating more of them on the way would take too long


@dataclass(frozen=True)
class Machine:
    """What a machine can take.

    Attributes:
        sides: the least and the largest of the pictures' shorter sides, in pixels.
        batch: pictures in an iteration.
        pyramid: channels of the feature pyramid.
        fc: channels of the box head's layers.
        workers: processes that load pictures.
    """

    sides: tuple[int, int]
    batch: int
    pyramid: int
    fc: int
    workers: int


CPU = Machine(sides=(160, 320), batch=8, pyramid=64, fc=512, workers=1)
GPU = Machine(sides=(480, 800), batch=16, pyramid=256, fc=1024, workers=4)


@dataclass(frozen=True)
class Choices:
    """
    Attributes:
        side: of the pictures, the shorter one, in pixels; as they are evaluated.
        elongation: what the longer side has at most, in shorter ones; else Detectron2 makes a
            picture smaller, and its objects with it.
        train_sides: of which each picture gets one at random in training.
        anchors: sides of squares, in pixels, one for each level of the pyramid.
        ratios: height through width of the anchors.
        small_object: which nine of ten objects reach, in pixels of the scaled picture.
        regions: sampled in a picture.
        iterations, warmup, steps, period: the schedule; a checkpoint each ``period``.
        evaluates: whether AP is measured at each checkpoint.
        learning_rate: of SGD.
    """

    side: int
    elongation: float
    train_sides: tuple[int, ...]
    anchors: tuple[int, ...]
    ratios: tuple[float, ...]
    small_object: float
    regions: int
    iterations: int
    warmup: int
    steps: tuple[int, int]
    period: int
    evaluates: bool
    learning_rate: float


def choose(train: Facts, test: Facts, machine: Machine, *, is_retinanet: bool) -> Choices:
    """What fits the training set, which has objects."""
    longest = float(np.quantile(train.elongations, 0.95))
    longest = min(max(longest, 2.0), _MOST_ELONGATED)
    # A picture that is longer yet will be smaller.
    scales = np.minimum(longest / train.elongations, 1)[train.picture]
    smallest, largest_object = np.quantile(train.relative_sizes * scales, [0.1, 0.95]).tolist()
    least, largest = machine.sides
    side = min(max(_SMALL_OBJECT / smallest, least), largest)
    # More pixels than a picture has would show nothing more.
    side = max(_multiple(min(side, train.shorter_side), 16), 32)
    small_object = smallest * side
    # Five levels, each twice the one before: from the small objects to the large ones, which an
    # anchor of 0.7 of their side still fits. A RetinaNet's pyramid begins one level higher.
    large_object = largest_object * side
    finest = 2 ** math.floor(math.log2(min(small_object, side / 8)))
    finest = max(finest, 2 ** math.ceil(math.log2(large_object * 0.7 / 16)))
    finest = max(finest, 16 if is_retinanet else 8)
    ratios = [0.5, 1.0, 2.0]
    flattest, steepest = np.quantile(train.ratios, [0.05, 0.95])
    ratios = [0.25] * bool(flattest < 1 / 3) + ratios + [4.0] * bool(steepest > 3)
    crowded = float(np.quantile(train.objects_a_picture, 0.9))
    num_pictures = len(train.objects_a_picture)
    iterations = max(
        math.ceil(_EPOCHS * num_pictures / machine.batch),
        min(_FEWEST_ITERATIONS, math.ceil(_MOST_EPOCHS * num_pictures / machine.batch)),
    )
    iterations = max(_multiple(iterations, 10), 10)
    return Choices(
        side=side,
        elongation=longest,
        train_sides=tuple(_multiple(side * share, 8) for share in (0.8, 1.0, 1.2)),
        anchors=tuple(finest * 2**level for level in range(5)),
        ratios=tuple(ratios),
        small_object=small_object,
        # Eight for each object of a crowded picture: a quarter of the sample are positives.
        regions=min(max(2 ** math.ceil(math.log2(8 * crowded)), 64), 512),
        iterations=iterations,
        warmup=min(iterations // 10, 500),
        steps=(iterations * 2 // 3, iterations * 11 // 12),
        period=math.ceil(iterations / 5),
        evaluates=len(test.files) <= _LARGEST_TEST,
        learning_rate=0.01 * machine.batch / 8,
    )


def _multiple(value: float, of: int) -> int:
    return round(value / of) * of
