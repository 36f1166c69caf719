"""SWN with a memory: an object is weighted by what the training has seen of it so far."""

from typing import Any

import torch
from torch import Tensor

from .checks import check
from .memory import ObjectMemory
from .network import SampleWeightingNetwork
from .statistics import SampleStatistics, SampleWeights
from .weighters import SAMPLE_WEIGHTER_REGISTRY, SampleWeighter

__all__ = ["ObjectSWN"]

_SECTION = "MODEL.SAMPLE_WEIGHTER.OBJECTSWN"
_CLAMP = 3.0  # of m
_LARGEST_LOSS = 1e4  # as in SampleStatistics.finite
_SMALLEST_LOSS = 1e-8  # below it there is none to divide by


@SAMPLE_WEIGHTER_REGISTRY.register()
class ObjectSWN(SampleWeighter):
    """The paper's network, which sees of a positive not its own statistics but the means of those
    that its object had in earlier batches; negatives keep weight 1. (Not in the paper.)

    The loss of one region says little about its annotation, those of its regions over the epochs
    say much: a wrong class shows in what the detector never comes to agree with. Only
    classification is weighted, and of it only the question *which* class, with the loss ``-log
    p(class | it is an object)``. The rest of the cross-entropy, ``-log p(it is an object)``, is
    true of an object whose class is wrong as well, and keeps weight 1.

    The unit of that loss is the loss of a guess that knows how frequent the classes are, and
    nothing else, ``-log(share of the class)``. The network is trained by Eq. 9 on the losses of
    this batch in this unit, and sees those before it: so m becomes the logarithm of the loss that
    is to be expected of an object with that past, and is positive where the detector disagrees
    with the annotation more than a guess would. The weight is ``min(1, exp(-k m))``: no object
    counts more than in a plain detector, so no total has to be preserved. ``k`` rises from 0 to
    ``exponent`` while the median object's loss falls from that of the guess to half of it: a
    detector that can not classify yet has nothing to say about classes.
    """

    KEYS = {"EXPONENT": 6.0, "WINDOW": 4}
    for_dense_detectors = False

    def __init__(
        self,
        *,
        num_classes: int,
        exponent: float = 6.0,
        window: int = 4,
        box_loss_dim: int = 4,
    ):
        """
        Args:
            num_classes: of the detector.
            exponent: the largest k, greater than 0.
            window: of the :class:`~swn_d2.weighting.ObjectMemory`, at least 1.
            box_loss_dim: columns of the detector's box loss.

        Raises:
            UserError: an argument is out of its range.
        """
        super().__init__()
        check(f"{_SECTION}.EXPONENT", exponent, exponent > 0, "greater than 0")
        check(f"{_SECTION}.WINDOW", window, window >= 1, "at least 1")
        self.num_classes = num_classes
        self.exponent = exponent
        self.network = SampleWeightingNetwork(
            ["cls"], box_loss_dim=box_loss_dim, init="zero_output"
        )
        # The relative loss, the IoU, the probability, the class (of which the mean is the class
        # itself), and the box loss.
        self.memory = ObjectMemory(4 + box_loss_dim, window=window)

    @classmethod
    def from_config(cls, cfg, *, box_loss_dim: int, has_mask: bool) -> dict[str, Any]:
        return {
            **super().from_config(cfg, box_loss_dim=box_loss_dim, has_mask=has_mask),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "box_loss_dim": box_loss_dim,
        }

    def forward(self, statistics: SampleStatistics) -> SampleWeights:
        # Eq. 9 has exponentials and sums over all samples: not for half precision.
        with torch.autocast(statistics.cls_loss.device.type, enabled=False):
            return self._weigh(statistics.finite())

    def _weigh(self, statistics: SampleStatistics) -> SampleWeights:
        foreground = statistics.foreground
        objects = statistics.detail("annotation")[foreground]
        classes = statistics.detail("gt_class")[foreground]
        label_loss = statistics.detail("label_loss").float()
        relative = torch.nan_to_num(label_loss.detach()[foreground]).clamp(0, _LARGEST_LOSS)
        relative = relative / self._guess_loss(classes)

        columns = [relative, statistics.iou[foreground], statistics.prob[foreground], classes]
        now = torch.cat(
            [torch.stack([c.float() for c in columns], dim=1), statistics.box_loss[foreground]],
            dim=1,
        )
        past, seen = self.memory.recall(objects)
        exponent = self._exponent()
        self.memory.remember(objects, now)
        is_known = seen > 0
        past = torch.where(is_known[:, None], past, now)
        remembered = SampleStatistics(
            cls_loss=past[:, 0],
            iou=past[:, 1],
            prob=past[:, 2],
            box_loss=past[:, 4:],
            is_foreground=torch.ones_like(is_known),
            normalizers=statistics.normalizers,
            foreground=torch.arange(len(objects), device=objects.device),
        )
        m = self.network(remembered)["cls"].clamp(-_CLAMP, _CLAMP)
        count = max(len(objects), 1)
        objective = (torch.exp(-m) * relative).sum() / count
        w = torch.exp(-exponent * m.detach()).clamp(max=1)
        w = torch.where(is_known, w, torch.ones_like(w))
        w = torch.ones_like(statistics.cls_loss).index_copy(0, foreground, w)
        return SampleWeights(
            cls=_weight_of_cross_entropy(w, label_loss, statistics),
            # As in SWN: the value is R(m), the gradient that of all of Eq. 9.
            regularizers={"loss_swn_cls": m.sum() / count + objective - objective.detach()},
            learned={"cls": w},
        )

    def _guess_loss(self, classes: Tensor) -> Tensor:
        """(F,) ``-log(share of the class)`` among the objects seen so far, each class once more."""
        remembered, is_seen = self.memory.mean[:, 3].long(), (self.memory.seen > 0).float()
        counts = is_seen.new_ones(self.num_classes).index_add_(0, remembered, is_seen)
        return -torch.log(counts[classes] / counts.sum()).clamp(max=-_SMALLEST_LOSS)

    def _exponent(self) -> Tensor:
        """(), k for the detector as it is now."""
        losses = torch.where(self.memory.seen > 0, self.memory.mean[:, 0], torch.nan)
        median = torch.nanmedian(losses) if len(losses) else losses.new_tensor(torch.nan)
        return self.exponent * (2 * (1 - torch.nan_to_num(median, nan=1.0))).clamp(0, 1)


def _weight_of_cross_entropy(
    weight: Tensor, label_loss: Tensor, statistics: SampleStatistics
) -> Tensor:
    """(R,) with its graph: times the cross-entropy, it is the cross-entropy in which only the
    part ``label_loss`` (R,) has the ``weight`` (R,)."""
    whole = statistics.detail("cross_entropy").clamp(min=_SMALLEST_LOSS)
    return 1 - (1 - weight) * torch.minimum(label_loss, whole) / whole
