"""What the weighted heads of all of torchvision's detectors have in common."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from ..weighting import (
    IterationCounter,
    SampleLosses,
    SampleStatistics,
    SampleWeighter,
    weighted_losses,
)

__all__ = ["WeightedHead", "object_offsets"]


class WeightedHead:
    """A part of a torchvision detector, turned into a class that weights its samples.

    Attributes:
        LOSS_NAMES: task -> torchvision's name of its loss.
        RELIES_ON: what is used of torchvision beside its public names: function, as an attribute of
            ``torchvision.models.detection`` -> its parameters.
        IS_DENSE: whether every anchor or location is a sample.
        sample_weighter: gives the weights.
    """

    LOSS_NAMES: ClassVar[dict[str, str]]
    RELIES_ON: ClassVar[dict[str, str]]
    IS_DENSE: ClassVar[bool]
    sample_weighter: SampleWeighter

    def add_weighter(self, sample_weighter: SampleWeighter) -> None:
        """Start to weight samples."""
        self.sample_weighter = sample_weighter
        self.sample_weighter_counter = IterationCounter()

    @staticmethod
    def box_loss_dim(head: nn.Module) -> int:
        """Columns of the unreduced box loss; ``head`` may still be torchvision's."""
        raise NotImplementedError

    @staticmethod
    def has_sample_masks(head: nn.Module) -> bool:
        """Whether samples have a mask loss; ``head`` may still be torchvision's."""
        return False

    def weighted(self, losses: SampleLosses, statistics: SampleStatistics) -> dict[str, Tensor]:
        """The losses by torchvision's names, and the weighter's regularisers."""
        return weighted_losses(self.sample_weighter, losses, statistics, self.LOSS_NAMES)


def object_offsets(targets: Sequence[dict[str, Tensor]]) -> list[int]:
    """For each image, how many objects the images before it have."""
    offsets = [0]
    for target in targets:
        offsets.append(offsets[-1] + len(target["labels"]))
    return offsets[:-1]
