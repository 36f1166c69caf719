"""How likely the class of an object is to be right, learned while a detector is trained."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .memory import ObjectMemory
from .network import SampleWeightingNetwork
from .statistics import SampleStatistics

__all__ = ["ClassRightness"]

_CLAMP = 8.0  # of the logit
_NUM_RECENT = 512  # samples that the network learns from in an iteration
_LARGEST_LOSS = 1e4  # as in SampleStatistics.finite
_SMALLEST_LOSS = 1e-8  # below it there is none to divide by
_UNLIKELY = 8  # times less likely than by chance is a class that is taken for a wrong one
_KEPT = 0.98  # of the numbers of unlikely classes, from one batch to the next
_TOO_FEW = 20  # unlikely classes that say nothing yet
_SMALLEST_MEAN = 0.05  # weight that is made 1


class _DecoyMemory(ObjectMemory):
    """And what else is known of the training and its data, and no part of the detector either.

    Attributes:
        unlikely: (2,), how many annotated classes and how many decoys the detector found unlikely
            in the last batches, the older ones counting less; 0 at the start.
        recent: (L,) long, the objects of the last samples of all processes, -1 for none yet.
    """

    def __init__(self, num_statistics: int, *, window: int):
        super().__init__(num_statistics, window=window)
        self.register_buffer("unlikely", torch.zeros(2), persistent=False)
        self.register_buffer("recent", torch.full((_NUM_RECENT,), -1), persistent=False)

    @property
    def wrong_share(self) -> Tensor:
        """(), of the annotations those whose class is wrong."""
        annotated, decoys = self.unlikely + _TOO_FEW  # by which a detector that can't tell has 1
        return (annotated / decoys).clamp(max=1)

    def allocate(self, num_objects: int) -> None:
        super().allocate(num_objects)
        self.unlikely.zero_()
        self.recent.fill_(-1)

    def get_state(self) -> dict[str, Tensor]:
        return {**super().get_state(), "unlikely": self.unlikely, "recent": self.recent}

    def set_state(self, state: dict[str, Tensor]) -> None:
        super().set_state(state)
        self.unlikely.copy_(state["unlikely"])
        self.recent.copy_(state["recent"])


class ClassRightness(nn.Module):
    """The paper's network, which sees of a positive the means over its object's regions, and tells
    annotated classes from decoys. (Not in the paper.)

    The loss of one region says little about its annotation, those of all regions of its object
    more: a wrong class shows in what the detector does not come to agree with. They are the regions
    of this batch and, with a larger ``window``, of earlier ones. Only classification is weighted,
    and of a cross-entropy only the question *which* class, with the loss
    ``-log p(class | it is an object)``. The rest, ``-log p(it is an object)``, is true of an object
    whose class is wrong as well, and keeps weight 1. The binary losses of a dense detector have no
    such parts, and are weighted as a whole. Negatives keep weight 1.

    Each object has a decoy, another class, always the same. The network is trained to tell
    annotated classes from decoys, on the last samples, so that its output z becomes the logarithm
    of r, the density of annotated classes over that of decoys. Annotations are a mixture of right
    ones and a share e of wrong ones, which are taken to look like decoys, so that ``1 - e / r``, at
    least 0, is the probability of being right (as Elkan and Noto 2008 learn from positive and
    unlabelled data). Divided by its mean over the batch, it is the weight: the batch then stands
    for one without wrong classes (Liu and Tao 2016), and where the detector can't tell, all weights
    are 1. e is read off where the detector finds a class eight times less likely than by chance:
    hardly a right annotation is there, and of the wrong ones the same part as of the decoys.
    """

    def __init__(self, *, box_loss_dim: int, window: int = 1):
        """
        Args:
            box_loss_dim: D, columns of the detector's box loss.
            window: of the :class:`~swn_d2.weighting.ObjectMemory`, at least 1: this batch alone.
        """
        super().__init__()
        self.network = SampleWeightingNetwork(
            ["cls"], box_loss_dim=box_loss_dim, init="zero_output"
        )
        # Of the annotated class and of the decoy the loss and the probability, the IoU, and the
        # box loss.
        self.memory = _DecoyMemory(5 + box_loss_dim, window=window)

    def forward(self, statistics: SampleStatistics) -> tuple[Tensor, Tensor, Tensor]:
        """What the R samples of a batch count in the classification loss.

        Args:
            statistics: finite, and in no autocast, since there are exponentials and sums over all
                samples.

        Returns:
            (R,) what the loss is to be multiplied by, of a cross-entropy with its graph; (R,) the
            weight of the question which class, 1 where there is no other; and (), what trains the
            network.
        """
        foreground = statistics.foreground
        objects = statistics.detail("annotation")[foreground]
        label_losses = statistics.detail("label_losses").float()
        everyone = self.memory.remember(objects, self._look(statistics, objects, label_losses))
        self._count_unlikely(everyone, math.log(_UNLIKELY * label_losses.shape[1]))
        objective = self._objective(everyone)
        right = self._probability(torch.cat([objects, everyone]))
        mean = right[len(objects) :].mean().clamp(min=_SMALLEST_MEAN)
        w = torch.ones_like(statistics.cls_loss)
        w = w.index_copy(0, foreground, right[: len(objects)] / mean)
        return _weight_of_classification(w, statistics), w, objective

    def _objective(self, objects: Tensor) -> Tensor:
        """(), how badly annotated classes are told from decoys: the mean cross-entropy over the
        last samples of all processes, with these ``objects``. The same in all processes."""
        recent = self.memory.recent.copy_(torch.cat([self.memory.recent, objects])[-_NUM_RECENT:])
        is_one = (recent >= 0).float()
        remembered, _ = self.memory.recall(recent.clamp(min=0))
        told = F.softplus(-self._logit(remembered, 0)) + F.softplus(self._logit(remembered, 1))
        return (told * is_one).sum() / (2 * is_one.sum()).clamp(min=1)

    @torch.no_grad()
    def _probability(self, objects: Tensor) -> Tensor:
        """(n,) the probability that the class of each of these objects is right."""
        share = _believed(self.memory.wrong_share)
        remembered, _ = self.memory.recall(objects)
        return (1 - share * torch.exp(-self._logit(remembered, 0))).clamp(min=0)

    def _logit(self, remembered: Tensor, which: int) -> Tensor:
        """(n,) z of what is remembered of n objects, as they are annotated (0), or with their
        decoys for classes (1), which the box does not depend on."""
        everyone = torch.arange(len(remembered), device=remembered.device)
        z = self.network(
            SampleStatistics(
                cls_loss=remembered[:, which],
                prob=remembered[:, 2 + which],
                iou=remembered[:, 4],
                box_loss=remembered[:, 5:],
                is_foreground=torch.ones_like(everyone, dtype=torch.bool),
                normalizers={},
                foreground=everyone,
            )
        )
        return z["cls"].clamp(-_CLAMP, _CLAMP)

    def _look(self, statistics: SampleStatistics, objects: Tensor, label_losses: Tensor) -> Tensor:
        """(F, 5 + D), what the memory keeps, of this batch."""
        foreground = statistics.foreground
        classes = statistics.detail("gt_class")[foreground]
        num_classes = label_losses.shape[1]
        decoys = (classes + 1 + objects % max(num_classes - 1, 1)) % num_classes
        losses = label_losses.gather(1, torch.stack([classes, decoys], dim=1))
        losses = torch.nan_to_num(losses).clamp(0, _LARGEST_LOSS)
        iou = statistics.iou[foreground, None]
        return torch.cat([losses, torch.exp(-losses), iou, statistics.box_loss[foreground]], dim=1)

    @torch.no_grad()
    def _count_unlikely(self, objects: Tensor, bound: float) -> None:
        """Count the classes, of the objects of a batch of all processes, with a loss over it."""
        self.memory.unlikely *= _KEPT
        self.memory.unlikely += (self.memory.mean[objects, :2] > bound).sum(dim=0)


def _believed(share: Tensor) -> Tensor:
    """What to take for the share of wrong classes, where this one seems to be wrong.

    From 0.2 to 0.4 it is believed. Few that seem to be wrong are the mistakes of the detector,
    which it would keep if these objects did not count; and where most do, it can't tell yet.
    """
    return torch.minimum(share, torch.minimum(2 * share - 0.2, 1.2 - 2 * share)).clamp(min=0)


def _weight_of_classification(weight: Tensor, statistics: SampleStatistics) -> Tensor:
    """(R,), of a cross-entropy with its graph: times the classification loss, it is the loss in
    which only the ``label_loss``, if there is one, has the ``weight`` (R,)."""
    if "label_loss" not in statistics.details:
        return weight
    whole = statistics.detail("cross_entropy").clamp(min=_SMALLEST_LOSS)
    label_loss = statistics.detail("label_loss").float()
    return 1 - (1 - weight) * torch.minimum(label_loss, whole) / whole
