"""The detectors that are checked, Detectron2's own beside ours, and pictures for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from torch import nn

from ..config import load_config
from ..engine import is_sample_weighter_key
from .outcomes import CheckFailed
from .scale import Scale

__all__ = ["DETECTORS", "Bench", "Twins", "build_detector", "random_picture"]

#: Detector -> its config without weights, in the folder of configs and without ".yaml". With
#: "_swn" behind its name it is ours.
DETECTORS = {
    "faster_rcnn": "COCO-Detection/faster_rcnn_R_50_FPN_1x",
    "mask_rcnn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
    "cascade_rcnn": "COCO-Detection/cascade_rcnn_R_50_FPN_1x",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_1x",
}


def random_picture(height: int, width: int, num_classes: int, *, seed: int = 0) -> dict:
    """What a detector is trained on: noise with ten objects of many sizes, the masks being half of
    each box. On the CPU, as it comes from a data loader."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(10, 2, generator=generator) * torch.tensor([width, height]) * 0.7
    sizes = 16 + torch.rand(10, 2, generator=generator) * min(width, height) * 0.3
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.cat([corners, corners + sizes], dim=1))
    instances.gt_classes = torch.randint(0, num_classes, (10,), generator=generator)
    masks = torch.zeros(10, height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, instances.gt_boxes.tensor.int(), strict=True):
        mask[y0:y1, x0 : (x0 + x1) // 2] = True
    instances.gt_masks = BitMasks(masks)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width}


def build_detector(cfg) -> nn.Module:
    """The detector in training, with the random weights that seed 0 gives it."""
    torch.manual_seed(0)
    return build_model(cfg).train()


@dataclass(frozen=True)
class Twins:
    """The same detector twice, with the same weights.

    Attributes:
        stock, swn: Detectron2's own and ours.
        stock_cfg, swn_cfg: their configs.
        pictures: as many as the largest batch has.
    """

    stock: nn.Module
    swn: nn.Module
    stock_cfg: Any
    swn_cfg: Any
    pictures: Sequence[dict]

    def align(self) -> None:
        """Give ours the other's weights, in which only those of a sample weighter may lack."""
        fitting = self.swn.load_state_dict(self.stock.state_dict(), strict=False)
        strange = [key for key in fitting.missing_keys if not is_sample_weighter_key(key)]
        strange += fitting.unexpected_keys
        if strange:
            raise CheckFailed(f"the detectors have not the same parameters: {', '.join(strange)}")


class Bench:
    """Builds each of the detectors when it is first asked for."""

    def __init__(self, configs: Path, scale: Scale):
        """
        Args:
            configs: the folder of the configs.
        """
        self.scale = scale
        self._configs = configs
        self._twins: dict[str, Twins] = {}

    def twins(self, detector: str) -> Twins:
        """The detector, a key of :data:`DETECTORS`, on the scale's device."""
        if detector not in self._twins:
            stock_cfg, swn_cfg = self.config(detector, swn=False), self.config(detector, swn=True)
            num_classes = min(stock_cfg.MODEL[s].NUM_CLASSES for s in ("ROI_HEADS", "RETINANET"))
            twins = Twins(
                stock=build_detector(stock_cfg),
                swn=build_detector(swn_cfg),
                stock_cfg=stock_cfg,
                swn_cfg=swn_cfg,
                pictures=[
                    random_picture(*self.scale.picture_size, num_classes, seed=seed)
                    for seed in range(self.scale.many_pictures)
                ],
            )
            if not stock_cfg.MODEL.MASK_ON:
                for picture in twins.pictures:  # which would be copied to the GPU for nothing
                    picture["instances"].remove("gt_masks")
            self._twins[detector] = twins
        return self._twins[detector]

    def config(self, detector: str, *opts: Any, swn: bool):
        """The detector's config at this scale, with ``KEY VALUE`` overrides."""
        return load_config(
            str(self._configs / f"{DETECTORS[detector]}{'_swn' if swn else ''}.yaml"),
            [
                *("MODEL.DEVICE", self.scale.device),
                *("MODEL.WEIGHTS", ""),
                *("MODEL.RESNETS.NORM", "BN"),  # which adapts to random weights
                *("DATASETS.TRAIN", ()),
                *("DATASETS.TEST", ()),
                *("SOLVER.IMS_PER_BATCH", self.scale.few_pictures),
                *("SOLVER.MAX_ITER", self.scale.iterations),
                *("SOLVER.STEPS", ()),
                # No warm-up, so that a few iterations are a training.
                *("SOLVER.WARMUP_ITERS", 0),
                *("SOLVER.BASE_LR", 0.001),
                *self.scale.overrides,
                *opts,
            ],
        )
