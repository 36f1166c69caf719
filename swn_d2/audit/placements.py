"""What objects are and where, by localisers of which none has learned from what it judges."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from .annotations import Annotations
from .appearance import as_tensor
from .contrasts import Placements, rate
from .evidence import place_decoys
from .localiser import Localiser, new_localiser, train_localiser, windows_around
from .misplaced_boxes import FEWEST_PICTURES, find_unexpected_boxes
from .progress import Progress, silent
from .surprise import Told

__all__ = ["gather_placements", "judge_placements"]

_FOLDS = 2
_FEWEST_TO_LEARN_ON = 400  # annotations: with less than a hundred a localiser forgets what it knew
_VIEWS = 4  # of each object, every second one mirrored
# Of what is judged: a side, and where it may be moved to, are where the localiser has seen sides
# equally often in a window, so that the window does not give the annotated one away.
_EDGES = (0.18, 0.28)
_AT_ONCE = 64  # windows, for the memory's sake


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

    Boxes are judged twice, where there are some hundred and it can be said how many of them are
    badly placed: after the first time, each localiser learns on from what the others said of the
    boxes that it learns from, and need not doubt all of them alike.

    Args:
        model: one of Detectron2's detectors, with the backbone that a localiser starts from.
        annotations: N of them. Where they are in too few pictures to say how boxes mostly lie,
            nothing is learned, all contrasts are 0, and all classes equally likely.
        input_format: of the model's pictures, ``INPUT.FORMAT``.
        progress: goes through the steps of each localiser's training, and then the pictures; and
            both once more.

    Raises:
        UserError: a picture can't be read or has another size than the annotations say, or a
            localiser's training diverges.
    """
    num_classes = len(annotations.category_ids)
    pictures = np.random.default_rng(0).permutation(np.unique(annotations.image))
    if len(pictures) < FEWEST_PICTURES:
        return Placements.unknown(_placed(annotations), num_classes)
    fold_of = np.zeros(len(annotations.images), np.int64)
    fold_of[pictures] = np.arange(len(pictures)) % _FOLDS
    localisers = [new_localiser(model, num_classes, seed) for seed in range(_FOLDS)]

    def learn_and_judge(told: Told | None, learns: str, judge: str) -> Placements:
        for k, localiser in enumerate(localisers):
            rows = np.flatnonzero(fold_of[annotations.image] != k)
            train_localiser(
                *(localiser, model, annotations, rows, input_format, told),
                seed=k if told is None else _FOLDS + k,
                what=f"localiser {k + 1} of {_FOLDS} {learns}",
                progress=progress,
            )
        seen = progress(annotations.by_picture(), f"localisers {judge}")
        return _judge(localisers, fold_of, model, annotations, input_format, seen)

    first = learn_and_judge(None, "learns what objects are, and where", "judge the annotations")
    if not _is_finite(first):
        raise UserError(
            "the localiser predicts values that are not finite (NaN): its training has diverged. "
            "Give other weights, or leave the localisers out with --quick."
        )
    boxes = find_unexpected_boxes(first, annotations.image)
    if not boxes.share.is_known or len(annotations.ids) < _FEWEST_TO_LEARN_ON:
        return first
    told = Told(torch.from_numpy(boxes.suspicion), torch.from_numpy(first.near))
    second = learn_and_judge(told, "learns on from what the other says", "judge the boxes again")
    if not (_is_finite(second) and find_unexpected_boxes(second, annotations.image).share.is_known):
        return first
    return second._replace(log_probs=first.log_probs)


def _judge(
    localisers: Sequence[Localiser],
    fold_of: np.ndarray,
    model: nn.Module,
    annotations: Annotations,
    input_format: str,
    pictures: Iterable[np.ndarray],
) -> Placements:
    """What they make of the annotations, each of those of its fold.

    Args:
        fold_of: of each picture.
        pictures: the rows of each one's annotations.
    """
    placed, judged, order = _placed(annotations), [], []
    for i, rows in enumerate(pictures):
        if len(rows):
            picture = as_tensor(model, annotations.read_picture(i, input_format))
            objects = placed[rows], annotations.classes[rows]
            order.append(rows)
            judged.append(
                judge_placements(
                    localisers[fold_of[i]], picture, *objects, np.random.default_rng(i)
                )
            )
    back = np.argsort(np.concatenate(order))
    return Placements(*(np.concatenate(column)[back] for column in zip(*judged, strict=True)))


def _is_finite(placements: Placements) -> bool:
    return all(np.isfinite(column).all() for column in placements)


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
) -> Placements:
    """What a localiser says of n objects of a picture. For the classes, the looks' logarithms are
    averaged.

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
    rated = rate(torch.from_numpy(placed), windows, of_sides)
    log_probs = of_classes.mean(dim=1).log_softmax(dim=-1)
    return Placements(*(x.numpy() for x in (*rated, log_probs)))
