#!/usr/bin/env python3
"""What sample weighting costs: the time and the memory of a training step, with it and without.

Both detectors of a pair of configs run the forward and backward pass on the same random image,
in turn, so that what slows the machine down slows both. At the end the median of the ratios, and
the memory that a step needs beyond what is there before it (the parameters of both detectors are).
"""

import argparse
import ctypes
import statistics
import time
from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from swn_d2 import load_config
from swn_d2.errors import UserError, add_debug_argument, phase, user_errors_exit


def random_image(height: int, width: int, num_classes: int) -> dict:
    """Noise with ten objects of many sizes, the masks being half of each box."""
    generator = torch.Generator().manual_seed(0)
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


class StepMemory:
    """The most memory, in MiB, that is in use after :meth:`start` beyond what was in use then:
    the GPU's, or the process's (on Linux)."""

    def __init__(self, device: str):
        self.on_gpu = device == "cuda"

    def start(self) -> None:
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
        else:
            ctypes.CDLL(None).malloc_trim(0)  # gives freed memory back to the system
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the largest VmRSS
            self.before = self._of_process("VmRSS")

    def read(self) -> float:
        if self.on_gpu:
            return torch.cuda.max_memory_allocated() / 2**20 - self.before
        return self._of_process("VmHWM") - self.before

    @staticmethod
    def _of_process(field: str) -> float:
        return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 2**10


def step(model: nn.Module, image: dict, iteration: int) -> None:
    """A forward and backward pass; the same random regions in both detectors."""
    torch.manual_seed(iteration)
    with EventStorage(iteration):
        losses = model([image])
    sum(losses.values()).backward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--baseline", required=True, metavar="FILE", help="config without SWN")
    parser.add_argument("--swn", required=True, metavar="FILE", help="config with SWN")
    parser.add_argument("--pairs", type=int, default=10, help="alternating pairs (default: 10)")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(800, 1333),
        metavar=("HEIGHT", "WIDTH"),
        help="of the image, in pixels (default: 800 1333)",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of both configs"
    )
    add_debug_argument(parser)
    return parser


def main() -> None:
    args = argument_parser().parse_args()
    if args.pairs < 1 or min(args.size) < 64:
        raise UserError("--pairs must be at least 1, --size at least 64 64.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory = StepMemory(device)
    models, num_classes = [], []
    for file in (args.baseline, args.swn):
        # Random weights need normalisation that adapts to them.
        opts = ["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", "MODEL.RESNETS.NORM", "BN"]
        cfg = load_config(file, [*opts, *args.opts])
        torch.manual_seed(0)
        models.append(build_model(cfg).train())
        num_classes += [cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CLASSES]
    image = random_image(*args.size, min(num_classes))

    ratios, peaks = [], ([], [])
    for iteration in range(args.pairs + 1):
        seconds = [0.0, 0.0]
        # Who goes first changes, since the second finds the caches warm.
        for which in (0, 1) if iteration % 2 else (1, 0):
            memory.start()
            start = time.perf_counter()
            step(models[which], image, iteration)
            seconds[which] = time.perf_counter() - start
            if iteration > 0:
                peaks[which].append(memory.read())
            models[which].zero_grad(set_to_none=True)
        if iteration == 0:
            continue  # allocations and, on a GPU, the choice of kernels
        ratios.append(seconds[1] / seconds[0])
        print(
            f"pair {iteration}: {seconds[0]:.3f} s without, {seconds[1]:.3f} s with, "
            f"ratio {ratios[-1]:.4f}",
            flush=True,
        )
    low, high = min(ratios), max(ratios)
    print(
        f"time of forward and backward, with / without: median {statistics.median(ratios):.4f} "
        f"({low:.4f} to {high:.4f}, {len(ratios)} pairs)"
    )
    without, with_swn = map(statistics.median, peaks)
    print(
        f"memory that a step needs: {without:.0f} MiB without, {with_swn:.0f} MiB with, "
        f"ratio {with_swn / without:.4f}"
    )


if __name__ == "__main__":
    with user_errors_exit(), phase("measuring"):
        main()
