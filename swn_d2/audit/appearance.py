"""What an object looks like, to the backbone of the detector and at a size of its own."""

import numpy as np
import torch
from torch import nn
from torchvision.ops import roi_align

__all__ = ["look_at"]

_SIDE = 128  # pixels of a view
_MARGINS = (0.1, 0.3)  # around the box, of the view as it is and of the mirrored one
_AT_ONCE = 64  # views, for the memory's sake


@torch.no_grad()
def look_at(model: nn.Module, pixels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Two views of each object: the mean of the backbone's last map over a square around it.

    A detector sees small objects in few pixels, and only its head, which has learned from the
    annotations, says what they are. A backbone that knows ImageNet tells them apart by much more.

    Args:
        model: one of Detectron2's detectors.
        pixels: (H, W, 3) of a picture, as the detector takes them, at its own size.
        boxes: (n, 4) XYXY in pixels.

    Returns:
        (n, V, C) float32, for V = 2 views.
    """
    # Without its pyramid, if it has one: those maps are made for the head.
    backbone = getattr(model.backbone, "bottom_up", model.backbone)
    tensor = torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))
    picture = model.preprocess_image([{"image": tensor}]).tensor
    boxes = torch.from_numpy(boxes).to(picture)
    centres, longer = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)
    views = []
    for i, margin in enumerate(_MARGINS):
        half = (longer * (0.5 + margin))[:, None]
        squares = torch.cat([centres - half, centres + half], dim=1)
        means = []
        for part in squares.split(_AT_ONCE):
            crops = roi_align(picture, [part], _SIDE, aligned=True)
            features = backbone(crops.flip(3) if i else crops)
            last = list(features.values())[-1]
            means.append(last.mean(dim=(2, 3)))
        views.append(torch.cat(means))
    return torch.stack(views, dim=1).cpu().numpy()
