"""The hook that records what the weights do, while a detector trains."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase
from PIL import Image
from torch import Tensor, nn

from ..evaluation.pictures import cut_out
from ..weighting import TASKS, SampleStatistics, SampleWeighter, SampleWeights
from .recording import REASONS, RECORDING, Crop, Record, append_records

__all__ = ["SNAPSHOTS", "SampleRecorder", "farthest_first", "sample_columns", "weighters_of"]

#: The folder, in that of the run, with the weighter's parameters as they were during training.
SNAPSHOTS = "weighter"

_NUM_SNAPSHOTS = 10  # in a run
_NUM_PICTURED = 100  # records with pictures in a run
_CROPS_PER_REASON = 4
_CROP_SIZE = 112  # pixels of the longer side


def weighters_of(model: nn.Module) -> dict[str, SampleWeighter]:
    """The sample weighters of a detector: "" -> it, or "stage0", ... -> those of a cascade."""
    named = [(n, m) for n, m in model.named_modules() if isinstance(m, SampleWeighter)]
    if len(named) == 1:
        return {"": named[0][1]}
    return {f"stage{name.rsplit('.', 1)[-1]}": module for name, module in named}


class SampleRecorder(HookBase):
    """Records a bounded number of samples every ``period`` iterations, see
    :mod:`swn_d2.engine.recording`; draws histograms of their weights and some of them as
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
        if _is_due(self.trainer.iter, self.trainer.max_iter, _NUM_SNAPSHOTS):
            self._keep_parameters()

    def _keep_batch(self, _, inputs) -> None:
        self._batch = inputs[0]

    @torch.no_grad()
    def _record(self, stage: str, statistics: SampleStatistics, weights: SampleWeights) -> Record:
        iteration = self.trainer.iter
        statistics = statistics.finite()
        given = torch.ones_like(statistics.cls_loss)
        if "given_weight" in statistics.details:
            given = statistics.detail("given_weight")
        columns = sample_columns(statistics, weights, given)
        foreground = statistics.foreground
        background = (~statistics.is_foreground).nonzero().squeeze(1)
        choice = np.random.default_rng(iteration)
        positives = _take(columns, self._some(foreground, choice))
        of_negatives = {name: columns[name] for name in columns if name.startswith("cls_")}
        period = self._period
        is_pictured = _is_due(iteration // period, self.trainer.max_iter // period, _NUM_PICTURED)
        return Record(
            iteration=iteration,
            stage=stage,
            num_positives=len(foreground),
            num_negatives=len(background),
            positives=positives,
            negatives=_take(of_negatives, self._some(background, choice)),
            crops=self._crops(statistics, columns, weights) if is_pictured else (),
        )

    def _some(self, indices: Tensor, choice: np.random.Generator) -> Tensor:
        if len(indices) <= self._num_samples:
            return indices
        chosen = choice.choice(len(indices), self._num_samples, replace=False)
        return indices[torch.from_numpy(np.sort(chosen)).to(indices.device)]

    def _crops(
        self, statistics: SampleStatistics, columns: dict[str, Tensor], weights: SampleWeights
    ) -> tuple[Crop, ...]:
        """Pictures of the positives that lie farthest out, of one sample of each object."""
        positives = statistics.foreground
        if not len(positives) or "object" not in statistics.details:
            return ()
        columns = {**columns, "score": statistics.detail("pred_score")}
        of_all = _take(columns, positives)
        loss = of_all["cls_loss"]
        # Where classification keeps weight 1, the weight that is learned is the box's.
        weight = of_all["cls_weight" if weights.cls is not None else "box_weight"]
        objects = statistics.detail("object")[positives].cpu().numpy()
        images = statistics.detail("image")[positives].cpu().numpy()
        boxes = statistics.detail("pred_boxes")[positives].float().cpu().numpy()
        gt_boxes = torch.cat([x["instances"].gt_boxes.tensor for x in self._batch]).cpu().numpy()
        orders = farthest_first(loss, weight, np.abs(of_all["score"] - of_all["iou"]))
        crops = []
        for reason in REASONS:
            for i in _first_of_each(objects, orders[reason]):
                source = self._batch[images[i]]
                jpeg, box, gt_box = cut_out(
                    convert_image_to_rgb(source["image"].permute(1, 2, 0), self._image_format),
                    boxes[i],
                    gt_boxes[objects[i]],
                    size=_CROP_SIZE,
                )
                stats = {name: float(of_all[name][i]) for name in of_all if name != "gt_class"}
                crops.append(
                    Crop(
                        reason=reason,
                        image=source.get("file_name", ""),
                        gt_class=int(of_all["gt_class"][i]),
                        box=box,
                        gt_box=gt_box,
                        stats=stats,
                        jpeg=jpeg,
                    )
                )
        return tuple(crops)

    def _show(self, records: Sequence[Record]) -> None:
        """Histograms and pictures for TensorBoard, beside the scalars that the losses log."""
        storage = self.trainer.storage
        for record in records:
            prefix = f"{record.stage}/" if record.stage else ""
            if not record.crops:
                continue
            for group, values in (("", record.positives), ("_bg", record.negatives)):
                for task in TASKS:
                    weight = values.get(f"{task}_weight")
                    if weight is not None and len(weight) and weight.std() > 0:
                        storage.put_histogram(
                            f"{prefix}weights/{task}{group}", torch.from_numpy(weight), bins=50
                        )
            for reason in REASONS:
                pictures = [c.jpeg for c in record.crops if c.reason == reason]
                storage.put_image(f"{prefix}samples/{reason}", _side_by_side(pictures))

    def _keep_parameters(self) -> None:
        state = {stage: weighter.state_dict() for stage, weighter in self._weighters.items()}
        if not any(state.values()):
            return
        folder = self._folder / SNAPSHOTS
        folder.mkdir(exist_ok=True)
        # In one piece or not at all, whenever the process is killed.
        unfinished = folder / "unfinished"
        torch.save(state, unfinished)
        unfinished.replace(folder / f"{self.trainer.iter:07d}.pth")


def _is_due(index: int, total: int, times: int) -> bool:
    """Whether ``index``, one of 0 ... total - 1, ends one of ``times`` equal parts of them."""
    times = min(times, max(total, 1))
    return (index + 1) * times // max(total, 1) > index * times // max(total, 1)


def sample_columns(
    statistics: SampleStatistics, weights: SampleWeights, given: Tensor
) -> dict[str, Tensor]:
    """Column -> (R,) what a record has of every sample.

    Args:
        given: (R,) what the weights are multiplied by, those that the data give.
    """
    columns = {
        "cls_loss": statistics.cls_loss,
        "box_loss": statistics.box_loss.sum(dim=1),
        "iou": statistics.iou,
        "prob": statistics.prob,
    }
    if statistics.mask_loss is not None:
        columns["mask_loss"] = statistics.mask_loss
    if "gt_class" in statistics.details:
        columns["gt_class"] = statistics.detail("gt_class").float()
    for task in TASKS:
        if f"{task}_loss" not in columns:
            continue
        weight = getattr(weights, task)
        if weight is None:
            weight = torch.ones_like(given)
        elif weight.dim() == 2:  # a weight for each column of the box loss
            weight = weight.mean(dim=1)
        columns[f"{task}_weight"] = weight.detach().float() * given
        if task in weights.learned:
            columns[f"{task}_learned"] = weights.learned[task]
    return columns


def _take(columns: dict[str, Tensor], indices: Tensor) -> dict[str, np.ndarray]:
    """Rows of the columns on the host, with one copy for all of them."""
    rows = torch.stack([column[indices].float() for column in columns.values()]).cpu().numpy()
    return dict(zip(columns, rows, strict=True))


def farthest_first(
    loss: np.ndarray, weight: np.ndarray, mismatch: np.ndarray
) -> dict[str, np.ndarray]:
    """Reason -> (n,) the samples, by how well the reason fits them.

    Args:
        loss, weight, mismatch: (n,) classification loss, weight, and distance of score and IoU.
    """
    hardness = _ranks(loss) - _ranks(weight)
    return {  # of those that are equal in ranks the loss decides
        "hard_but_light": np.lexsort((-loss, -hardness)),
        "easy_but_heavy": np.lexsort((loss, hardness)),
        "mismatch": np.argsort(-mismatch, kind="stable"),
    }


def _ranks(values: np.ndarray) -> np.ndarray:
    """How many of the values are smaller than each."""
    return np.searchsorted(np.sort(values), values)


def _first_of_each(objects: np.ndarray, order: np.ndarray) -> list[int]:
    """The first samples in ``order`` that are of different objects."""
    chosen: dict[int, int] = {}
    for i in order:
        chosen.setdefault(int(objects[i]), int(i))
        if len(chosen) == _CROPS_PER_REASON:
            break
    return list(chosen.values())


def _side_by_side(jpegs: Sequence[bytes]) -> np.ndarray:
    """(3, H, W) uint8: pictures in a row, on black."""
    strip = Image.new("RGB", (_CROP_SIZE * _CROPS_PER_REASON, _CROP_SIZE))
    for i, jpeg in enumerate(jpegs):
        strip.paste(Image.open(io.BytesIO(jpeg)), (i * _CROP_SIZE, 0))
    return np.asarray(strip).transpose(2, 0, 1)
