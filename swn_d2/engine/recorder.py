"""The hook that records what the weights do, while a detector trains."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase
from PIL import Image
from torch import nn

from ..recording import (
    REASONS,
    RECORDING,
    Pictures,
    Record,
    append_records,
    is_pictured,
    keep_parameters,
    make_record,
    weighters_of,
)
from ..recording.crops import CROP_SIZE, CROPS_PER_REASON
from ..weighting import SampleStatistics, SampleWeights

__all__ = ["SampleRecorder"]


class SampleRecorder(HookBase):
    """Records a bounded number of samples every ``period`` iterations, see
    :mod:`swn_d2.recording`; draws histograms of their weights and some of them as
    pictures in TensorBoard; and keeps the weighter's parameters, ten times in a run.

    It listens to the weighter while the detector trains, and only in the iterations that it
    records. Which samples it takes depends on the iteration alone; the run's random numbers stay
    as they are. For the main process: other processes' samples are not looked at.
    """

    def __init__(
        self, model: nn.Module, folder: str, *, period: int, num_samples: int, image_format: str
    ):
        """
        Args:
            model: the detector.
            folder: the run's.
            period: in iterations, at least 1.
            num_samples: to record at most, of positives and of negatives each.
            image_format: of the images that the detector is given, as ``INPUT.FORMAT``.
        """
        self._model = model
        self._weighters = weighters_of(model)
        self._folder = Path(folder)
        self._period = period
        self._num_samples = num_samples
        self._image_format = image_format
        self._listeners: list = []
        self._batch: Sequence[dict] = ()
        self._records: list[Record] = []

    def before_step(self) -> None:
        if (self.trainer.iter + 1) % self._period:
            return
        self._listeners = [self._model.register_forward_pre_hook(self._keep_batch)]
        for stage, weighter in self._weighters.items():

            def listen(_, inputs, weights, stage=stage):
                self._records.append(self._record(stage, inputs[0], weights))

            self._listeners.append(weighter.register_forward_hook(listen))

    def after_step(self) -> None:
        for listener in self._listeners:
            listener.remove()
        if self._records:
            append_records(self._folder / RECORDING, self._records)
            self._show(self._records)
        self._listeners, self._batch, self._records = [], (), []
        keep_parameters(self._weighters, self._folder, self.trainer.iter, self.trainer.max_iter)

    def _keep_batch(self, _, inputs) -> None:
        self._batch = inputs[0]

    def _record(self, stage: str, statistics: SampleStatistics, weights: SampleWeights) -> Record:
        iteration = self.trainer.iter
        pictured = is_pictured(iteration, self._period, self.trainer.max_iter)
        return make_record(
            statistics,
            weights,
            iteration=iteration,
            num_samples=self._num_samples,
            stage=stage,
            pictures=self._pictures() if pictured else None,
        )

    def _pictures(self) -> Pictures:
        batch = self._batch

        def image(i: int) -> np.ndarray:
            return convert_image_to_rgb(batch[i]["image"].permute(1, 2, 0), self._image_format)

        return Pictures(
            image=image,
            file_name=lambda i: batch[i].get("file_name", ""),
            gt_boxes=torch.cat([x["instances"].gt_boxes.tensor for x in batch]).cpu().numpy(),
        )

    def _show(self, records: Sequence[Record]) -> None:
        """Histograms and pictures for TensorBoard, beside the scalars that the losses log."""
        storage = self.trainer.storage
        for record in records:
            prefix = f"{record.stage}/" if record.stage else ""
            if not record.crops:
                continue
            for group, values in (("", record.positives), ("_bg", record.negatives)):
                for column, weight in values.items():
                    if column.endswith("_weight") and len(weight) and weight.std() > 0:
                        name = f"{prefix}weights/{column.removesuffix('_weight')}{group}"
                        storage.put_histogram(name, torch.from_numpy(weight), bins=50)
            for reason in REASONS:
                pictures = [c.jpeg for c in record.crops if c.reason == reason]
                storage.put_image(f"{prefix}samples/{reason}", _side_by_side(pictures))


def _side_by_side(jpegs: Sequence[bytes]) -> np.ndarray:
    """(3, H, W) uint8: pictures in a row, on black."""
    strip = Image.new("RGB", (CROP_SIZE * CROPS_PER_REASON, CROP_SIZE))
    for i, jpeg in enumerate(jpegs):
        strip.paste(Image.open(io.BytesIO(jpeg)), (i * CROP_SIZE, 0))
    return np.asarray(strip).transpose(2, 0, 1)
