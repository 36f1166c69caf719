"""What the weights do, as scalars in metrics.json and TensorBoard."""

import torch
from detectron2.utils.events import get_event_storage

from ..weighting import SampleStatistics, SampleWeights
from ..weighting.objective import group_mean, group_std

__all__ = ["LOG_PERIOD", "log_sample_weights"]

#: Iterations between two records. Detectron2's writers write as often, and reading the scalars
#: makes a GPU wait, which it need not do at every iteration.
LOG_PERIOD = 20


@torch.no_grad()
def log_sample_weights(
    statistics: SampleStatistics, weights: SampleWeights, prefix: str = ""
) -> None:
    """Mean and standard deviation of the weights that the losses are multiplied by: of positives
    (``weights/cls_fg_mean``, ...) and negatives (``cls_bg``) in the classification loss, of
    positives in the others; and the weighter's own scalars.

    Args:
        prefix: put before each name, to tell several weighters of one detector apart.
    """
    storage = get_event_storage()
    if (storage.iter + 1) % LOG_PERIOD:
        return
    is_foreground = statistics.is_foreground
    groups = {"cls_fg": (weights.cls, is_foreground), "cls_bg": (weights.cls, ~is_foreground)}
    groups["box"] = (weights.box, is_foreground)
    if weights.mask is not None:
        groups["mask"] = (weights.mask, is_foreground)
    scalars = dict(weights.scalars)
    for name, (values, group) in groups.items():
        scalars[f"weights/{name}_mean"] = group_mean(values, group)
        scalars[f"weights/{name}_std"] = group_std(values, group)
    # One copy to the host for all of them.
    values = torch.stack([value.float() for value in scalars.values()]).tolist()
    for name, value in zip(scalars, values):
        storage.put_scalar(prefix + name, value, smoothing_hint=False)
