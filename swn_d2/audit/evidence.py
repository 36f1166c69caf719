"""What a trained detector makes of every annotation that it was trained on."""

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.structures import Boxes

from ..analysis.predictions import build_predictor
from ..errors import UserError
from .annotations import Annotations
from .detections import detect, mirror
from .progress import Progress, silent

__all__ = [
    "DECOY_MOVES",
    "NUM_DECOYS",
    "Evidence",
    "build_judge",
    "gather_evidence",
    "place_decoys",
]

#: Boxes beside each annotated one that are known to be badly placed.
NUM_DECOYS = 3
#: How far their sides are moved at most, in widths or heights of the box.
DECOY_MOVES = 0.2

#: Detectron2's own detectors, each of which swn_d2 has with the same parameters.
_WITHOUT_WEIGHTS = ("StandardROIHeads", "CascadeROIHeads", "RetinaNet")
_LOWEST_SCORE = 0.02  # of a detection in one look at a picture


@dataclass(frozen=True)
class Evidence:
    """About N annotations, each with D decoys: its box with every side moved.

    Attributes:
        log_probs: (N, K) logarithms of the probabilities of the classes, given that there is an
            object: the mean over the annotated box and its decoys.
        placed: (N, 1 + D, 4) float32, the annotated box and its decoys, XYXY in pixels.
        refined: (N, 1 + D, 2, 4) where the detector has the object, started from each of them;
            and where it has it, started from there.
        detections: (M, 4) float32 boxes that it finds on its own, see :func:`.detections.detect`.
        detection_image, detection_class: (M,) the indices of their pictures and classes.
        detection_score: (M,) float32.
    """

    log_probs: np.ndarray
    placed: np.ndarray
    refined: np.ndarray
    detections: np.ndarray
    detection_image: np.ndarray
    detection_class: np.ndarray
    detection_score: np.ndarray


def build_judge(cfg: CfgNode) -> DefaultPredictor:
    """The detector of a run, with what it predicts for given boxes.

    Detectron2's own Faster, Mask and Cascade R-CNN and RetinaNet have the parameters of swn_d2's,
    and become those.

    Args:
        cfg: with the checkpoint in ``MODEL.WEIGHTS``.

    Raises:
        UserError: the checkpoint can't be read, or there is no such detector here.
    """
    cfg = cfg.clone()
    for node, key in ((cfg.MODEL.ROI_HEADS, "NAME"), (cfg.MODEL, "META_ARCHITECTURE")):
        if node[key] in _WITHOUT_WEIGHTS:
            node[key] = "SWN" + node[key].removeprefix("Standard")
            cfg.MODEL.SAMPLE_WEIGHTER.NAME = "Uniform"
            cfg.MODEL.SAMPLE_WEIGHTER.CONTROL = "none"
    predictor = build_predictor(cfg, score_threshold=_LOWEST_SCORE)
    if not hasattr(_heads(predictor), "rate_boxes"):
        raise UserError(
            f"the detector, a {type(predictor.model).__name__} with "
            f"{type(_heads(predictor)).__name__}, can't be asked about given boxes; audit a "
            "training of swn_d2's or Detectron2's Faster, Mask or Cascade R-CNN or RetinaNet."
        )
    _heads(predictor).mask_on = False  # nobody looks at its masks, which take long
    return predictor


