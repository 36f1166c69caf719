"""How surely the sides of boxes are expected to be where they are."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .evidence import DECOY_MOVES

__all__ = ["Placements", "interpolate", "mirror_sides", "rate"]

_REACH, _STEPS = 0.6, 121  # of a box, to each side of where a side is annotated
_NEAR = round(DECOY_MOVES * (_STEPS - 1) / (2 * _REACH))  # of the steps
_ANYWHERE = 0.05  # density, per width or height of the box, that a side has everywhere


class Placements(NamedTuple):
    """About N annotations, each with D decoys.

    Attributes:
        contrasts: (N, 1 + D, 4) float32, of the annotated box and its decoys: logarithms of the
            density with which the left, upper, right and lower side are expected where they are,
            against the mean density of all places that they could have been moved there from.
        near: (N, 4, P) float32, the density with which each side of the annotated box is expected
            at P places, from as far before it as a decoy's may be moved to as far behind it.
        located: (N, 4) float32 where the object is, XYXY in pixels: the medians of where the sides
            of the annotated box could have been moved from.
        log_probs: (N, K) float32 logarithms of the probabilities of the classes.
    """

    contrasts: np.ndarray
    near: np.ndarray
    located: np.ndarray
    log_probs: np.ndarray

    @classmethod
    def unknown(cls, placed: np.ndarray, num_classes: int) -> "Placements":
        """Nothing can be said of annotated boxes and their decoys, ``placed``, (N, 1 + D, 4)."""
        near = np.zeros((len(placed), 4, 2 * _NEAR + 1), np.float32)
        log_probs = np.full((len(placed), num_classes), -np.log(num_classes), np.float32)
        return cls(np.zeros_like(placed), near, placed[:, 0], log_probs)


def rate(placed: Tensor, windows: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The contrasts, the densities near the annotated sides, and where the objects are, by V looks
    at each of n objects: see :class:`Placements`.

    Args:
        placed: (n, 1 + D, 4).
        windows: (n, V, 4) that a localiser has seen.
        log_probs: (n, V, 4, B) what it says of the sides.
    """
    annotated, bins = placed[:, 0], log_probs.shape[-1]
    sizes, window_sizes = _sizes(annotated), _sizes(windows)
    # How dense a side is expected, about where it is annotated: the mean of the looks.
    offsets = torch.linspace(-_REACH, _REACH, _STEPS)
    about = (annotated[..., None] + offsets * sizes[..., None])[:, None]
    corners = windows[..., :2].repeat(1, 1, 2)
    places = (about - corners[..., None]) / window_sizes[..., None]
    in_window = interpolate(log_probs, places * bins - 0.5).exp() * bins
    density = (in_window * (sizes[:, None] / window_sizes)[..., None]).mean(dim=1)
    # And how much of it is up to there.
    step = 2 * _REACH / (_STEPS - 1)
    up_to = F.pad(((density[..., 1:] + density[..., :-1]) / 2 * step).cumsum(dim=-1), (1, 0))
    at = ((placed - annotated[:, None]) / sizes[:, None]).transpose(1, 2)
    reach = (DECOY_MOVES * _sizes(placed) / sizes[:, None]).transpose(1, 2)
    there = interpolate(density, (at + _REACH) / step)
    lower, upper = (interpolate(up_to, (at + end + _REACH) / step) for end in (-reach, reach))
    contrasts = ((there + _ANYWHERE) / ((upper - lower) / (2 * reach) + _ANYWHERE)).log()
    # If a side has been moved, it was not from farther away.
    half = (lower + upper)[..., :1] / 2
    median = offsets[(up_to < half).sum(dim=-1).clamp(max=_STEPS - 1)]
    near = density[..., _STEPS // 2 - _NEAR : _STEPS // 2 + _NEAR + 1]
    # Contiguous, so that the rest need not be kept.
    return contrasts.transpose(1, 2), near.contiguous(), annotated + median * sizes


def _sizes(boxes: Tensor) -> Tensor:
    """(..., 4): width, height, width, height of boxes (..., 4)."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=1).repeat(*[1] * (boxes.dim() - 1), 2)


def mirror_sides(values: Tensor) -> Tensor:
    """(n, 4, P): values at places about the left, upper, right and lower side (n, 4, P), as they
    are in a mirror image."""
    left, top, right, bottom = values.unbind(dim=1)
    return torch.stack([right.flip(-1), top, left.flip(-1), bottom], dim=1)


def interpolate(values: Tensor, at: Tensor) -> Tensor:
    """(..., n): values (..., B), of which the first is at 0 and the next at 1, at n places each,
    (..., n), linearly between them; beyond the ends as there."""
    last = values.shape[-1] - 1
    at = at.clamp(0, last)
    lower = at.floor().long().clamp(max=last - 1)
    below, above = values.gather(-1, lower), values.gather(-1, lower + 1)
    return below + (above - below) * (at - lower)
