"""What a training has seen of every object so far."""

import torch
from torch import Tensor, nn

from ..errors import UserError
from .processes import of_all_processes

__all__ = ["ObjectMemory"]


class ObjectMemory(nn.Module):
    """Running means of statistics over the samples that an object has been trained with.

    The losses of one region say little about its object; those of all its regions, over the
    epochs, say much. An object is an annotation of the training set, known by its number there.
    Of the samples that it has in a batch, over all processes, the mean is taken; the mean over
    batches forgets slowly, since the detector gets better: once an object has been seen ``window``
    times, every new batch counts ``1 / window``.

    A :class:`~swn_d2.SWNTrainer` finds the memories in the modules of its weighters, allocates them
    for its training set, and keeps them in its checkpoints by :meth:`get_state` and
    :meth:`set_state`. They are no part of the module's state dict, since they belong to the
    training and its data, and not to the detector. A memory needs ``4 (S + 1)`` bytes for each
    object on each device, and a few times as much for a moment in :meth:`remember`.
    """

    def __init__(self, num_statistics: int, *, num_objects: int = 0, window: int = 4):
        """
        Args:
            num_statistics: S, how many statistics are kept.
            num_objects: N; :meth:`allocate` can say so later.
            window: see above, at least 1.
        """
        super().__init__()
        self.window = window
        self.register_buffer("mean", torch.zeros(num_objects, num_statistics), persistent=False)
        self.register_buffer("seen", torch.zeros(num_objects), persistent=False)

    def allocate(self, num_objects: int) -> None:
        """Forget everything, and make room for ``num_objects``."""
        self.mean = self.mean.new_zeros(num_objects, self.mean.shape[1])
        self.seen = self.seen.new_zeros(num_objects)

    def recall(self, objects: Tensor) -> tuple[Tensor, Tensor]:
        """What is known of some samples' objects, a copy.

        Args:
            objects: (F,) long, the number of each sample's object, at least 0.

        Returns:
            (F, S) the means, 0 for an object that has not been seen; and (F,) float32, in how many
            batches it has been.
        """
        return self.mean[objects], self.seen[objects]

    @torch.no_grad()
    def remember(self, objects: Tensor, statistics: Tensor) -> Tensor:
        """Take in a batch. Every process must call it for its part, even if that has no sample.

        Args:
            objects: (F,) long, the number of each sample's object, at least 0.
            statistics: (F, S), finite.

        Returns:
            (F',) long, ``objects`` of all processes after one another, the same in each of them.
        """
        statistics = statistics.float()
        objects, statistics = of_all_processes(objects, statistics)
        ones = statistics.new_ones(len(objects))
        count = torch.zeros_like(self.seen).index_add_(0, objects, ones)
        total = torch.zeros_like(self.mean).index_add_(0, objects, statistics)
        is_there = count > 0
        self.seen += is_there
        rate = is_there / self.seen.clamp(min=1, max=self.window)
        self.mean += rate[:, None] * (total / count.clamp(min=1)[:, None] - self.mean)
        return objects

    def get_state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: (N, S) ``mean`` and (N,) ``seen``."""
        return {"mean": self.mean, "seen": self.seen}

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what :meth:`get_state` gave.

        Raises:
            UserError: it is of another number of objects or statistics.
        """
        then, now = tuple(state["mean"].shape), tuple(self.mean.shape)
        if then != now:
            raise UserError(
                f"the checkpoint remembers {then[1]} statistics of {then[0]} annotations, but now "
                f"there are {now[1]} of {now[0]}: the training set or the sample weighter has "
                "changed. Resume with those that it was written with, or start a new run from its "
                "MODEL.WEIGHTS."
            )
        self.mean.copy_(state["mean"])
        self.seen.copy_(state["seen"])
