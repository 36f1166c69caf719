"""Mixed precision: a training stays finite, and goes on with the GradScaler that it had."""

import copy
import itertools
import math
import tempfile
from collections.abc import Sequence

import torch

from ..engine import SWNTrainer, build_joint_optimizer
from ..weighting import SampleWeightingNetwork
from .detectors import Bench, Twins
from .outcomes import CheckFailed, Figure
from .precision import amp_step, grad_scaler
from .scale import Scale

__all__ = ["check_resume", "check_stays_finite"]


def check_stays_finite(twins: Twins, scale: Scale, precision: str) -> list[Figure]:
    """A training of some iterations has finite losses and parameters, and trains the weighter.

    Args:
        precision: "float16" or "bfloat16".

    Raises:
        CheckFailed: it has not.
    """
    model = copy.deepcopy(twins.swn)
    optimizer = build_joint_optimizer(twins.swn_cfg, model)
    scaler = grad_scaler(scale.device, enabled=precision == "float16")
    networks = {n: m for n, m in model.named_modules() if isinstance(m, SampleWeightingNetwork)}
    before = copy.deepcopy(networks)
    pictures = list(twins.pictures[: scale.few_pictures])
    for iteration in range(scale.iterations):
        losses = amp_step(model, optimizer, scaler, pictures, iteration, precision)
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise CheckFailed(f"{name} is {loss} in iteration {iteration}")
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise CheckFailed(f"{name} is not finite after {scale.iterations} iterations")
    for name, network in networks.items():
        pairs = zip(before[name].parameters(), network.parameters(), strict=True)
        if all(torch.equal(old, new) for old, new in pairs):
            raise CheckFailed(f"{name} is as it was before {scale.iterations} iterations")
    return [Figure("finite iterations", scale.iterations, note=_scale_note(scaler))]


def _scale_note(scaler) -> str:
    return f"GradScaler at {scaler.get_scale():.0f}" if scaler.is_enabled() else ""


class _OnPictures(SWNTrainer):
    """SWNTrainer, whose data set is a few pictures."""

    pictures: Sequence[dict] = ()

    @classmethod
    def build_train_loader(cls, cfg, dataset=None):
        return itertools.repeat(list(cls.pictures))


def check_resume(bench: Bench, detector: str) -> list[Figure]:
    """A training in mixed precision that is resumed from its checkpoint has the GradScaler, the
    parameters and the optimisers that it ended with.

    Raises:
        CheckFailed: it has not.
    """
    scale = bench.scale

    class Trainer(_OnPictures):
        pictures = bench.twins(detector).pictures[: scale.few_pictures]

    with tempfile.TemporaryDirectory() as folder:
        cfg = bench.config(
            detector,
            *("OUTPUT_DIR", folder),
            *("SOLVER.AMP.ENABLED", True),
            *("SOLVER.MAX_ITER", 4),
            *("RECORDING.PERIOD", 0),
            swn=True,
        )
        first = _amp_trainer(Trainer, cfg, init_scale=2.0**16)
        if scale.device == "cuda":
            first.train()
        else:
            _train_on_cpu(first)
        state = first.state_dict()["_trainer"]
        # Another scale, so that it shows whether the first one's is restored.
        second = _amp_trainer(Trainer, cfg, init_scale=2.0)
        second.resume_or_load(resume=True)
    resumed = second.state_dict()["_trainer"]
    if resumed["grad_scaler"] != state["grad_scaler"]:
        raise CheckFailed(
            f"the GradScaler is {resumed['grad_scaler']} after resuming, and was "
            f"{state['grad_scaler']}"
        )
    if not _same(resumed["optimizer"], state["optimizer"]):
        raise CheckFailed("the optimisers are not what they were before resuming")
    parameters = [trainer._trainer.model.state_dict() for trainer in (second, first)]
    if not _same(*parameters):
        raise CheckFailed("the parameters are not what they were before resuming")
    if second.start_iter != cfg.SOLVER.MAX_ITER:
        raise CheckFailed(
            f"it goes on at iteration {second.start_iter}, not at {cfg.SOLVER.MAX_ITER}"
        )
    return [Figure("scale of the GradScaler, restored", resumed["grad_scaler"]["scale"])]


def _amp_trainer(trainer_class: type[SWNTrainer], cfg, *, init_scale: float) -> SWNTrainer:
    """Its GradScaler grows so fast that a few iterations show in it."""
    torch.manual_seed(0)
    trainer = trainer_class(cfg)
    trainer._trainer.grad_scaler = grad_scaler(
        cfg.MODEL.DEVICE, init_scale=init_scale, growth_interval=3
    )
    return trainer


def _train_on_cpu(trainer: SWNTrainer) -> None:
    """What ``train()`` does of it: Detectron2's AMPTrainer has no mixed precision on a CPU."""
    inner = trainer._trainer
    for iteration in range(trainer.max_iter):
        amp_step(
            *(inner.model, inner.optimizer, inner.grad_scaler),
            *(next(inner._data_loader_iter), iteration, "bfloat16"),
        )
    trainer.iter = trainer.max_iter - 1
    trainer.checkpointer.save("model_final", iteration=trainer.iter)


def _same(actual, expected) -> bool:
    """Whether two nested states are equal, bit for bit."""
    if isinstance(expected, torch.Tensor):
        return torch.equal(actual.to(expected.device), expected)
    if isinstance(expected, dict):
        return actual.keys() == expected.keys() and all(
            _same(actual[key], expected[key]) for key in expected
        )
    if isinstance(expected, (list, tuple)):
        return len(actual) == len(expected) and all(map(_same, actual, expected))
    return actual == expected
