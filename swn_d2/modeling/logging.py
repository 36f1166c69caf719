"""What the weights do, as scalars in metrics.json and TensorBoard."""

import torch
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from ..weighting import SampleStatistics, SampleWeights, weight_scalars

__all__ = ["LOG_PERIOD", "log_sample_weights"]

#: Iterations between two records. Detectron2's writers write as often, and reading the scalars
#: makes a GPU wait, which it need not do at every iteration.
LOG_PERIOD = 20


def log_sample_weights(statistics: SampleStatistics, weights: SampleWeights) -> None:
    """Log :func:`swn_d2.weighting.weight_scalars`. Only the main process's samples are looked at,
    since that is where Detectron2 writes.
    """
    storage = get_event_storage()
    if (storage.iter + 1) % LOG_PERIOD or not comm.is_main_process():
        return
    scalars = weight_scalars(statistics, weights)
    if not scalars:
        return
    # One copy to the host for all of them.
    for name, value in zip(scalars, torch.stack(list(scalars.values())).tolist(), strict=True):
        storage.put_scalar(name, value, smoothing_hint=False)
