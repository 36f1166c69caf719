"""From the samples of an iteration and their weights to what is kept of them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..files import write_whole
from ..weighting import SampleStatistics, SampleWeighter, SampleWeights
from .crops import Pictures, crops_of
from .file import Record

__all__ = [
    "SNAPSHOTS",
    "first_weight",
    "is_due",
    "is_pictured",
    "keep_parameters",
    "make_record",
    "sample_columns",
    "weighters_of",
]

#: The folder, in that of the run, with the weighter's parameters as they were during training.
SNAPSHOTS = "weighter"

# Task -> the detail of its samples by which the detector multiplies what the weighter says.
_GIVEN = {
    "cls": "given_weight",
    "label": "given_label_weight",
    "box": "given_box_weight",
    "mask": "given_mask_weight",
}
_NUM_SNAPSHOTS = 10  # in a run
_NUM_PICTURED = 100  # records with pictures in a run


def weighters_of(model: nn.Module) -> dict[str, SampleWeighter]:
    """The sample weighters of a detector: "" -> it, or "stage0", ... -> those of a cascade. What a
    weighter is made of is none of the detector's."""
    named: dict[str, SampleWeighter] = {}
    for name, module in model.named_modules():  # the outer ones come first
        is_inside = any(name.startswith(f"{outer}.") for outer in named)
        if isinstance(module, SampleWeighter) and not is_inside:
            named[name] = module
    if len(named) == 1:
        return {"": next(iter(named.values()))}
    return {f"stage{name.rsplit('.', 1)[-1]}": module for name, module in named.items()}


@torch.no_grad()
def make_record(
    statistics: SampleStatistics,
    weights: SampleWeights,
    *,
    iteration: int,
    num_samples: int,
    stage: str = "",
    pictures: Pictures | None = None,
) -> Record:
    """Some of an iteration's samples. Which ones depends on the iteration alone; the training's
    random numbers stay as they are.

    Args:
        statistics, weights: what the weighter saw and said.
        iteration: counted from 0.
        num_samples: to record at most, of positives and of negatives each.
        stage: of a cascade.
        pictures: of the batch, for crops; none are made without them, or where the detector does
            not tell the object of a sample.
    """
    statistics = statistics.finite()
    given = {
        task: statistics.detail(name) for task, name in _GIVEN.items() if name in statistics.details
    }
    columns = sample_columns(statistics, weights, given)
    foreground = statistics.foreground
    background = (~statistics.is_foreground).nonzero().squeeze(1)
    choice = np.random.default_rng(iteration)

    def some(indices: Tensor) -> Tensor:
        if len(indices) <= num_samples:
            return indices
        chosen = choice.choice(len(indices), num_samples, replace=False)
        return indices[torch.from_numpy(np.sort(chosen)).to(indices.device)]

    positives = _take(columns, some(foreground))
    of_negatives = {name: columns[name] for name in columns if name.startswith("cls_")}
    negatives = _take(of_negatives, some(background))
    crops = ()
    if pictures is not None and len(foreground) and "object" in statistics.details:
        shown = _take({**columns, "score": statistics.detail("pred_score")}, foreground)
        crops = crops_of(
            shown,
            weight=first_weight(shown) or "cls_weight",
            objects=statistics.detail("object")[foreground].cpu().numpy(),
            images=statistics.detail("image")[foreground].cpu().numpy(),
            boxes=statistics.detail("pred_boxes")[foreground].float().cpu().numpy(),
            pictures=pictures,
        )
    return Record(
        iteration=iteration,
        stage=stage,
        num_positives=len(foreground),
        num_negatives=len(background),
        positives=positives,
        negatives=negatives,
        crops=crops,
    )


def is_pictured(iteration: int, period: int, num_iterations: int) -> bool:
    """Whether the record of an iteration is one of the hundred in a run that have pictures."""
    return is_due(iteration // period, num_iterations // period, _NUM_PICTURED)


def keep_parameters(
    weighters: dict[str, SampleWeighter], folder: Path, iteration: int, num_iterations: int
) -> None:
    """Keep the weighters' parameters in the run's folder, if that is due: ten times in a run."""
    if not is_due(iteration, num_iterations, _NUM_SNAPSHOTS):
        return
    state = {stage: weighter.state_dict() for stage, weighter in weighters.items()}
    if any(state.values()):
        file = folder / SNAPSHOTS / f"{iteration:07d}.pth"
        write_whole(file, lambda partial: torch.save(state, partial))


def is_due(index: int, total: int, times: int) -> bool:
    """Whether ``index``, one of 0 ... total - 1, ends one of ``times`` equal parts of them."""
    times = min(times, max(total, 1))
    return (index + 1) * times // max(total, 1) > index * times // max(total, 1)


def sample_columns(
    statistics: SampleStatistics, weights: SampleWeights, given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Column -> (R,) what a record has of every sample.

    Args:
        given: task, or "label", -> (R,) what its weights are multiplied by, those that the data
            give.
    """
    columns = {
        "cls_loss": statistics.cls_loss,
        "box_loss": statistics.box_loss.sum(dim=1),
        "iou": statistics.iou,
        "prob": statistics.prob,
    }
    if statistics.mask_loss is not None:
        columns["mask_loss"] = statistics.mask_loss
    if "label_loss" in statistics.details:
        # Not above what it is a part of.
        label_loss = torch.nan_to_num(statistics.detail("label_loss").float())
        columns["label_loss"] = torch.minimum(label_loss, statistics.cls_loss)
    if "gt_class" in statistics.details:
        columns["gt_class"] = statistics.detail("gt_class").float()
    weights_of = weights.by_name()
    for task in _GIVEN:
        if f"{task}_loss" not in columns:
            continue
        weight = weights_of.get(task, torch.ones_like(statistics.cls_loss))
        if weight.dim() == 2:  # a weight for each column of the box loss
            weight = weight.mean(dim=1)
        columns[f"{task}_weight"] = weight.detach().float() * given.get(task, 1)
        if task in weights.learned:
            columns[f"{task}_learned"] = weights.learned[task]
    return columns


def first_weight(columns: Mapping[str, np.ndarray]) -> str | None:
    """The column of the weight that samples are judged by: of classification, of labels, of boxes
    or of masks, the first that is not 1 throughout; None if every weight is 1."""
    names = [f"{name}_weight" for name in _GIVEN if f"{name}_weight" in columns]
    return next((name for name in names if (columns[name] != 1).any()), None)


def _take(columns: dict[str, Tensor], indices: Tensor) -> dict[str, np.ndarray]:
    """Rows of the columns on the host, with one copy for all of them."""
    rows = torch.stack([column[indices].float() for column in columns.values()]).cpu().numpy()
    return dict(zip(columns, rows, strict=True))
