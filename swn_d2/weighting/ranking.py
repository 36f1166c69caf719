"""Ranks of samples among those of their group, without a loop over the groups."""

import torch
from torch import Tensor

__all__ = ["rank_within"]


def rank_within(group: Tensor, *keys: Tensor) -> Tensor:
    """(R,) long, the position of every sample among those of its group, counted from 0.

    Args:
        group: (R,) long, equal for the samples of a group.
        keys: (R,) each, what a group is sorted by in ascending order, the most significant key
            first. Samples that are equal in all of them stay in their order.
    """
    order = torch.arange(len(group), device=group.device)
    for key in (*reversed(keys), group):  # stable, so the last one sorted by counts most
        order = order[key[order].argsort(stable=True)]
    in_order = group[order]
    first_of_group = torch.searchsorted(in_order, in_order)
    positions = torch.arange(len(group), device=group.device) - first_of_group
    return torch.empty_like(positions).index_copy(0, order, positions)
