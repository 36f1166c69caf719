"""A network that learns from annotations what an object is, and where its sides are."""

import copy
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .annotations import Annotations, split
from .appearance import as_tensor, bottom_up, crop
from .contrasts import mirror_sides
from .progress import Progress, silent
from .surprise import Told, surprise, surprise_of_class, surprise_of_told

__all__ = ["Localiser", "new_localiser", "places_in", "train_localiser", "windows_around"]

_SIDE = 128  # pixels of a crop
_BINS = 64  # places in a crop where a side may be
_CHANNELS, _GROUPS = 96, 8
_MAPS = 3  # of the backbone, the last ones
_EDGES = (0.04, 0.42)  # where the sides of a box are in its window, from the next edge

_EPOCHS = 8  # half as many once more, with what was told
_MOST_CROPS = 40_000  # so that many objects do not take longer to learn from than some thousand
_BATCH = 16
_TOGETHER = 8  # objects of a picture, at most, that are learned from in a row
_RATE, _BACKBONE_RATE = 1e-3, 2e-4
_DECAY = 1e-4


class Localiser(nn.Module):
    """Looks at a crop that an object lies in, and says what that is; and, its class being given,
    where its sides are: a distribution over the places in the crop for each.

    What the object is, it says of the mean of the backbone's last map. For the sides, what the
    backbone sees is brought to one map, together with the class. For each, that map is summed along
    the side, with a weight for each place, and on the row that is left every bin gets a score.
    """

    def __init__(self, backbone: nn.Module, num_classes: int):
        """
        Args:
            backbone: one of Detectron2's, that gives a dictionary of maps. It is copied, and what
                of it can be trained learns, too.
        """
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        channels = [shape.channels for shape in self.backbone.output_shape().values()][-_MAPS:]
        # Normalised, since features are of any size, and other ones in other backbones.
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, _CHANNELS, 1), nn.GroupNorm(_GROUPS, _CHANNELS))
            for c in channels
        )
        self.classify = nn.Sequential(
            nn.LayerNorm(channels[-1]), nn.Linear(channels[-1], num_classes)
        )
        self.of_class = nn.Embedding(num_classes, _CHANNELS)
        self.mix = nn.ModuleList(nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1) for _ in range(2))
        self.weight = nn.Conv2d(_CHANNELS, 4, 1)
        self.along = nn.ModuleList(nn.Conv1d(_CHANNELS, _CHANNELS, 5, padding=2) for _ in range(2))
        self.upsample = nn.ConvTranspose1d(_CHANNELS, _CHANNELS, 4, stride=2, padding=1)
        self.score = nn.ModuleList(nn.Conv1d(_CHANNELS, 1, 3, padding=1) for _ in range(4))
        self.eval()  # the statistics of batch normalisation stay those of the pretraining

    def forward(self, crops: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 4, B) logarithms of the probabilities of B bins, for the left, upper, right and lower
        side; and (n, K) of those of the classes, which do not know the given one.

        Args:
            crops: (n, 3, S, S), as the backbone takes pictures.
            classes: (n,) of their objects, for the sides.
        """
        maps = list(self.backbone(crops).values())[-_MAPS:]
        of_classes = self.classify(maps[-1].mean(dim=(2, 3))).log_softmax(dim=-1)
        size = maps[0].shape[-2:]
        seen = self.of_class(classes)[:, :, None, None]
        for lateral, features in zip(self.lateral, maps, strict=True):
            seen = seen + F.interpolate(lateral(features), size, mode="bilinear")
        seen = F.relu(seen)
        for convolution in self.mix:
            seen = F.relu(convolution(seen)) + seen
        weights = self.weight(seen)
        scores = []
        for side in range(4):
            axis = side % 2  # 0: the place of the side is an x
            summed = 2 + axis
            weight = weights[:, side : side + 1].softmax(dim=summed)
            row = (seen * weight).sum(dim=summed) + seen.mean(dim=summed)
            row = F.relu(self.along[axis](row)) + row
            score = self.score[side](F.relu(self.upsample(row)))
            scores.append(F.interpolate(score, _BINS, mode="linear")[:, 0])
        return torch.stack(scores, dim=1).log_softmax(dim=-1), of_classes

    @torch.no_grad()
    def look(
        self, picture: Tensor, windows: Tensor, classes: Tensor, mirrored: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(n, 4, B) and (n, K) what :meth:`forward` says of windows of a picture, some of which it
        is shown as mirror images.

        Args:
            picture: (1, 3, H, W).
            windows: (n, 4) XYXY in pixels.
            classes, mirrored: (n,).
        """
        crops = crop(picture, windows, _SIDE)
        of_sides, of_classes = self(_mirror_some(crops, mirrored), classes)
        return torch.where(mirrored[:, None, None], mirror_sides(of_sides), of_sides), of_classes


