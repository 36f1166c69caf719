"""What the weighted heads of all of torchvision's detectors have in common."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..weighting import SampleLosses, SampleStatistics, SampleWeighter, weighted_losses

__all__ = ["IterationCounter", "WeightedHead", "object_offsets"]


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
