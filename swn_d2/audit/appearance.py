"""What an object looks like, to the backbone of a detector and at a size of its own."""

import logging

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from ..engine import SafeCheckpointer, check_values, choose_device
from ..errors import UserError
from .annotations import Annotations
from .progress import Progress, silent

__all__ = ["as_tensor", "bottom_up", "build_viewer", "crop", "gather_appearance"]

_SIDE, _SIDE_TO_A_DETECTOR = 224, 160  # pixels of a view
_MARGINS = (0.1, 0.3)  # around the box, of the view as it is and of the mirrored one
_AT_ONCE = 64  # views, for the memory's sake
_FINEST = 4  # pixels of a window for one of its crop, at least, that are left where it is shrunk


def build_viewer(cfg: CfgNode) -> nn.Module:
    """The detector as a training starts with it, which has not seen an annotation yet.

    Args:
        cfg: with the weights to start from in ``MODEL.WEIGHTS``.

    Raises:
        UserError: they can't be read, or hold no weights of the backbone.
    """
    cfg = cfg.clone()
    choose_device(cfg)
    check_values(cfg)
    model = build_model(cfg).eval()
    checkpointer = SafeCheckpointer(model)
    # That there are no weights of a head is as it should be, and need not be said.
    checkpointer.logger = logging.Logger("start", level=logging.ERROR)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    return model


@torch.no_grad()
def gather_appearance(
    model: nn.Module,
    annotations: Annotations,
    input_format: str,
    *,
    has_learned: bool = False,
    progress: Progress = silent,
) -> np.ndarray:
    """Two views of each object: the mean of the backbone's last map over a square around it.

    A detector sees small objects in few pixels, and only its head, which has learned from the
    annotations, says what they are. A backbone that knows ImageNet tells them apart by much more.

    Args:
        model: one of Detectron2's detectors.
        annotations: N of them.
        input_format: of the model's pictures, ``INPUT.FORMAT``.
        has_learned: the backbone is one that was trained in the detector, and so knows objects at
            the sizes that they have there; the views are then smaller than ImageNet's pictures.
        progress: goes through the pictures.

    Returns:
        (N, V, C) float32, for V = 2 views.

    Raises:
        UserError: a picture can't be read or has another size than the annotations say, or the
            features are not finite.
    """
    result: np.ndarray | None = None
    side = _SIDE_TO_A_DETECTOR if has_learned else _SIDE
    pictures = progress(annotations.by_picture(), "a backbone looks at the objects")
    for i, rows in enumerate(pictures):
        if len(rows):
            pixels = annotations.read_picture(i, input_format)
            seen = _look(model, pixels, annotations.boxes[rows], side)
            if result is None:
                result = np.zeros((len(annotations.ids), *seen.shape[1:]), np.float32)
            result[rows] = seen
    if result is None:
        return np.zeros((0, len(_MARGINS), 0), np.float32)
    if not np.isfinite(result).all():
        raise UserError("the backbone's features are not finite (NaN): give other weights.")
    return result


def bottom_up(model: nn.Module) -> nn.Module:
    """The backbone of a detector without its pyramid, if it has one: those maps are made for the
    head."""
    return getattr(model.backbone, "bottom_up", model.backbone)


def as_tensor(model: nn.Module, pixels: np.ndarray) -> Tensor:
    """(1, 3, H', W') a picture as the backbone of a detector takes it, at its own size and padded.

    Args:
        pixels: (H, W, 3), in the model's order of colours.
    """
    tensor = torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))
    return model.preprocess_image([{"image": tensor}]).tensor


def crop(picture: Tensor, windows: Tensor, side: int) -> Tensor:
    """(n, 3, side, side): windows of a picture, each brought to the same size; zeros where they
    reach beyond it.

    Every pixel of a window counts, as many as there are. So large ones are shrunk by a whole factor
    first, within the picture, for :func:`roi_align` keeps four numbers for each pixel of a window,
    and a wrong box may be of any size.

    Args:
        picture: (1, 3, H, W).
        windows: (n, 4) XYXY in pixels.
    """
    windows = windows.to(picture)
    factors = ((windows[:, 2:] - windows[:, :2]) / (_FINEST * side)).floor().clamp(min=1)
    is_large = (factors > 1).any(dim=1)
    crops = picture.new_zeros(len(windows), 3, side, side)
    crops[~is_large] = roi_align(picture, [windows[~is_large]], side, aligned=True)
    limits = [picture.shape[3], picture.shape[2]] * 2
    for i in is_large.nonzero()[:, 0]:
        window, factor = windows[i], factors[i].long().tolist()
        x0, y0, x1, y1 = (int(v.clamp(0, limit)) for v, limit in zip(window, limits, strict=True))
        part = picture[:, :, y0 : y1 + 1, x0 : x1 + 1]
        if not part.numel():
            continue
        small = F.avg_pool2d(part, factor[::-1], ceil_mode=True)
        place = (window - window.new_tensor([x0, y0] * 2)) / window.new_tensor(factor * 2)
        crops[i] = roi_align(small, [place[None]], side, aligned=True)[0]
    return crops


def _look(model: nn.Module, pixels: np.ndarray, boxes: np.ndarray, side: int) -> np.ndarray:
    """(n, V, C) float32: the views of a picture's objects.

    Args:
        pixels: (H, W, 3), as the model takes them.
        boxes: (n, 4) XYXY in pixels.
        side: of a view, in pixels.
    """
    backbone, picture = bottom_up(model), as_tensor(model, pixels)
    corners = torch.from_numpy(boxes).to(picture)
    centres = (corners[:, :2] + corners[:, 2:]) / 2
    longer = (corners[:, 2:] - corners[:, :2]).amax(dim=1, keepdim=True)
    views = []
    for i, margin in enumerate(_MARGINS):
        half = longer * (0.5 + margin)
        squares = torch.cat([centres - half, centres + half], dim=1)
        means = []
        for part in squares.split(_AT_ONCE):
            crops = crop(picture, part, side)
            features = backbone(crops.flip(3) if i else crops)
            means.append(list(features.values())[-1].mean(dim=(2, 3)))
        views.append(torch.cat(means))
    return torch.stack(views, dim=1).cpu().numpy()
