"""The weighting by itself: from the statistics of samples to gradients, eager and compiled."""

from collections.abc import Callable, Sequence

import torch

from ..config import load_config
from ..weighting import SampleLosses, SampleStatistics, SampleWeighter, build_sample_weighter
from .clock import median_seconds
from .outcomes import Figure
from .scale import Scale

__all__ = ["check_compiled_step", "check_step"]

_R_CNN = 8192  # samples up to which a quarter are positives, as regions are; else one in a thousand


def check_step(scale: Scale) -> list[Figure]:
    """Forward and backward pass of the weighter, eager and, on a GPU, as a CUDA graph, which
    leaves nothing to the host: what the eager step takes beyond it is the launching of kernels."""
    result = []
    for name, num_samples, weighter in _cases(scale):
        step, clear = _step(weighter, weighter, num_samples, scale)
        eager = _milliseconds(step, scale)
        note = ""
        if scale.device == "cuda":
            clear()
            try:
                graph = _milliseconds(_graph(step), scale)
                note = f"as a CUDA graph {graph:.3f} ms"
            except RuntimeError as error:
                note = f"no CUDA graph: {str(error).splitlines()[0]}"
        result.append(Figure(f"{num_samples} samples, {name}", eager, "ms", note=note))
    return result


def check_compiled_step(scale: Scale) -> list[Figure]:
    """The same with torch.compile, in one piece for all numbers of samples.

    That it can't be compiled, by a torch or on a machine that lacks something, is an outcome, not
    an error: nothing here is compiled in a training.
    """
    result = []
    for name, num_samples, weighter in _cases(scale):
        figure = f"{num_samples} samples, {name}, compiled"
        try:
            # Cheap for a weighter that has been compiled before, for another number of samples.
            weigh = torch.compile(weighter, dynamic=True, backend=scale.compiler)
            step, _ = _step(weighter, weigh, num_samples, scale)
            result.append(Figure(figure, _milliseconds(step, scale), "ms"))
        except Exception as error:  # of any of the many parts of a compiler
            lines = str(error).strip().splitlines() or [""]
            reason = f"torch.compile failed: {type(error).__name__}: {lines[0]}"
            result.append(Figure(figure, None, note=reason))
    return result


def _cases(scale: Scale) -> Sequence[tuple[str, int, SampleWeighter]]:
    cases = []
    for name, overrides in scale.weighted.items():
        torch.manual_seed(0)
        cfg = load_config(opts=list(overrides))
        weighter = build_sample_weighter(cfg, box_loss_dim=4, has_mask=False).to(scale.device)
        cases += [(name, num_samples, weighter) for num_samples in scale.num_samples]
    return cases


def _step(
    weighter: SampleWeighter, weigh: Callable, num_samples: int, scale: Scale
) -> tuple[Callable[[], None], Callable[[], None]]:
    """The step, and what removes the gradients that it leaves.

    Args:
        weigh: what maps statistics to weights: the weighter, or what it was compiled to.
    """
    device, num_classes = scale.device, scale.num_classes
    generator = torch.Generator().manual_seed(num_samples)
    num_positives = num_samples // 4 if num_samples <= _R_CNN else num_samples // 1000
    foreground = torch.arange(num_positives, device=device)
    is_foreground = torch.arange(num_samples, device=device) < num_positives

    def random(*shape: int):
        return torch.rand(num_samples, *shape, generator=generator).to(device)

    leaves = [random().requires_grad_(), random(4).requires_grad_()]
    losses = SampleLosses(
        *leaves,
        normalizers=dict.fromkeys(("cls", "box"), float(max(num_positives, 1))),
        label=lambda: leaves[0] * is_foreground,
    )
    objects = torch.arange(num_samples, device=device) // 4
    label_losses = random(num_classes)[:num_positives]
    statistics = SampleStatistics.of(
        losses,
        iou=random(),
        prob=random(),
        is_foreground=is_foreground,
        foreground=foreground,
        details={
            "object": lambda: torch.where(is_foreground, objects, -1),
            "gt_class": lambda: torch.where(is_foreground, objects % num_classes, num_classes),
            "label_losses": lambda: label_losses,
        },
    )

    def clear() -> None:
        for tensor in (*leaves, *weighter.parameters()):
            tensor.grad = None

    def step() -> None:
        clear()
        weights = weigh(statistics)
        parts = (*losses.weighted(weights).values(), *weights.regularizers.values())
        sum(parts).backward()

    return step, clear


def _graph(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph. To capture one is an error if the step waits anywhere."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warming up, apart from the stream that is captured
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _milliseconds(step: Callable[[], None], scale: Scale) -> float:
    return 1000 * median_seconds(step, scale.device, repetitions=scale.repetitions)
