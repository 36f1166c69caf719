"""Does a detector's adapter keep the contract? The mistakes that everybody makes, found."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import UserError
from .statistics import TASKS, SampleStatistics, SampleWeights
from .weighters import SampleWeighter

__all__ = ["check_adapter"]

#: Details that have a graph, by their definition; no other statistic may have one.
_WITH_GRAPH = ("true_prob", "cross_entropy", "label_loss", "log_variance")

_PROBE = "loss_check_adapter"  # a regulariser
_RELATIVE = 1e-5  # difference of losses that are the same
_RELATIVE_OF_GRADIENTS = 1e-3  # which normalisation layers amplify


def check_adapter(plain: nn.Module, weighted: nn.Module, *inputs) -> None:
    """Check that a detector weights its samples as :mod:`swn_d2.weighting` wants it, or say what is
    wrong.

    With weights of 1, every loss must be the plain detector's, in value and in gradient, which
    shows a wrong *normaliser*, and *ignored samples* that are counted. The weights of each task
    must reach one loss, all of it, and no other. The statistics must be those of Sec. 3.4 of the
    paper, without a *gradient*. Regularisers must be among the losses, and all of the weighter's
    parameters must get a gradient, without which DistributedDataParallel stops.

    Copies of both detectors, with biases of 0, run a few times, always with the same random
    numbers. The detectors, the inputs, and the random numbers that follow stay as they are.

    Args:
        plain: the detector without weights. In training mode it returns a dict of losses.
        weighted: the same detector with a weighter at its start, with the same parameters: for
            instance a ``copy.deepcopy`` of the plain one that was given a weighter. Not trained:
            a trained detector can be so sure of a sample that its loss is exactly 0, by which
            ignored samples are known here.
        inputs: of both, one batch. A batch without objects is worth a second call.

    Raises:
        UserError: the first thing that is wrong, and how to mend it.
    """
    weighters = [name for name, m in weighted.named_modules() if isinstance(m, SampleWeighter)]
    if not weighters:
        raise UserError("the weighted detector has no SampleWeighter among its modules.")
    _check_same_parameters(plain, weighted)
    expected = _Run(plain, inputs)
    for weighter in weighters:

        def reply(weighter=weighter, **weights) -> _Run:
            return _Run(weighted, inputs, weighter, SampleWeights(**weights))

        with_1 = reply(regularizers={_PROBE: torch.tensor(1.0)})
        # A cascade may add to the name.
        probes = [name for name in with_1.losses if name.startswith(_PROBE)]
        if [with_1.losses.pop(name).item() for name in probes] != [1]:
            raise UserError(
                "the weighter's regularizers are not among the losses, but it learns by them; add "
                "them to the dict that the detector returns (weighted_losses does)."
            )
        _check_statistics(with_1.statistics)
        tasks = _losses_of_tasks(with_1, reply)
        for name in expected.losses:
            _check_loss(name, tasks.get(name), expected, with_1)
        for name, task in tasks.items():
            _check_sum(name, task, with_1)
        _check_gradients(expected, with_1)
    _check_gradient_of_weighters(weighted, inputs, weighters)


class _Run:
    """One training step's forward pass of a copy of a detector.

    Attributes:
        losses: name -> 0-d tensor.
        statistics: what the weighter that was listened to saw.
    """

    losses: dict[str, Tensor]
    statistics: SampleStatistics

    def __init__(
        self,
        detector: nn.Module,
        inputs: tuple,
        weighter: str | None = None,
        weights: SampleWeights | None = None,
    ):
        """
        Args:
            weighter: the name of the weighter to be listened to.
            weights: what it says in place of its own.
        """
        self._model, inputs = copy.deepcopy((detector, inputs))
        seen = []
        if weighter is not None:

            def answer(_, arguments, own):
                seen.append(arguments[0])
                return weights

            self._model.get_submodule(weighter).register_forward_hook(answer)
        _make_every_sample_count(self._model)
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(0)
            self.losses = dict(self._model.train()(*inputs))
        if weighter is not None:
            if len(seen) != 1:
                raise UserError(
                    f"the weighter was asked {len(seen)} times in an iteration; ask it once, with "
                    "the samples of all images and levels."
                )
            self.statistics = seen[0]

    def gradients(self, loss: Tensor, names: list[str]) -> list[Tensor | None]:
        """Of a loss, in the parameters of these names."""
        parameters = [self._model.get_parameter(name) for name in names]
        if not loss.requires_grad:
            return [None] * len(names)
        return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))

    def gradient(self, loss: Tensor, names: list[str]) -> Tensor:
        """The same, as one vector."""
        parts = [
            torch.zeros_like(self._model.get_parameter(name)) if part is None else part
            for name, part in zip(names, self.gradients(loss, names), strict=True)
        ]
        return torch.cat([part.flatten().double() for part in parts])

    def trainable(self) -> list[str]:
        """The names of its parameters."""
        return [name for name, p in self._model.named_parameters() if p.requires_grad]


@torch.no_grad()
def _make_every_sample_count(detector: nn.Module) -> None:
    """Let the detector be sure of nothing. With the bias that a dense detector starts with, its
    negatives would have next to no loss, and nobody would see which of them are counted."""
    ours = {p for m in detector.modules() if isinstance(m, SampleWeighter) for p in m.parameters()}
    for name, parameter in detector.named_parameters():
        if name.endswith("bias") and parameter not in ours:
            parameter.zero_()


def _check_same_parameters(plain: nn.Module, weighted: nn.Module) -> None:
    others = dict(weighted.named_parameters())
    for name, parameter in plain.named_parameters():
        if name not in others or not torch.equal(parameter, others[name]):
            raise UserError(
                f"the two detectors differ in the parameter {name}; make the weighted one of a "
                "copy.deepcopy of the plain one."
            )


def _check_statistics(statistics: SampleStatistics) -> None:
    for name, value in {**vars(statistics), **_normalizers(statistics)}.items():
        if isinstance(value, Tensor) and value.requires_grad:
            raise UserError(
                f"the statistics' {name} has a gradient, so the detector would learn to look as "
                "if its samples counted more; detach it."
            )
    for name in statistics.details:
        try:
            detail = statistics.detail(name)
        except UserError:  # the detector offers it in another kind of training only
            continue
        if name not in _WITH_GRAPH and detail.requires_grad:
            raise UserError(
                f"the statistics' detail {name} has a gradient; detach what it is computed from."
            )
    num_ignored = int((statistics.cls_loss == 0).sum())
    if num_ignored:
        raise UserError(
            f"{num_ignored} of {len(statistics)} samples have a classification loss of exactly 0, "
            "as ignored ones have whose loss was masked; leave out the samples that the detector "
            "ignores, before anything else."
        )
    negatives = ~statistics.is_foreground
    for name in ("box_loss", "iou", "prob", "mask_loss"):
        value = getattr(statistics, name)
        if value is not None and (value[negatives] != 0).any():
            raise UserError(f"the statistics' {name} of negatives must be 0.")
    for name in ("iou", "prob"):
        value = getattr(statistics, name)
        if ((value < 0) | (value > 1)).any():
            raise UserError(f"the statistics' {name} must be between 0 and 1.")


def _normalizers(statistics: SampleStatistics) -> dict[str, float | Tensor]:
    return {f"normalizers[{task!r}]": n for task, n in statistics.normalizers.items()}


def _losses_of_tasks(with_1: _Run, reply: Callable[..., _Run]) -> dict[str, str]:
    """Loss name -> task, of the tasks that the batch has samples for: what weights of 0 change."""
    statistics = with_1.statistics
    zeros = torch.zeros_like(statistics.cls_loss)
    result = {}
    for task in TASKS:
        has_loss = task != "mask" or statistics.mask_loss is not None
        if not has_loss or not statistics.loss(task).any():
            continue
        losses = reply(**{task: zeros}).losses
        changed = [name for name, loss in with_1.losses.items() if not _same(losses[name], loss)]
        if len(changed) != 1 or losses[changed[0]] != 0:
            found = ", ".join(f"{name} becomes {losses[name]:.4g}" for name in changed)
            raise UserError(
                f"weights of 0 in the task {task!r} must make one loss 0 and change no other, but "
                f"{found or 'no loss changes'}; weight the losses of all samples by "
                "SampleLosses.weighted or weighted_losses."
            )
        result[changed[0]] = task
    return result


def _check_loss(name: str, task: str | None, expected: _Run, with_1: _Run) -> None:
    """With weights of 1 it has the plain detector's value."""
    if name not in with_1.losses:
        raise UserError(f"the weighted detector does not return the plain one's loss {name}.")
    plain, loss = expected.losses[name], with_1.losses[name]
    if _same(loss, plain):
        return
    message = f"with weights of 1, {name} is {loss:.6g}, but {plain:.6g} in the plain detector"
    gradient, gradient_of_plain = (
        run.gradient(value, expected.trainable())
        for run, value in ((with_1, loss), (expected, plain))
    )
    ratio = loss.item() / plain.item() if plain else 0.0
    rest = gradient - ratio * gradient_of_plain
    if task is not None and rest.norm() <= _RELATIVE_OF_GRADIENTS * gradient.norm():
        normalizer = float(with_1.statistics.normalizers[task])
        raise UserError(
            f"{message}, and its gradient has the same direction: the normaliser is wrong. "
            f"normalizers[{task!r}] is {normalizer:.6g}, and should be {normalizer * ratio:.6g}."
        )
    raise UserError(
        f"{message}, and its gradient has another direction: it is of other samples, or another "
        "loss. Leave out the samples that the detector ignores, and no others."
    )


