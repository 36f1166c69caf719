"""What objects are and where, by localisers of which none has learned from what it judges."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .annotations import Annotations
from .appearance import as_tensor
from .evidence import DECOY_MOVES, place_decoys
from .localiser import Localiser, interpolate, train_localiser, windows_around
from .progress import Progress, silent

__all__ = ["Placements", "gather_placements", "judge_placements", "rate"]

_FOLDS = 2
_VIEWS = 4  # of each object, every second one mirrored
# Of what is judged: a side, and where it may be moved to, are where the localiser has seen sides
# equally often in a window, so that the window does not give the annotated one away.
_EDGES = (0.18, 0.28)
_REACH, _STEPS = 0.6, 121  # of a box, to each side of where a side is annotated
_ANYWHERE = 0.05  # density, per width or height of the box, that a side has everywhere
_AT_ONCE = 64  # windows, for the memory's sake


@dataclass(frozen=True)
class Placements:
    """About N annotations, each with D decoys.

    Attributes:
        contrasts: (N, 1 + D, 4) float32, of the annotated box and its decoys: logarithms of the
            density with which the left, upper, right and lower side are expected where they are,
            against the mean density of all places that they could have been moved there from.
        located: (N, 4) float32 where the object is, XYXY in pixels: the medians of where the sides
            of the annotated box could have been moved from.
        log_probs: (N, K) float32 logarithms of the probabilities of the classes.
    """

    contrasts: np.ndarray
    located: np.ndarray
    log_probs: np.ndarray


def gather_placements(
    model: nn.Module,
    annotations: Annotations,
    input_format: str,
    *,
    progress: Progress = silent,
) -> Placements:
    """Let localisers learn from the annotations of some pictures, and judge those of others.

    A detector sees small objects in few pixels, and has learned from what it judges.
    A localiser sees each object at the same size, and no more than about where it is.

    Args:
        model: one of Detectron2's detectors, with the backbone that a localiser starts from.
        annotations: N of them. Where they are in fewer pictures than there are localisers, nothing
            is learned, all contrasts are 0, and all classes equally likely.
        input_format: of the model's pictures, ``INPUT.FORMAT``.
        progress: goes through the steps of each localiser's training, and then the pictures.

    Raises:
        UserError: a picture can't be read or has another size than the annotations say, or a
            localiser's training diverges.
    """
    placed = _placed(annotations)
    contrasts = np.zeros(placed.shape, np.float32)
    located = annotations.boxes.copy()
    num_classes = len(annotations.category_ids)
    log_probs = np.full((len(placed), num_classes), -np.log(num_classes), np.float32)
    pictures = np.random.default_rng(0).permutation(np.unique(annotations.image))
    if len(pictures) < _FOLDS:
        return Placements(contrasts, located, log_probs)
    fold_of = np.zeros(len(annotations.images), np.int64)
    fold_of[pictures] = np.arange(len(pictures)) % _FOLDS
    folds = fold_of[annotations.image]
    localisers = []
    for k in range(_FOLDS):
        rows = np.flatnonzero(folds != k)
        localisers.append(
            train_localiser(
                *(model, annotations, rows, input_format),
                seed=k,
                name=f"localiser {k + 1} of {_FOLDS}",
                progress=progress,
            )
        )
    seen = progress(annotations.by_picture(), "localisers judge the annotations")
    for i, rows in enumerate(seen):
        if len(rows):
            picture = as_tensor(model, annotations.read_picture(i, input_format))
            contrasts[rows], located[rows], log_probs[rows] = judge_placements(
                localisers[fold_of[i]],
                picture,
                placed[rows],
                annotations.classes[rows],
                np.random.default_rng(i),
            )
    if not all(np.isfinite(x).all() for x in (contrasts, located, log_probs)):
        raise UserError(
            "the localiser predicts values that are not finite (NaN): its training has diverged. "
            "Give other weights, or leave the localisers out with --quick."
        )
    return Placements(contrasts, located, log_probs)


def _placed(annotations: Annotations) -> np.ndarray:
    """(N, 1 + D, 4): every annotated box and its decoys, as far as they are in the picture. Nobody
    annotates what is outside, and a localiser knows that."""
    placed = place_decoys(annotations)
    sizes = np.array([[image["width"], image["height"]] for image in annotations.images])
    limits = np.tile(sizes[annotations.image], 2)[:, None]
    placed[:, 1:] = np.clip(placed[:, 1:], 0, limits)
    return placed


@torch.no_grad()
def judge_placements(
    localiser: Localiser,
    picture: Tensor,
    placed: np.ndarray,
    classes: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, 1 + D, 4) the contrasts, (n, 4) where the objects are and (n, K) what they are, for those
    of a picture: see :class:`Placements`. For the classes, the looks' logarithms are averaged.

    Args:
        picture: (1, 3, H, W), as the backbone takes it.
        placed: (n, 1 + D, 4) XYXY in pixels.
        classes: (n,) of the objects.
    """
    annotated = placed[:, 0].repeat(_VIEWS, axis=0)
    windows = torch.from_numpy(windows_around(annotated, rng, _EDGES))
    mirrored = (torch.arange(_VIEWS) % 2 == 1).repeat(len(placed))
    columns = windows, torch.from_numpy(classes).repeat_interleave(_VIEWS), mirrored
    parts = zip(*(column.split(_AT_ONCE) for column in columns), strict=True)
    looks = [localiser.look(picture, *(c.to(picture.device) for c in part)) for part in parts]
    of_sides, of_classes = (torch.cat(column).cpu() for column in zip(*looks, strict=True))
    windows, of_sides, of_classes = (
        x.unflatten(0, (len(placed), _VIEWS)) for x in (windows, of_sides, of_classes)
    )
    contrasts, located = rate(torch.from_numpy(placed), windows, of_sides)
    return contrasts.numpy(), located.numpy(), of_classes.mean(dim=1).log_softmax(dim=-1).numpy()


def rate(placed: Tensor, windows: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """The contrasts, and where the objects are, by V looks at each of n objects.

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
    near = (DECOY_MOVES * _sizes(placed) / sizes[:, None]).transpose(1, 2)
    there = interpolate(density, (at + _REACH) / step)
    lower, upper = (interpolate(up_to, (at + end + _REACH) / step) for end in (-near, near))
    contrasts = ((there + _ANYWHERE) / ((upper - lower) / (2 * near) + _ANYWHERE)).log()
    # If a side has been moved, it was not from farther away.
    half = (lower + upper)[..., :1] / 2
    median = offsets[(up_to < half).sum(dim=-1).clamp(max=_STEPS - 1)]
    return contrasts.transpose(1, 2), annotated + median * sizes


def _sizes(boxes: Tensor) -> Tensor:
    """(..., 4): width, height, width, height of boxes (..., 4)."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=1).repeat(*[1] * (boxes.dim() - 1), 2)
