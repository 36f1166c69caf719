#!/usr/bin/env python3
"""Time the suppressions of overlapping detections against torchvision's batched NMS.

    python tools/measure_nms.py

1,000 boxes around 20 objects, as the R-CNN of an image with 80 classes has them before its NMS:
every box with a score for each class. Two ways of reading that:

    all      every score is a candidate, 80,000 in all: no score threshold
    softmax  the scores are a softmax over the classes and the background, and candidates those
             above 0.05, Detectron2's threshold

For each method the median over the rounds of its time divided by that of torchvision's NMS in the
same round. "limit 100" knows beforehand that no more than 100 detections are wanted.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from swn_d2.errors import UserError, add_debug_argument, phase, user_errors_exit
from swn_d2.modeling.soft_nms import batched_soft_nms, iou_guided_nms

Candidates = tuple[Tensor, Tensor, Tensor]
IOU_THRESHOLD = 0.5


def candidates(num_boxes: int, num_classes: int, device: str) -> dict[str, Candidates]:
    """Reading -> boxes (N, 4), scores (N,) and classes (N,) of an image of 800 x 1333 pixels."""
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
    """What is timed: name -> a function that runs it. The first is the measure of the others."""
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


def seconds(function: Callable[[], Tensor]) -> float:
    """Of one call, whose result is there when the clock stops."""
    start = time.perf_counter()
    if function().is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boxes", type=int, default=1000, help="default: 1000")
    parser.add_argument("--classes", type=int, default=80, help="default: 80")
    parser.add_argument("--rounds", type=int, default=10, help="default: 10")
    add_debug_argument(parser)
    return parser


def main() -> None:
    args = argument_parser().parse_args()
    if min(args.boxes, args.classes, args.rounds) < 1:
        raise UserError("--boxes, --classes and --rounds must be at least 1.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for reading, chosen in candidates(args.boxes, args.classes, device).items():
        functions = methods(*chosen)
        times = {name: [] for name in functions}
        for round_ in range(args.rounds + 1):
            for name, function in functions.items():
                duration = seconds(function)
                if round_ > 0:  # the first warms up
                    times[name].append(duration)
        print(f"{reading}: {len(chosen[0])} candidates on {device}, {args.rounds} rounds")
        measure = times["torchvision"]
        for name, durations in times.items():
            ratio = statistics.median(t / m for t, m in zip(durations, measure, strict=True))
            print(
                f"  {name:20} kept {len(functions[name]()):6}, "
                f"{1000 * statistics.median(durations):8.2f} ms, ratio {ratio:6.2f}"
            )


if __name__ == "__main__":
    with user_errors_exit(), phase("measuring"):
        main()
