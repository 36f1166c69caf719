"""The pieces of the objective (Eq. 9 of the paper) that are sums over groups of samples.

A *group* is a (R,) bool mask: positives, negatives, or all samples. Groups are applied by
multiplication, not by indexing, since indexing with a mask makes a GPU wait for the host.
"""

import torch
from torch import Tensor

__all__ = ["average_per_group", "group_mean", "group_std", "preserve_total_loss", "regularizer"]


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """Mean of ``values`` (R,) over ``group`` (R,) bool; 0, with a graph, for an empty group."""
    return (values * group).sum() / group.sum().clamp(min=1)


def group_std(values: Tensor, group: Tensor) -> Tensor:
    """Standard deviation (of the population) of ``values`` over ``group``, both (R,)."""
    return group_mean((values - group_mean(values, group)).square(), group).sqrt()


def average_per_group(values: Tensor, groups: list[Tensor]) -> Tensor:
    """Each of ``values`` (R,) replaced by the mean of its group (Sec. 3.4, the smoothing).

    The groups must be disjoint; a sample in none of them gets 0.
    """
    return torch.stack([group_mean(values, group) * group for group in groups]).sum(dim=0)


def regularizer(m: Tensor, groups: list[Tensor], divisors: list[float | Tensor]) -> Tensor:
    """``R(m)``, the second and fourth term of Eq. 9: per group ``sum_i m_i`` over its divisor.

    Dividing by the detector's own normalizer is Eq. 9 summed over the samples, dividing by the
    size of the group is the authors' code.
    """
    return torch.stack(
        [(m * group).sum() / divisor for group, divisor in zip(groups, divisors, strict=True)]
    ).sum()


def preserve_total_loss(weights: Tensor, losses: Tensor, group: Tensor) -> Tensor:
    """The factor that gives ``group`` the total weighted loss that it has without weights.

    With it the weights say how much a sample counts *relative to its group*, and can neither
    change the balance between groups and tasks nor act as a learning rate.

    Args:
        weights, losses, group: (R,) positive weights, non-negative losses, the bool mask. The
            losses are those that are counted, :meth:`.SampleStatistics.counted_loss`: what the data
            leave out has no total to be kept.

    Returns:
        0-d tensor ``sum_i L_i / sum_i w_i L_i`` over the group; 1 where the group has no loss.
    """
    total = (losses * group).sum()
    weighted_total = (weights * losses * group).sum()
    return torch.where(weighted_total > 0, total / weighted_total, torch.ones_like(total))
