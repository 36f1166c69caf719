"""At its start SWN gives weight 1, and at inference it is gone: both detectors are the same."""

import math
from collections.abc import Mapping, Sequence
from contextlib import contextmanager

import torch
from detectron2.modeling import RetinaNet
from torch import Tensor, nn

from .clock import alternate, ratio
from .detectors import Twins
from .outcomes import CheckFailed, Figure
from .precision import forward
from .scale import Scale

__all__ = ["check_detections", "check_losses_and_gradients"]

# Relative differences beyond those of Detectron2's detector from itself, whose sums over regions
# are in another order each time on a GPU. A weight of 1.01 is found by either.
_LIMIT = {"float32": 1e-3, "float16": 8e-3, "bfloat16": 8e-3}
# What a parameter's gradient is compared with at least, in shares of the largest gradient.
_SMALLEST_GRADIENT = 1e-4
# Keeps small gradients in the range of float16; without effect on the others.
_LOSS_SCALE = 128.0


def check_losses_and_gradients(twins: Twins, scale: Scale, precision: str) -> list[Figure]:
    """Losses and gradients of the two detectors on the same pictures and regions are equal.

    Raises:
        CheckFailed: they are not.
    """
    twins.align()
    pictures = twins.pictures[: scale.few_pictures]
    with _same_algorithms():
        # In an iteration in which the weights, by the schedule, are eased in.
        (losses, gradients), again, ours = (
            _losses_and_gradients(model, pictures, scale.iterations, precision)
            for model in (twins.stock, twins.stock, twins.swn)
        )
    for name, loss in ours[0].items():
        if name in losses:
            continue
        # By default, what is learned of classes is to tell annotated ones from decoys, which a
        # network that says 0 does with a cross-entropy of log 2.
        start = math.log(2) if name.startswith("loss_swn_cls") else 0.0
        if abs(loss - start) > 1e-6:
            raise CheckFailed(f"{name}, which should start at {start:.3g}, is {loss:.3g}")
    result = []
    for what, expected, repeated, actual in (
        ("loss", losses, again[0], ours[0]),
        ("gradient", gradients, again[1], ours[1]),
    ):
        noise, _ = _largest_difference(repeated, expected)
        difference, name = _largest_difference(actual, expected)
        limit = _LIMIT[precision] + 3 * noise
        if not difference <= limit:
            raise CheckFailed(
                f"the {what} {name} is another one than Detectron2's, by {difference:.2g} of it, "
                f"where {limit:.2g} could be rounding"
            )
        note = f"of {name}; Detectron2's from itself {noise:.2g}"
        result.append(Figure(f"largest relative difference of a {what}", difference, note=note))
    return result


def check_detections(twins: Twins, scale: Scale) -> list[Figure]:
    """With the same weights both detectors detect the same, bit for bit.

    Raises:
        CheckFailed: they do not, or there is nothing to detect.
    """
    pictures = list(twins.pictures[: scale.few_pictures])
    for detector in (twins.stock, twins.swn):
        # Random scores are below the threshold of a trained detector.
        for module in detector.modules():
            if hasattr(module, "test_score_thresh"):
                module.test_score_thresh = 0.0
    _settle(twins.stock, pictures)
    twins.align()
    twins.stock.eval()
    twins.swn.eval()
    try:
        with torch.no_grad(), _same_algorithms():
            expected, again, actual = (
                [result["instances"].get_fields() for result in model(pictures)]
                for model in (twins.stock, twins.stock, twins.swn)
            )
            if not _are_equal(again, expected):
                raise CheckFailed("Detectron2's own detector does not detect the same twice")
            if not _are_equal(actual, expected):
                raise CheckFailed("the detections are others than Detectron2's")
            num_detections = sum(len(fields["scores"]) for fields in expected)
            if num_detections == 0:
                raise CheckFailed("neither detector detects anything")
            pairs = list(
                alternate(
                    lambda _: twins.stock(pictures),
                    lambda _: twins.swn(pictures),
                    scale.device,
                    pairs=max(scale.pairs // 3, 1),  # since all that is detected takes its time
                )
            )
    finally:
        twins.stock.train()
        twins.swn.train()
    middle, low, high = ratio(pairs)
    return [
        Figure("detections that are the same, bit for bit", num_detections),
        Figure(
            "time, ours / Detectron2's",
            middle,
            goal=scale.goal(1.005),
            note=f"{low:.3f} to {high:.3f}, {len(pairs)} pairs of {len(pictures)} pictures",
        ),
    ]


def _losses_and_gradients(
    model: nn.Module, pictures: Sequence[dict], iteration: int, precision: str
) -> tuple[dict[str, float], dict[str, Tensor]]:
    if isinstance(model, RetinaNet):
        model.loss_normalizer = 100  # Detectron2's start of a moving average
    model.zero_grad(set_to_none=True)
    losses = forward(model, list(pictures), iteration, precision)
    (_LOSS_SCALE * sum(losses.values())).backward()
    gradients = {
        name: parameter.grad / _LOSS_SCALE
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return {name: loss.item() for name, loss in losses.items()}, gradients


def _largest_difference(actual: Mapping, expected: Mapping) -> tuple[float, str]:
    """Of all that is expected the largest relative difference, and of which it is."""
    tensors = {name: torch.as_tensor(value).double() for name, value in expected.items()}
    sizes = {name: value.norm().item() for name, value in tensors.items()}
    floor = _SMALLEST_GRADIENT * max(sizes.values())
    worst, whose = 0.0, next(iter(expected))
    for name, value in tensors.items():
        if name not in actual:
            return float("inf"), name
        other = torch.as_tensor(actual[name]).double()
        difference = (other - value).norm().item() / max(sizes[name], floor)
        if not difference <= worst:  # NaN, too
            worst, whose = difference, name
    return worst, whose


def _settle(model: nn.Module, pictures: list[dict]) -> None:
    """Have the normalisation know these pictures: at inference it goes by what it has seen."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        forward(model, pictures, 0, "float32")
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _are_equal(actual: Sequence[dict], expected: Sequence[dict]) -> bool:
    for a, e in zip(actual, expected, strict=True):
        if a.keys() != e.keys():
            return False
        for name in e:
            pair = [getattr(value[name], "tensor", value[name]) for value in (a, e)]
            if not torch.equal(*pair):
                return False
    return True


@contextmanager
def _same_algorithms():
    """cuDNN takes the same algorithm each time."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
