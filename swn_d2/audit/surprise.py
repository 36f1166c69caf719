"""How unexpected annotations are to who may doubt them: what localisers learn by."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .contrasts import interpolate
from .evidence import DECOY_MOVES

__all__ = ["Told", "surprise", "surprise_of_class", "surprise_of_told"]

_BLUR = 1.5  # bins, of where an annotated side is
# How likely any box is taken to be badly placed, and any class wrong, before anything is known.
_DOUBT, _DOUBT_OF_CLASS = 0.6, 0.3
_SOFT = 0.02  # of a window, the edge of where the sides of such a box may have been moved from


class Told(NamedTuple):
    """What somebody else says of the boxes of n objects.

    Attributes:
        doubt: (n,) how likely each is badly placed.
        near: (n, 4, P) how likely each side then is at P places, from a fifth of the box before
            where it is annotated to a fifth behind.
    """

    doubt: Tensor
    near: Tensor


def surprise(log_probs: Tensor, places: Tensor) -> Tensor:
    """(n,) how far boxes are from where they are expected: negative log-likelihoods, per side.

    Annotators place boxes well or badly. Then either all sides are annotated where the object ends,
    or each is up to a fifth of the box away from there. Of a mixture of the two, the sides of a box
    that is likely the second teach little, and the more is known, the surer that is. (Where an
    object ends is blurred; of that, the likelihood is the bound that cross-entropy is.)

    Args:
        log_probs: (n, 4, B) of where the sides of the objects are.
        places: (n, 4) where they are annotated, from 0 to 1 in the window.
    """
    away, reach = _away(log_probs, places)
    well = (_blurred(away) * log_probs).sum(dim=-1)
    total = 2 * log_probs.shape[-1] * _SOFT * F.softplus(reach / _SOFT)
    moved = F.logsigmoid((reach - away.abs()) / _SOFT) - total.log()
    badly = (log_probs + moved).logsumexp(dim=-1)
    good, bad = math.log(1 - _DOUBT) + well.sum(dim=-1), math.log(_DOUBT) + badly.sum(dim=-1)
    return -torch.logaddexp(good, bad) / 4


def surprise_of_told(log_probs: Tensor, places: Tensor, told: Told) -> Tensor:
    """(n,) the same where somebody else has said how likely each box is badly placed, and where it
    is then: cross-entropies with the mixture of that and of where it is annotated, per side.

    Args:
        log_probs, places: as :func:`surprise` takes them.
        told: what was said of these boxes.
    """
    away, reach = _away(log_probs, places)
    at = (away / reach + 1) / 2 * (told.near.shape[-1] - 1)
    moved = interpolate(told.near, at).clamp(min=1e-6) * ((reach - away.abs()) / _SOFT).sigmoid()
    doubt = told.doubt[:, None, None]
    expected = (1 - doubt) * _blurred(away) + doubt * moved / moved.sum(dim=-1, keepdim=True)
    return -(expected * log_probs).sum(dim=-1).mean(dim=-1)


def _away(log_probs: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 4, B) how far the bins are from where the sides are annotated, and (n, 4, 1) how far
    these may have been moved, in windows."""
    bins = log_probs.shape[-1]
    middles = (torch.arange(bins, device=places.device) + 0.5) / bins
    sizes = (places[:, 2:] - places[:, :2]).repeat(1, 2)
    reach = (DECOY_MOVES * sizes).clamp(min=1 / bins)
    return middles - places[..., None], reach[..., None]


def _blurred(away: Tensor) -> Tensor:
    """(n, 4, B) how likely the bins are where the sides are annotated."""
    return (-0.5 * (away * away.shape[-1] / _BLUR) ** 2).softmax(dim=-1)


def surprise_of_class(log_probs: Tensor, classes: Tensor) -> Tensor:
    """(n,) how unexpected classes are: negative log-likelihoods.

    A class is annotated as it is, or, if it is wrong, as any one alike. Of a mixture of the two, an
    object that is likely the second teaches little (the forward correction of Patrini et al. 2017,
    "Making Deep Neural Networks Robust to Label Noise", for errors that fall on all classes alike).

    Args:
        log_probs: (n, K) of what the objects are.
        classes: (n,) as which they are annotated.
    """
    own = log_probs.gather(1, classes[:, None])[:, 0].exp()
    return -((1 - _DOUBT_OF_CLASS) * own + _DOUBT_OF_CLASS / log_probs.shape[1]).log()
