"""What the weights do, as scalars in metrics.json and TensorBoard."""

import torch
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from ..weighting import TASKS, SampleStatistics, SampleWeights
from ..weighting.objective import group_mean, group_std

__all__ = ["LOG_PERIOD", "log_sample_weights"]

#: Iterations between two records. Detectron2's writers write as often, and reading the scalars
#: makes a GPU wait, which it need not do at every iteration.
LOG_PERIOD = 20


@torch.no_grad()
def log_sample_weights(statistics: SampleStatistics, weights: SampleWeights) -> None:
    """Mean and standard deviation of the weights that the losses are multiplied by: of positives
    (``weights/cls_fg_mean``, ...) and negatives (``cls_bg``) in the classification loss, of
    positives in the others; and, as ``swn/cls_fg_mean``, ..., of the weights as they were learned.
    Of weights for each column of the box loss, the sample's mean is taken. A task whose samples
    all have weight 1 is left out. Only the main process's samples are looked at, since that is
    where Detectron2 writes.
    """
    storage = get_event_storage()
    if (storage.iter + 1) % LOG_PERIOD or not comm.is_main_process():
        return
    is_foreground = statistics.is_foreground
    seen = {task: getattr(weights, task) for task in TASKS}
    scalars = {}
    for source, by_task in (("weights", seen), ("swn", weights.learned)):
        for task, values in by_task.items():
            if values is None:
                continue
            if values.dim() == 2:  # a weight for each column of the box loss
                values = values.mean(dim=1)
            groups = {task: is_foreground}
            if task == "cls":
                groups = {"cls_fg": is_foreground, "cls_bg": ~is_foreground}
            for name, group in groups.items():
                scalars[f"{source}/{name}_mean"] = group_mean(values, group)
                scalars[f"{source}/{name}_std"] = group_std(values, group)
    if not scalars:
        return
    # One copy to the host for all of them.
    for name, value in zip(scalars, torch.stack(list(scalars.values())).tolist(), strict=True):
        storage.put_scalar(name, value, smoothing_hint=False)
