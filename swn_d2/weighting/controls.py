"""Controls: weights without a part of what a weighter says, to tell what its effect is made of."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from .checks import check_choice
from .statistics import SampleStatistics, SampleWeights

__all__ = ["CONTROLS", "add_control", "controlled"]

#: What ``MODEL.SAMPLE_WEIGHTER.CONTROL`` can be.
CONTROLS = ("none", "rate", "balance", "shuffle")


def add_control(weighter: nn.Module, control: str) -> nn.Module:
    """Have a weighter give what :func:`controlled` makes of its weights.

    A hook on the module does it, so that the weighter keeps its class, its parameters and their
    names. Hooks that are registered later, like those that record samples, see the replacement.

    Args:
        weighter: a :class:`~swn_d2.weighting.SampleWeighter`.
        control: one of :data:`CONTROLS`; "none" changes nothing.

    Returns:
        The weighter.

    Raises:
        UserError: there is no such control.
    """
    check_choice("MODEL.SAMPLE_WEIGHTER.CONTROL", control, CONTROLS)
    if control != "none":
        weighter.register_forward_hook(partial(_replace_weights, control))
    return weighter


def _replace_weights(control: str, weighter: nn.Module, inputs, weights) -> SampleWeights:
    # Variances are trained through the weights, too.
    keep_gradient = weighter.learns_by_weights or weighter.uses_log_variance
    return controlled(weights, inputs[0], control, keep_gradient=keep_gradient)


def controlled(
    weights: SampleWeights,
    statistics: SampleStatistics,
    control: str,
    *,
    keep_gradient: bool = False,
) -> SampleWeights:
    """The weights that the detector sees under a control; regularisers and ``learned`` stay.

    The mean is taken over the batch; for weights per column of the box loss, of each column. In
    the label, box and mask losses only positives are a group; the weights of negatives have no
    effect.

    Args:
        weights: what the weighter says; a task without weights keeps weight 1.
        statistics: what it was said of.
        control: "rate", the mean weight of the task for every sample; "balance", the mean over
            positives for positives and over negatives for negatives; or "shuffle", each sample
            the weights of a random one of its group, in all tasks of the same one.
        keep_gradient: the new values are constants, unless this lets them pass on the gradient
            of the weights that they replace, by which some weighters learn.
    """
    is_foreground = statistics.is_foreground
    order = _exchange(is_foreground, statistics.iteration) if control == "shuffle" else None
    result = {}
    for task, given in weights.by_name().items():
        values = given.detach()
        if order is not None:
            values = values[order]
        elif task != "cls":
            values = _mean_for(is_foreground, values)
        elif control == "balance":
            values = _mean_for(~is_foreground, _mean_for(is_foreground, values))
        else:
            values = _mean_for(torch.ones_like(is_foreground), values)
        result[task] = values + (given - given.detach()) if keep_gradient else values
    return replace(weights, **result)


def _mean_for(group: Tensor, values: Tensor) -> Tensor:
    """``values`` (R,) or (R, D) with their mean over ``group`` (R,) bool in its places. Without
    indexing by a mask, which makes a GPU wait for the host."""
    members = group if values.dim() == 1 else group[:, None]
    mean = torch.where(members, values, 0.0).sum(dim=0) / group.sum().clamp(min=1)
    return torch.where(members, mean, values)


def _exchange(group: Tensor, seed: int) -> Tensor:
    """(R,) long, for each sample a random one of its own ``group`` (R,) bool, each once.

    The generator is its own, so that the detector samples the regions that it would without."""
    generator = torch.Generator(device=group.device).manual_seed(seed)
    key = group + torch.rand(len(group), generator=generator, device=group.device)
    # Both orders have the members of one group first, this one in a random sequence.
    taken_from = key.argsort()
    place = group.int().argsort(stable=True)
    return torch.empty_like(place).index_copy(0, place, taken_from)
