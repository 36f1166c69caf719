"""What every detector's adapter does: from what the detector computes of its samples to the losses
and statistics of the contract, and from there to weighted losses.

Shapes: ``R`` samples, ``F`` of them positive, ``K`` classes without the background, ``D`` columns
of the box loss. docs/other_detectors.md has all of it on one page.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .objective import group_mean, group_std
from .statistics import GivenWeights, SampleLosses, SampleStatistics, SampleWeights
from .weighters import SampleWeighter

__all__ = [
    "Classification",
    "IterationCounter",
    "gather_samples",
    "paired_iou",
    "sigmoid_classification",
    "softmax_classification",
    "weight_scalars",
    "weighted_losses",
    "with_mask_losses",
]


@dataclass
class Classification:
    """What a detector's classification says of its samples.

    Attributes:
        loss: (R,) unreduced loss, with its graph.
        gt_classes: (R,) long, the classes, K for negatives.
        is_foreground: (R,) bool, the positives.
        foreground: (F,) their indices.
        fg_prob: (F,) probability of the true class.
        details: for :meth:`SampleStatistics.detail`.
    """

    loss: Tensor
    gt_classes: Tensor
    is_foreground: Tensor
    foreground: Tensor
    fg_prob: Tensor
    details: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)

    def label_loss(self) -> Tensor:
        """(R,) with its graph, the part of the loss that asks which class an object has. Where a
        loss has no such part, as the sum of binary ones, it is all of a positive's."""
        if "label_loss" in self.details:
            return self.details["label_loss"]()
        return torch.where(self.is_foreground, self.loss, 0.0)

    def scatter(self, values: Tensor) -> Tensor:
        """Values of the positives (F, ...) -> of all samples (R, ...), 0 for negatives."""
        everyone = values.new_zeros(len(self.loss), *values.shape[1:])
        return everyone.index_copy(0, self.foreground, values)


class IterationCounter(nn.Module):
    """How many training iterations a detector has done: forward passes that build a graph.

    The state dict has it, so that a training that is resumed from one goes on counting. It is a
    number on the host, which a GPU need not be asked for.
    """

    def __init__(self):
        super().__init__()
        self.iteration = 0

    def next(self) -> int:
        """The number of this iteration, counted from 0."""
        current = self.iteration
        self.iteration += torch.is_grad_enabled()
        return current

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.iteration)

    def set_extra_state(self, state: Tensor) -> None:
        self.iteration = int(state)


def softmax_classification(scores: Tensor, gt_classes: Tensor) -> Classification:
    """That of an R-CNN, by cross-entropy.

    Args:
        scores: (R, K + 1) logits, the background's last.
        gt_classes: (R,) long, K for negatives.
    """
    scores = scores.float()
    num_classes = scores.shape[1] - 1
    is_foreground = (gt_classes >= 0) & (gt_classes < num_classes)
    foreground = is_foreground.nonzero().squeeze(1)
    fg_classes = gt_classes[foreground]
    cross_entropy = F.cross_entropy(scores, gt_classes, reduction="none")
    fg_prob = F.softmax(scores.detach()[foreground], dim=1).gather(1, fg_classes[:, None])

    def label_loss() -> Tensor:
        of_positives = F.cross_entropy(
            scores[foreground, :num_classes], fg_classes, reduction="none"
        )
        return torch.zeros_like(cross_entropy).index_copy(0, foreground, of_positives)

    return Classification(
        loss=cross_entropy,
        gt_classes=gt_classes,
        is_foreground=is_foreground,
        foreground=foreground,
        fg_prob=fg_prob.squeeze(1),
        details={
            "label_loss": label_loss,
            "label_losses": lambda: -F.log_softmax(scores.detach()[foreground, :-1], dim=1),
            "true_prob": lambda: torch.exp(-cross_entropy),
            "class_probs": lambda: F.softmax(scores.detach(), dim=1)[:, :num_classes],
        },
    )