def _check_gradients(expected: _Run, with_1: _Run) -> None:
    """With weights of 1 the detector's gradient is the plain one's."""
    names = expected.trainable()
    plain, weighted = (
        run.gradient(sum(run.losses[name] for name in expected.losses), names)
        for run in (expected, with_1)
    )
    if (plain - weighted).norm() > _RELATIVE_OF_GRADIENTS * plain.norm() + 1e-8:
        raise UserError(
            "with weights of 1, the losses have the plain detector's values, but another gradient; "
            "compute them from predictions that are not detached."
        )


def _check_sum(name: str, task: str, with_1: _Run) -> None:
    """The statistics are of the losses that the detector trains on."""
    statistics = with_1.statistics
    total = statistics.loss(task).sum() / statistics.normalizers[task]
    if not _same(total, with_1.losses[name]):
        raise UserError(
            f"the statistics' {task}_loss adds up to {total:.6g}, but {name} to "
            f"{with_1.losses[name]:.6g}; make the statistics of the same losses "
            "(SampleStatistics.of does)."
        )


def _check_gradient_of_weighters(weighted: nn.Module, inputs: tuple, weighters: list[str]) -> None:
    run = _Run(weighted, inputs)
    names = [n for n in run.trainable() if any(n.startswith(f"{w}.") for w in weighters)]
    gradients = run.gradients(sum(run.losses.values()), names)
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is None:
            raise UserError(
                f"the weighter's parameter {name} gets no gradient from the losses; add all of "
                "the weighter's regularizers to them, whatever the batch."
            )


def _same(a: Tensor, b: Tensor) -> bool:
    a, b = a.item(), b.item()
    return abs(a - b) <= _RELATIVE * abs(b) + 1e-8
