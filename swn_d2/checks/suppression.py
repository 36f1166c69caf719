"""The suppressions of overlapping detections, timed against torchvision's batched NMS."""

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from ..modeling.soft_nms import batched_soft_nms, iou_guided_nms
from .clock import seconds
from .outcomes import Figure
from .scale import Scale

__all__ = ["candidates", "check_suppression", "methods", "time_methods"]

IOU_THRESHOLD = 0.5

Candidates = tuple[Tensor, Tensor, Tensor]


def candidates(num_boxes: int, num_classes: int, device: str) -> dict[str, Candidates]:
    """Boxes around 20 objects, as the R-CNN of an image has them before its NMS.

    Returns:
        Reading -> boxes (N, 4), scores (N,) and classes (N,) of an image of 800 x 1333 pixels:
        "all", where every score is a candidate, and "softmax", where those above 0.05 are.
    """
    torch.manual_seed(0)
    objects = torch.rand(20, 2) * torch.tensor([1333.0, 800.0])
    centre = objects[torch.randint(20, (num_boxes,))] + 15 * torch.randn(num_boxes, 2)
    half = 25 + 50 * torch.rand(num_boxes, 2)
    boxes = torch.cat([centre - half, centre + half], dim=1)
    # A trained detector's scores: next to 1 for one class, mostly the background.
    logits = 3 * torch.randn(num_boxes, num_classes + 1)
    scores = {
        "all": torch.rand(num_boxes, num_classes),
        "softmax": logits.softmax(dim=1)[:, :num_classes],
    }
    result = {}
    for reading, of_classes in scores.items():
        rows, classes = (of_classes > (0.05 if reading == "softmax" else -1)).nonzero().unbind(1)
        chosen = (boxes[rows], of_classes[rows, classes], classes)
        result[reading] = tuple(tensor.to(device) for tensor in chosen)
    return result


def methods(boxes: Tensor, scores: Tensor, classes: Tensor) -> dict[str, Callable[[], Tensor]]:
    """What is timed: name -> a function that runs it. The first is the measure of the others.
    "limit 100" knows beforehand that no more than 100 detections are wanted."""
    predicted_iou = torch.rand_like(scores)

    def soft(method: str, limit: int) -> Callable[[], Tensor]:
        return lambda: batched_soft_nms(
            *(boxes, scores, classes),
            method=method,
            iou_threshold=IOU_THRESHOLD,
            max_detections=limit,
        )[0]

    return {
        "torchvision": lambda: batched_nms(boxes, scores, classes, IOU_THRESHOLD),
        "linear": soft("linear", -1),
        "linear, limit 100": soft("linear", 100),
        "gaussian": soft("gaussian", -1),
        "gaussian, limit 100": soft("gaussian", 100),
        "iou_guided": lambda: iou_guided_nms(
            *(boxes, scores, predicted_iou, classes), iou_threshold=IOU_THRESHOLD
        )[0],
    }


def time_methods(
    functions: dict[str, Callable[[], Tensor]], device: str, *, rounds: int
) -> dict[str, tuple[float, float]]:
    """Name -> median seconds, and median of the seconds divided by the first method's in the same
    round. A round before them warms up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(rounds + 1):
        for name, function in functions.items():
            duration = seconds(function, device)
            if round_ > 0:
                times[name].append(duration)
    measure = next(iter(times.values()))
    return {
        name: (median(durations), median(t / m for t, m in zip(durations, measure, strict=True)))
        for name, durations in times.items()
    }


def check_suppression(scale: Scale) -> list[Figure]:
    """Soft-NMS against hard NMS, with as many detections asked for as a detector asks for."""
    result = []
    for reading, chosen in candidates(scale.num_boxes, scale.num_classes, scale.device).items():
        functions = methods(*chosen)
        asked = {name: functions[name] for name in ("torchvision", *_LIMITED)}
        rounds = max(scale.repetitions // 4, 1)
        for name, (duration, share) in time_methods(asked, scale.device, rounds=rounds).items():
            note = "" if name == "torchvision" else f"{share:.2f} of torchvision's"
            figure = f"{name}, {len(chosen[0])} candidates ({reading})"
            result.append(Figure(figure, 1000 * duration, "ms", note=note))
    return result


_LIMITED = ("linear, limit 100", "gaussian, limit 100")