def gather_evidence(
    judge: DefaultPredictor,
    annotations: Annotations,
    *,
    progress: Progress = silent,
) -> Evidence:
    """Show the detector every picture, as it is and mirrored, and its annotated boxes.

    Args:
        judge: see :func:`build_judge`.
        annotations: what it was trained on.
        progress: goes through the pictures.

    Raises:
        UserError: a picture can't be read or has another size than the annotations say, or the
            detector predicts NaN.
    """
    num_objects, num_classes = len(annotations.ids), len(annotations.category_ids)
    log_probs = np.zeros((num_objects, num_classes), dtype=np.float32)
    placed = place_decoys(annotations)
    refined = np.zeros((num_objects, 1 + NUM_DECOYS, 2, 4), dtype=np.float32)
    found: list[tuple[np.ndarray, ...]] = []
    seen = progress(annotations.by_picture(), "the detector looks at the pictures")
    for i, rows in enumerate(seen):
        pixels = annotations.read_picture(i, judge.input_format)
        if len(rows):
            log_probs[rows], refined[rows] = _rate(
                judge, pixels, placed[rows], annotations.classes[rows]
            )
        boxes, classes, scores = detect(judge, pixels)
        found.append((boxes, np.full(len(boxes), i), classes, scores))
    if not (np.isfinite(log_probs).all() and np.isfinite(refined).all()):
        raise UserError(
            "the detector predicts values that are not finite (NaN): its training has diverged. "
            "Give an earlier checkpoint with --weights."
        )
    boxes, images, classes, scores = (np.concatenate(c) for c in zip(*found, strict=True))
    return Evidence(log_probs, placed, refined, boxes, images, classes, scores)


def place_decoys(annotations: Annotations) -> np.ndarray:
    """(N, 1 + D, 4) float32: every annotated box, and its decoys."""
    placed = np.zeros((len(annotations.ids), 1 + NUM_DECOYS, 4), dtype=np.float32)
    for i, rows in enumerate(annotations.by_picture()):
        # The random numbers of a picture are its own: what is done with others changes nothing.
        placed[rows] = with_decoys(annotations.boxes[rows], np.random.default_rng(i))
    return placed


def with_decoys(boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, 1 + D, 4): boxes (n, 4), and beside each some with every side moved."""
    sizes = np.tile(boxes[:, 2:] - boxes[:, :2], 2)[:, None]
    moves = rng.uniform(-DECOY_MOVES, DECOY_MOVES, size=(len(boxes), NUM_DECOYS, 4))
    return np.concatenate([boxes[:, None], boxes[:, None] + moves * sizes], axis=1)


@torch.no_grad()
def _rate(
    judge: DefaultPredictor, pixels: np.ndarray, placed: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(n, K) and (n, 1 + D, 2, 4): of a picture's boxes, the means over it and its mirror image.

    Args:
        pixels: (H, W, 3) of the picture, as the detector takes them.
    """
    model, heads = judge.model, _heads(judge)
    height, width = pixels.shape[:2]
    resize = judge.aug.get_transform(pixels)
    image = resize.apply_image(pixels)
    factor = torch.tensor([image.shape[1] / width, image.shape[0] / height] * 2)
    boxes = torch.from_numpy(placed.reshape(-1, 4)) * factor
    # A wrong box may be of any size, and pooling keeps what is in proportion to that.
    sides = torch.tensor([image.shape[1], image.shape[0]] * 2)
    boxes = boxes.clamp(min=-sides, max=2 * sides)
    of_boxes = torch.from_numpy(classes).repeat_interleave(placed.shape[1])
    log_probs, refined = [], []
    for mirrored in (False, True):
        shown = np.ascontiguousarray(image[:, ::-1] if mirrored else image)
        tensor = torch.as_tensor(shown.astype("float32").transpose(2, 0, 1))
        features = model.backbone(model.preprocess_image([{"image": tensor}]).tensor)
        start = mirror(boxes, image.shape[1]) if mirrored else boxes
        start, on_device = start.to(model.device), of_boxes.to(model.device)
        of_start, once = heads.rate_boxes(features, [Boxes(start)], on_device)
        _, twice = heads.rate_boxes(features, [Boxes(once)], on_device)
        both = torch.stack([once, twice], dim=1).cpu()
        log_probs.append(of_start.cpu().view(*placed.shape[:2], -1).mean(dim=1))
        refined.append(mirror(both, image.shape[1]) if mirrored else both)
    means = torch.stack(log_probs).mean(dim=0), torch.stack(refined).mean(dim=0) / factor
    return means[0].numpy(), means[1].view(*placed.shape[:2], 2, 4).numpy()


def _heads(judge: DefaultPredictor) -> torch.nn.Module:
    """What has ``rate_boxes``: the ROI heads, or a dense detector itself."""
    return getattr(judge.model, "roi_heads", judge.model)
