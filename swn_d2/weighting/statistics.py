"""What a weighter sees of the training samples, and what it gives back.

Shapes: ``R`` samples (regions of an R-CNN, non-ignored anchors of a dense detector) of the whole
batch on one device; ``D`` columns of the box loss: 4 for a loss per coordinate, 1 for an IoU loss.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError

__all__ = ["TASKS", "GivenWeights", "SampleLosses", "SampleStatistics", "SampleWeights"]

#: The losses of a detector that samples are weighted in.
TASKS = ("cls", "box", "mask")

# Far above any loss that a detector survives, far below where float32 arithmetic on it overflows.
_LARGEST_STATISTIC = 1e4


@dataclass
class SampleLosses:
    """The unreduced losses of a detector, with their graph.

    Attributes:
        cls: (R,) classification loss of each sample.
        box: (R, D) box loss, 0 for negatives.
        mask: (R,) mask loss, 0 for negatives; None for a detector without masks.
        normalizers: for each task, what the detector divides the sum of its losses by
            (N_1 and N_2 of Eq. 2 of the paper), a number or a 0-d tensor, greater than 0.
        label: computes (R,) the part of ``cls`` that asks which class an object has, 0 for
            negatives; None if nobody can tell it.
    """

    cls: Tensor
    box: Tensor
    normalizers: dict[str, float | Tensor]
    mask: Tensor | None = None
    label: Callable[[], Tensor] | None = None

    def __post_init__(self):
        for task in TASKS:
            if getattr(self, task) is not None and task not in self.normalizers:
                raise ValueError(
                    f"normalizers has no {task!r}, but {list(self.normalizers)}; there must be "
                    "one for each task that has a loss"
                )

    def weighted(self, weights: "SampleWeights") -> dict[str, Tensor]:
        """The losses of Eq. 2, reduced: task -> ``sum_i w_i L_i / N``, a 0-d tensor."""
        losses = self if weights.label is None else self.with_label_weights(weights.label)
        reduced = {}
        for task in TASKS:
            loss, weight = getattr(losses, task), getattr(weights, task)
            if loss is None:
                continue
            if task == "box" and (weight is None or weight.dim() == 1):
                loss = loss.sum(dim=1)
            loss = loss if weight is None else weight * loss
            reduced[task] = loss.sum() / self.normalizers[task]
        return reduced

    def with_label_weights(self, weight: Tensor) -> "SampleLosses":
        """A copy in which ``weight`` (R,) multiplies the part of the classification loss that asks
        which class an object has. That there is an object counts as before.

        Raises:
            UserError: nobody can tell that part.
        """
        if self.label is None:
            raise UserError(
                "there are weights of labels, but the samples' losses do not say which part of "
                "them is the label's; make them by swn_d2.weighting.gather_samples."
            )
        label = self.label()
        return replace(self, cls=self.cls - (1 - weight) * label, label=lambda: weight * label)

    def scaled(self, factor: Tensor) -> "SampleLosses":
        """A copy whose losses are multiplied by ``factor`` (R,), a weight from the data."""
        label = self.label
        return replace(
            self,
            cls=self.cls * factor,
            box=self.box * factor[:, None],
            mask=None if self.mask is None else self.mask * factor,
            label=label and (lambda: factor * label()),
        )


class GivenWeights(NamedTuple):
    """What the data say that G objects, or R samples, count: (G,) or (R,), None for 1 throughout.

    Attributes:
        sample: in all losses.
        label: in the part of the classification that asks which class an object has.
        box: in the box loss.
        mask: in the mask loss.
    """

    sample: Tensor | None = None
    label: Tensor | None = None
    box: Tensor | None = None
    mask: Tensor | None = None

    def of_samples(self, objects: Tensor) -> "GivenWeights":
        """Those of R samples, of which ``objects`` (R,) are the objects, -1 for negatives."""
        # One more, which the -1 picks.
        return GivenWeights(
            *(None if w is None else torch.cat([w, w.new_ones(1)])[objects] for w in self)
        )


@dataclass
class SampleStatistics:
    """The statistics of the samples (Sec. 3.4 of the paper), detached and in float32.

    Attributes:
        cls_loss: (R,) classification loss.
        box_loss: (R, D) box loss; 0 for negatives.
        iou: (R,) IoU of the predicted, decoded box with its ground truth; 0 for negatives.
        prob: (R,) predicted probability of the true class; 0 for negatives.
        is_foreground: (R,) bool, True for positives.
        normalizers: as in :class:`SampleLosses`.
        mask_loss: (R,) mask loss, 0 for negatives; None for a detector without masks.
        iteration: the training iteration, counted from 0, that the samples belong to.
        foreground: (F,) indices of the positives; found from ``is_foreground`` if they are not
            given, for which a GPU makes the host wait.
        details: what only some weighters look at, name -> a function that computes it; see
            :meth:`detail`.
    """

    cls_loss: Tensor
    box_loss: Tensor
    iou: Tensor
    prob: Tensor
    is_foreground: Tensor
    normalizers: dict[str, float | Tensor]
    mask_loss: Tensor | None = None
    iteration: int = 0
    foreground: Tensor | None = None
    details: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)

    def __post_init__(self):
        num_samples = len(self.cls_loss)
        for name in ("cls_loss", "box_loss", "iou", "prob", "mask_loss"):
            value = getattr(self, name)
            if value is None:
                continue
            if len(value) != num_samples or value.dim() != (2 if name == "box_loss" else 1):
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, but there are {num_samples} samples"
                )
            setattr(self, name, value.detach().float())
        if self.is_foreground.dtype != torch.bool or len(self.is_foreground) != num_samples:
            raise ValueError(f"is_foreground must be a bool tensor of shape ({num_samples},)")
        if self.foreground is None:
            self.foreground = self.is_foreground.nonzero().squeeze(1)

    @classmethod
    def of(
        cls,
        losses: SampleLosses,
        *,
        iou: Tensor,
        prob: Tensor,
        is_foreground: Tensor,
        iteration: int = 0,
        foreground: Tensor | None = None,
        details: Mapping[str, Callable[[], Tensor]] | None = None,
    ) -> "SampleStatistics":
        """The statistics that belong to ``losses``; the other arguments as the attributes."""
        return cls(
            cls_loss=losses.cls,
            box_loss=losses.box,
            iou=iou,
            prob=prob,
            is_foreground=is_foreground,
            normalizers=losses.normalizers,
            mask_loss=losses.mask,
            iteration=iteration,
            foreground=foreground,
            details=details or {},
        )

    def __len__(self) -> int:
        return len(self.cls_loss)

    def loss(self, task: str) -> Tensor:
        """(R,) the loss of ``task``, summed over the columns of the box loss."""
        return self.box_loss.sum(dim=1) if task == "box" else getattr(self, f"{task}_loss")

    def counts(self) -> Tensor:
        """(R,) bool, whether the data let the sample count at all."""
        if "given_weight" not in self.details:
            return torch.ones_like(self.is_foreground)
        return self.detail("given_weight") > 0

    @torch.no_grad()
    def counted_loss(self, task: str) -> Tensor:
        """(R,) the loss of ``task`` as much as the data let it count: what the detector sums up
        without a weighter. The total of a group is one of these; what a sample looks like is
        :meth:`loss`."""
        if "given_weight" not in self.details:
            return self.loss(task)
        if task != "cls":
            return self.loss(task) * self.detail(f"given_{task}_weight")
        # A part of the other, and finite where that is.
        label = torch.nan_to_num(self.detail("label_loss").float()).minimum(self.cls_loss)
        of_label = (1 - self.detail("given_label_weight")) * label
        return self.detail("given_weight") * (self.cls_loss - of_label)

    def detail(self, name: str) -> Tensor:
        """One of these, computed when it is asked for. Detached unless it says otherwise.

        - ``image``: (R,) long, the sample's image in the batch;
        - ``gt_class``: (R,) long, its class, the number of classes for negatives;
        - ``object``: (R,) long, its object among all objects of the batch, -1 for negatives;
        - ``annotation``: (R,) long, the number of its object's annotation among all those of the
          training set, -1 for negatives. Known only in the training of a
          :class:`~swn_d2.SWNTrainer` whose weighter has an
          :class:`~swn_d2.weighting.memory.ObjectMemory`;
        - ``true_prob``: (R,) with its graph, the probability of the true class, for negatives
          that of the background;
        - ``label_loss``: (R,) with its graph, the part of the classification loss that asks which
          class an object has, 0 for negatives. Of a softmax that is ``-log p(class | it is an
          object)``; a sum of binary losses has no such parts, and all of a positive's counts as it;
        - ``label_losses``: (F, K) for positives ``-log p(class | it is an object)`` of each of the
          K classes;
        - ``pred_boxes``: (R, 4) the predicted box, XYXY in pixels, of the true class, for
          negatives of the likeliest;
        - ``pred_score``: (R,) the largest probability of a class that is not background;
        - ``given_weight``, ``given_box_weight``, ``given_mask_weight``: (R,) what the data say that
          the sample counts in all losses, in the box loss and in the mask loss. The detector
          applies them; they are here for losses that a weighter adds;
        - ``given_label_weight``: (R,) what they say that it counts in the label loss, beside
          ``given_weight``;
        - ``log_variance``: (R, D) with its graph, the predicted log sigma^2 of the box's
          coordinates, 0 for negatives.

        Raises:
            UserError: the detector does not have it, or, for ``annotation``, the annotations have
                no numbers.
        """
        if name not in self.details:
            raise UserError(
                f"the sample weighter needs the {name} of the samples, which this detector does "
                "not have; choose another MODEL.SAMPLE_WEIGHTER.NAME."
            )
        return self.details[name]()

    def finite(self) -> "SampleStatistics":
        """A copy in which NaN and negative values are 0 and large ones are bounded.

        A box prediction can be infinite in the first iterations; the weighting network must
        survive that, since its Adam moments would never recover from a NaN.
        """

        def clean(x: Tensor) -> Tensor:
            return torch.nan_to_num(x, nan=0.0).clamp(0.0, _LARGEST_STATISTIC)

        return replace(
            self,
            cls_loss=clean(self.cls_loss),
            box_loss=clean(self.box_loss),
            iou=clean(self.iou),
            prob=clean(self.prob),
            mask_loss=None if self.mask_loss is None else clean(self.mask_loss),
        )


@dataclass
class SampleWeights:
    """The weights ``s_i`` of Eq. 2 of the paper. None stands for weight 1 for every sample.

    Attributes:
        cls: (R,) weight of each sample in the classification loss.
        label: (R,) weight in the part of the classification loss that asks which class an object
            has, beside ``cls``; without effect on negatives.
        box: (R,) weight in the box loss, or (R, D) for each of its columns; without effect on
            negatives, whose box loss is 0.
        mask: (R,) weight in the mask loss, if there is one; without effect on negatives.
        regularizers: loss name -> 0-d tensor to be added to the detector's losses.
        learned: task, or "label", -> (R,) the weights as a network predicted them, detached, for
            the log; empty where they are the ones above, or nothing is learned.

    Weights may carry a graph: the weighted losses are then differentiated through them, too.
    """

    cls: Tensor | None = None
    box: Tensor | None = None
    mask: Tensor | None = None
    label: Tensor | None = None
    regularizers: dict[str, Tensor] = field(default_factory=dict)
    learned: dict[str, Tensor] = field(default_factory=dict)

    def by_name(self) -> dict[str, Tensor]:
        """Those that there are, in the order of cls, label, box, mask."""
        everything = {name: getattr(self, name) for name in ("cls", "label", "box", "mask")}
        return {name: weight for name, weight in everything.items() if weight is not None}