def sigmoid_classification(
    logits: Tensor, gt_classes: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Classification:
    """That of a dense detector, with a binary loss for each class.

    Args:
        logits: (R, K), of the samples alone: what the detector ignores must be left out before.
        gt_classes: (R,) long, K for negatives.
        loss: of logits and targets, both (R, K), to (R, K): the detector's own, unreduced.
    """
    logits = logits.float()
    is_foreground = gt_classes != logits.shape[1]
    foreground = is_foreground.nonzero().squeeze(1)
    fg_classes = gt_classes[foreground]
    target = torch.zeros_like(logits)
    target[foreground, fg_classes] = 1

    def label_losses() -> Tensor:
        # That it is this class and no other is as likely as its odds are among those of all.
        return -F.log_softmax(logits.detach()[foreground], dim=1)

    def true_prob() -> Tensor:
        prob = logits.sigmoid()
        return (1 - prob.amax(dim=1)).index_copy(0, foreground, prob[foreground, fg_classes])

    return Classification(
        loss=loss(logits, target).sum(dim=1),
        gt_classes=gt_classes,
        is_foreground=is_foreground,
        foreground=foreground,
        fg_prob=logits.detach()[foreground, fg_classes].sigmoid(),
        details={
            "label_losses": label_losses,
            "true_prob": true_prob,
            "class_probs": lambda: logits.detach().sigmoid(),
        },
    )


def gather_samples(
    classification: Classification,
    *,
    fg_box_loss: Tensor,
    fg_iou: Tensor,
    normalizers: Mapping[str, float | Tensor],
    iteration: int,
    cls_factor: float | Tensor = 1.0,
    box_factor: float | Tensor = 1.0,
    details: Mapping[str, Callable[[], Tensor]] | None = None,
    given: GivenWeights | None = None,
) -> tuple[SampleLosses, SampleStatistics]:
    """The losses and statistics of R samples.

    Args:
        classification: of the samples.
        fg_box_loss: (F, D) unreduced box loss of the positives, with its graph.
        fg_iou: (F,) IoU of each predicted, decoded box with its ground truth.
        normalizers: task -> what the detector divides the sum of these losses by.
        iteration: counted from 0.
        cls_factor, box_factor: the detector's own factors of its losses, a number or, for each
            sample, (R,) and (R, 1). They are part of the losses, so that a weighter sees what a
            sample really contributes.
        details: what the detector adds to :meth:`SampleStatistics.detail`.
        given: what the data say that the samples count.

    Returns:
        The losses contain ``given``, the statistics do not: a weighter judges samples by what the
        detector makes of them.
    """
    num_positives = len(classification.foreground)
    if fg_box_loss.dim() != 2 or len(fg_box_loss) != num_positives:
        raise ValueError(
            f"fg_box_loss has shape {tuple(fg_box_loss.shape)}, but must have ({num_positives}, D):"
            " the unreduced loss of each positive, in columns"
        )

    def label_loss() -> Tensor:
        return classification.label_loss() * cls_factor

    losses = SampleLosses(
        cls=classification.loss * cls_factor,
        box=classification.scatter(fg_box_loss) * box_factor,
        normalizers=dict(normalizers),
        label=label_loss,
    )
    given = given or GivenWeights()

    def given_weight(of_task: Tensor | None = None) -> Tensor:
        weight = torch.ones_like(classification.loss) if given.sample is None else given.sample
        return weight if of_task is None else weight * of_task

    of_classes = dict(classification.details)
    class_probs = of_classes.pop("class_probs")
    statistics = SampleStatistics.of(
        losses,
        iou=classification.scatter(fg_iou),
        prob=classification.scatter(classification.fg_prob),
        is_foreground=classification.is_foreground,
        iteration=iteration,
        foreground=classification.foreground,
        details={
            "gt_class": lambda: classification.gt_classes,
            "pred_score": lambda: class_probs().amax(dim=1),
            "given_weight": given_weight,
            "given_label_weight": lambda: (
                torch.ones_like(classification.loss) if given.label is None else given.label
            ),
            "given_box_weight": lambda: given_weight(given.box),
            "given_mask_weight": lambda: given_weight(given.mask),
            **of_classes,
            "label_loss": label_loss,
            **(details or {}),
        },
    )
    if given.label is not None:
        losses = losses.with_label_weights(given.label)
    if given.box is not None:
        losses = replace(losses, box=losses.box * given.box[:, None])
    if given.sample is not None:
        losses = losses.scaled(given.sample)
    return losses, statistics


_corners_are_checked = False


@contextmanager
def checked_corners() -> Iterator[None]:
    """Within it, :func:`paired_iou` is NaN where the other's corners are not in the order of XYXY.
    Outside, in each iteration of a training, nothing is spent on that."""
    global _corners_are_checked
    _corners_are_checked = True
    try:
        yield
    finally:
        _corners_are_checked = False


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """(F,) IoU of each box with its other, both (F, 4) XYXY; NaN where a box is infinite."""
    corners = torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(
        boxes[:, :2], others[:, :2]
    )
    shared = corners.clamp(min=0).prod(dim=1)
    area, other_area = ((b[:, 2:] - b[:, :2]).prod(dim=1) for b in (boxes, others))
    iou = shared / (area + other_area - shared).clamp(min=torch.finfo(boxes.dtype).eps)
    if _corners_are_checked:
        iou = iou.masked_fill((others[:, 2:] < others[:, :2]).any(dim=1), torch.nan)
    return iou


def with_mask_losses(
    losses: SampleLosses, statistics: SampleStatistics, fg_mask_loss: Tensor
) -> tuple[SampleLosses, SampleStatistics]:
    """The samples with their mask losses, of which a detector takes the mean over the positives.

    Args:
        losses, statistics: of R samples.
        fg_mask_loss: (F,) mask loss of the positives, with its graph.
    """
    mask = fg_mask_loss.new_zeros(len(statistics)).index_copy(
        0, statistics.foreground, fg_mask_loss
    )
    normalizers = {**losses.normalizers, "mask": max(len(fg_mask_loss), 1)}
    given = statistics.detail("given_mask_weight")
    return (
        replace(losses, mask=mask * given, normalizers=normalizers),
        replace(statistics, mask_loss=mask, normalizers=normalizers),
    )


def weighted_losses(
    sample_weighter: SampleWeighter,
    losses: SampleLosses,
    statistics: SampleStatistics,
    names: Mapping[str, str],
    log: Callable[[SampleStatistics, SampleWeights], None] | None = None,
) -> dict[str, Tensor]:
    """The step that all detectors share, from the samples to the losses to train on.

    Args:
        sample_weighter: gives the weights.
        losses, statistics: of the samples.
        names: task -> what the detector calls its loss.
        log: told what was weighted, and how.

    Returns:
        Loss name -> 0-d tensor: the detector's own losses, weighted, and the weighter's
        regularisers.
    """
    weights = sample_weighter(statistics)
    if log is not None:
        log(statistics, weights)
    weighted = {names[task]: loss for task, loss in losses.weighted(weights).items()}
    return {**weighted, **weights.regularizers}


@torch.no_grad()
def weight_scalars(statistics: SampleStatistics, weights: SampleWeights) -> dict[str, Tensor]:
    """Mean and standard deviation of the weights that the losses are multiplied by: of positives
    (``weights/cls_fg_mean``, ...) and negatives (``cls_bg``) in the classification loss, of
    positives in the others and in the label loss (``weights/label_mean``, ...); and, as
    ``swn/cls_fg_mean``, ..., of the weights as they were learned.
    Of weights for each column of the box loss, the sample's mean is taken. A task whose samples
    all have weight 1 is left out.

    Returns:
        Name -> 0-d tensor.
    """
    is_foreground = statistics.is_foreground
    scalars = {}
    for source, by_task in (("weights", weights.by_name()), ("swn", weights.learned)):
        for task, values in by_task.items():
            if values.dim() == 2:  # a weight for each column of the box loss
                values = values.mean(dim=1)
            groups = {task: is_foreground}
            if task == "cls":
                groups = {"cls_fg": is_foreground, "cls_bg": ~is_foreground}
            for name, group in groups.items():
                scalars[f"{source}/{name}_mean"] = group_mean(values, group)
                scalars[f"{source}/{name}_std"] = group_std(values, group)
    return scalars
