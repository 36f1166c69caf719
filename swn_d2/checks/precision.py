"""Steps in mixed precision, as Detectron2's AMPTrainer does them, on any device and in any type."""

from contextlib import AbstractContextManager, nullcontext

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["amp_step", "forward", "grad_scaler", "in_precision"]


def in_precision(device: str, precision: str) -> AbstractContextManager:
    """A block in "float32", or in mixed precision with "float16" or "bfloat16"."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device, dtype=getattr(torch, precision))


def grad_scaler(device: str, **kwargs):
    """A GradScaler; torch before 2.3 has one for GPUs alone."""
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device, **kwargs)
    return torch.cuda.amp.GradScaler(**kwargs)


def forward(
    model: nn.Module, pictures: list[dict], iteration: int, precision: str
) -> dict[str, Tensor]:
    """The losses of an iteration; the same number has the same random regions in any detector."""
    device = next(model.parameters()).device.type
    torch.manual_seed(iteration)
    with EventStorage(iteration), in_precision(device, precision):
        return model(pictures)


def amp_step(
    model: nn.Module,
    optimizer: Optimizer,
    scaler,
    pictures: list[dict],
    iteration: int,
    precision: str,
) -> dict[str, float]:
    """An iteration of a training, with the losses that it had."""
    losses = forward(model, pictures, iteration, precision)
    optimizer.zero_grad()
    scaler.scale(sum(losses.values())).backward()
    scaler.step(optimizer)
    scaler.update()
    return {name: loss.item() for name, loss in losses.items()}