def windows_around(
    boxes: np.ndarray, rng: np.random.Generator, edges: tuple[float, float] = _EDGES
) -> np.ndarray:
    """(n, 4) float32: a window around each box (n, 4), so that each side is anywhere at the edge of
    the window alike, which thus tells nothing of the box. That of a narrow box is wider.

    Args:
        edges: how far from the edges of the window the sides of the box are, at least and at most,
            in widths and heights of the window.
    """
    sizes = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    shown = np.maximum(sizes, sizes.max(axis=1, keepdims=True) / 2)
    before, after = rng.uniform(*edges, (2, len(boxes), 2))
    window_sizes = shown / (1 - before - after)
    corners = boxes[:, :2] - (shown - sizes) / 2 - before * window_sizes
    return np.hstack([corners, corners + window_sizes]).astype(np.float32)


def new_localiser(model: nn.Module, num_classes: int, seed: int) -> Localiser:
    """One that has learned nothing yet, with the backbone of ``model``, one of Detectron2's
    detectors. The state of the global generators stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Localiser(bottom_up(model), num_classes).to(model.device)


def train_localiser(
    localiser: Localiser,
    model: nn.Module,
    annotations: Annotations,
    rows: np.ndarray,
    input_format: str,
    told: Told | None = None,
    *,
    seed: int,
    what: str = "a localiser learns",
    progress: Progress = silent,
) -> None:
    """Let a localiser learn from some of the annotations, or learn on from what it was told.

    Args:
        model: the detector with the backbone that it started from.
        rows: the indices of these annotations.
        input_format: of the model's pictures, ``INPUT.FORMAT``.
        told: what another localiser says of the boxes of all annotations, once there is one.
        seed: of what is shown in which order.
        what: is done here, for whoever waits.
        progress: goes through the steps.

    Raises:
        UserError: a picture can't be read or has another size than the annotations say.
    """
    rng = np.random.default_rng(seed)
    backbone = [p for p in localiser.backbone.parameters() if p.requires_grad]
    head = [p for name, p in localiser.named_parameters() if not name.startswith("backbone.")]
    groups, rates = [{"params": head}, {"params": backbone}], [_RATE, _BACKBONE_RATE]
    optimizer = torch.optim.AdamW(groups, weight_decay=_DECAY)
    crops = min(_EPOCHS * len(rows), _MOST_CROPS) // (1 if told is None else 2)
    steps = max(crops // _BATCH, 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps + 1)
    order = _endless(annotations, rows, rng)
    for _ in progress(range(steps), what):
        batch = np.array(list(itertools.islice(order, _BATCH)))
        batch = batch[np.argsort(annotations.image[batch], kind="stable")]
        boxes, images = annotations.boxes[batch], annotations.image[batch]
        windows = torch.from_numpy(windows_around(boxes, rng))
        shown = torch.cat(
            [
                _read_crops(model, annotations, image, windows[images == image], input_format)
                for image in np.unique(images)
            ]
        )
        mirrored = torch.from_numpy(rng.random(len(batch)) < 0.5).to(model.device)
        classes = torch.from_numpy(annotations.classes[batch]).to(model.device)
        of_sides, of_classes = localiser(_mirror_some(shown, mirrored), classes)
        left, top, right, bottom = places_in(torch.from_numpy(boxes), windows).to(of_sides).T
        across = torch.stack([1 - right, top, 1 - left, bottom], dim=1)
        upright = torch.stack([left, top, right, bottom], dim=1)
        places = torch.where(mirrored[:, None], across, upright)
        if told is None:
            loss = surprise(of_sides, places)
        else:
            doubt, near = (x[batch].to(of_sides) for x in told)
            near = torch.where(mirrored[:, None, None], mirror_sides(near), near)
            loss = surprise_of_told(of_sides, places, Told(doubt, near))
        loss = (loss + surprise_of_class(of_classes, classes)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _read_crops(
    model: nn.Module, annotations: Annotations, image: int, windows: Tensor, input_format: str
) -> Tensor:
    """(n, 3, S, S): windows (n, 4) of a picture, which is not read much finer than they are looked
    at: to decode and to convert all of a large photograph would take most of the time."""
    shrink = int((windows[:, 2:] - windows[:, :2]).min() // (2 * _SIDE))
    pixels = annotations.read_picture(image, input_format, shrink=max(shrink, 1))
    whole = annotations.images[image]
    width, height = pixels.shape[1] / whole["width"], pixels.shape[0] / whole["height"]
    return crop(as_tensor(model, pixels), windows * torch.tensor([width, height] * 2), _SIDE)


def places_in(boxes: Tensor, windows: Tensor) -> Tensor:
    """(..., 4): the sides of boxes (..., 4) in windows (..., 4), from 0 to 1 where in there."""
    corners, sizes = windows[..., :2], windows[..., 2:] - windows[..., :2]
    return (boxes - torch.cat([corners, corners], dim=-1)) / torch.cat([sizes, sizes], dim=-1)


def _endless(annotations: Annotations, rows: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """The rows again and again, in ever another order; a few of a picture together, since it has to
    be read, but not all, for then batches would be of a single picture where many are in it."""
    of_pictures = split(annotations.image[rows], len(annotations.images))
    while True:
        shuffled = (rng.permutation(rows[of_picture]) for of_picture in of_pictures)
        groups = [
            group[start : start + _TOGETHER]
            for group in shuffled
            for start in range(0, len(group), _TOGETHER)
        ]
        for i in rng.permutation(len(groups)):
            yield from groups[i]


def _mirror_some(crops: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored[:, None, None, None], crops.flip(-1), crops)
