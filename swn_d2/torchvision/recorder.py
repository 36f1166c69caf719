"""Recording what the weights do while a torchvision detector trains."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..recording import (
    RECORDING,
    Pictures,
    append_records,
    is_pictured,
    keep_parameters,
    make_record,
    weighters_of,
)
from ..weighting import SampleStatistics, SampleWeights, weight_scalars

__all__ = ["record_samples"]


def record_samples(
    model: nn.Module,
    folder: str | Path,
    *,
    num_iterations: int,
    period: int = 20,
    num_samples: int = 64,
) -> "SampleRecorder":
    """Record some samples with their weights while a detector trains, as swn_d2's own trainer
    does, for ``tools/report.py`` and ``tools/figures.py``. For one process of a training.

    Args:
        model: with a weighter; ``Uniform`` for a baseline.
        folder: of the run, which is made if there is none.
        num_iterations: of the training, over which pictures of samples and the copies of the
            weighter's parameters are spread.
        period: iterations between two records, at least 1.
        num_samples: to record at most, of positives and of negatives each.

    Returns:
        What listens to the model from here on, until its ``stop()``.

    Raises:
        UserError: the model has no weighter, or the folder can't be made.
    """
    return SampleRecorder(model, Path(folder), num_iterations, period, num_samples)


class SampleRecorder:
    """See :func:`record_samples`.

    Attributes:
        scalars: name -> value, :func:`~swn_d2.weighting.weight_scalars` of the last record.
    """

    def __init__(
        self, model: nn.Module, folder: Path, num_iterations: int, period: int, num_samples: int
    ):
        self._weighters = weighters_of(model)
        if list(self._weighters) != [""]:
            raise UserError("the model has no sample weighter; call weight_samples on it first.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {folder}: {error.strerror}.") from error
        self._folder = folder
        self._num_iterations = num_iterations
        self._period = period
        self._num_samples = num_samples
        self._transform = model.transform
        self._batch: Any = None
        self.scalars: dict[str, float] = {}
        self._listeners = [
            model.transform.register_forward_hook(self._keep_batch),
            self._weighters[""].register_forward_hook(self._record),
        ]

    def stop(self) -> None:
        """Record nothing more."""
        for listener in self._listeners:
            listener.remove()

    def _keep_batch(self, transform, inputs, batch) -> None:
        self._batch = batch if transform.training else None

    def _record(self, weighter, inputs: tuple[SampleStatistics], weights: SampleWeights) -> None:
        statistics, batch = inputs[0], self._batch
        self._batch = None
        if not torch.is_grad_enabled():  # no training, and so not counted
            return
        iteration = statistics.iteration
        if (iteration + 1) % self._period == 0:
            pictured = is_pictured(iteration, self._period, self._num_iterations)
            record = make_record(
                statistics,
                weights,
                iteration=iteration,
                num_samples=self._num_samples,
                pictures=self._pictures(*batch) if pictured else None,
            )
            append_records(self._folder / RECORDING, [record])
            scalars = weight_scalars(statistics, weights)
            # One copy to the host for all of them.
            values = torch.stack(list(scalars.values())).tolist() if scalars else []
            self.scalars = dict(zip(scalars, values, strict=True))
        keep_parameters(self._weighters, self._folder, iteration, self._num_iterations)

    def _pictures(self, images: Any, targets: list[dict[str, Tensor]]) -> Pictures:
        """Of a batch as the detector's own transform gives it: resized and normalised."""
        mean, std = (
            torch.tensor(values)[:, None, None]
            for values in (self._transform.image_mean, self._transform.image_std)
        )

        def image(i: int) -> np.ndarray:
            height, width = images.image_sizes[i]
            pixels = images.tensors[i, :, :height, :width].float().cpu() * std + mean
            return (pixels * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()

        def file_name(i: int) -> str:
            return str(targets[i].get("file_name", ""))

        gt_boxes = torch.cat([target["boxes"] for target in targets]).float().cpu().numpy()
        return Pictures(image=image, file_name=file_name, gt_boxes=gt_boxes)
