"""How much every training sample counts: pure PyTorch, usable with any detector.

A detector gathers :class:`SampleLosses` and :class:`SampleStatistics`; a :class:`SampleWeighter`
turns the statistics into :class:`SampleWeights`; :func:`weighted_losses` applies them.
"""

import importlib
import pkgutil

from .adapters import (
    Classification,
    IterationCounter,
    gather_samples,
    paired_iou,
    sigmoid_classification,
    softmax_classification,
    weight_scalars,
    weighted_losses,
    with_mask_losses,
)
from .check_adapter import check_adapter
from .memory import ObjectMemory
from .network import SampleWeightingNetwork
from .optimizer import JointOptimizer, join_adam, sample_weighter_parameters
from .statistics import TASKS, GivenWeights, SampleLosses, SampleStatistics, SampleWeights
from .swn import SWN
from .weighters import (
    SAMPLE_WEIGHTER_REGISTRY,
    SampleWeighter,
    Uniform,
    build_sample_weighter,
)

__all__ = [
    "SAMPLE_WEIGHTER_REGISTRY",
    "SWN",
    "TASKS",
    "Classification",
    "GivenWeights",
    "IterationCounter",
    "JointOptimizer",
    "ObjectMemory",
    "SampleLosses",
    "SampleStatistics",
    "SampleWeighter",
    "SampleWeightingNetwork",
    "SampleWeights",
    "Uniform",
    "build_sample_weighter",
    "check_adapter",
    "gather_samples",
    "join_adam",
    "paired_iou",
    "sample_weighter_parameters",
    "sigmoid_classification",
    "softmax_classification",
    "weight_scalars",
    "weighted_losses",
    "with_mask_losses",
]

# Every module here, so that a new weighter is registered by the file that it is written in.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
