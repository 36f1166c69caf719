"""Does a detector's adapter keep the contract? The mistakes that everybody makes, found."""

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..errors import UserError
from .adapters import checked_corners
from .statistics import TASKS, SampleStatistics, SampleWeights
from .weighters import SampleWeighter

__all__ = ["check_adapter"]

#: Details that have a graph, by their definition; no other statistic may have one.
_WITH_GRAPH = ("true_prob", "label_loss", "log_variance")

_PROBE = "loss_check_adapter"  # a regulariser
_RELATIVE = 1e-5  # difference of losses that are the same
_RELATIVE_OF_GRADIENTS = 1e-3  # which normalisation layers amplify
_STEP = 0.02  # the share of the box loss that a step down its gradient should take away


def check_adapter(plain: nn.Module, weighted: nn.Module, *inputs) -> None:
    """Check that a detector weights its samples as :mod:`swn_d2.weighting` wants it, or say what is
    wrong.

    With weights of 1, every loss must be the plain detector's, in value and in gradient, which
    shows a wrong *normaliser*, and *ignored samples* that are counted. The weights of each task
    must reach one loss, all of it, and no other, each weight its own sample. The statistics must
    be those of Sec. 3.4 of the paper, without a *gradient*, and the IoU must follow the predicted
    boxes. Regularisers must be among the losses, and all of the weighter's parameters must get a
    gradient, without which DistributedDataParallel stops.

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

        def reply(weighter=weighter, step=None, **weights) -> _Run:
            return _Run(weighted, inputs, weighter, SampleWeights(**weights), step)

        with_1 = reply(regularizers={_PROBE: torch.tensor(1.0)})
        # A cascade may add to the name.
        probes = [name for name in with_1.losses if name.startswith(_PROBE)]
        if [with_1.losses.pop(name).item() for name in probes] != [1]:
            raise UserError(
                "the weighter's regularizers are not among the losses, but it learns by them; add "
                "them to the dict that the detector returns (weighted_losses does)."
            )
        _check_statistics(with_1.statistics)
        _check_weighter(weighted.get_submodule(weighter), with_1.statistics)
        _check_finite(expected, with_1)
        tasks = _losses_of_tasks(with_1, reply)
        for name in expected.losses:
            _check_loss(name, tasks.get(name), expected, with_1)
        for name, task in tasks.items():
            _check_sum(name, task, with_1, reply)
        _check_gradients(expected, with_1)
        if box := [name for name, task in tasks.items() if task == "box"]:
            _check_iou(box[0], expected, with_1, reply)
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
        step: Mapping[str, Tensor] | None = None,
    ):
        """
        Args:
            weighter: the name of the weighter to be listened to.
            weights: what it says in place of its own.
            step: parameter name -> what is added to it.
        """
        self._model, inputs = copy.deepcopy((detector, inputs))
        seen = []
        if weighter is not None:

            def answer(_, arguments, own):
                seen.append(arguments[0])
                return weights

            listened = self._model.get_submodule(weighter)
            listened.forward = lambda statistics: SampleWeights()  # its own may stop at a mistake
            listened.register_forward_hook(answer)
        _make_every_sample_count(self._model)
        with torch.no_grad():
            for name, change in (step or {}).items():
                self._model.get_parameter(name).add_(change)
        with torch.random.fork_rng(), torch.enable_grad(), checked_corners():
            torch.manual_seed(0)
            losses = self._model.train()(*inputs)
        if not isinstance(losses, Mapping) or not all(map(torch.is_tensor, losses.values())):
            raise UserError(
                f"in training, a {type(detector).__name__} must return a dict of losses, as 0-d "
                "tensors, and no more; put a module around both detectors that does."
            )
        self.losses = dict(losses)
        if weighter is not None:
            if len(seen) != 1:
                raise UserError(
                    f"the weighter was asked {len(seen)} times in an iteration; ask it once, with "
                    "the samples of all images and levels, also where there are none."
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
    if not isinstance(statistics.iteration, int):
        raise UserError(
            f"the statistics' iteration is {statistics.iteration!r}; it must be an int, counted "
            "from 0 (IterationCounter does)."
        )
    for task, normalizer in statistics.normalizers.items():
        if not normalizer > 0:
            raise UserError(
                f"normalizers[{task!r}] is {float(normalizer):g}; it must be greater than 0, also "
                "where there are no samples."
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
        if not ((value >= 0) & (value <= 1)).all():
            raise UserError(
                f"the statistics' {name} must be between 0 and 1"
                + (", of boxes that are XYXY." if name == "iou" else ".")
            )
    if "true_prob" in statistics.details:
        true_prob = statistics.detail("true_prob").detach().float()[statistics.foreground]
        if not torch.allclose(statistics.prob[statistics.foreground], true_prob, atol=1e-4):
            raise UserError(
                "the statistics' prob of positives is not their true_prob; it must be the "
                "probability of the object's class."
            )


def _check_weighter(weighter: SampleWeighter, statistics: SampleStatistics) -> None:
    """It is built for what the statistics have."""
    weighter.check_detector(
        is_dense=False,  # not known here, and the less strict of the two
        box_loss_dim=statistics.box_loss.shape[1],
        has_mask=statistics.mask_loss is not None,
    )


def _normalizers(statistics: SampleStatistics) -> dict[str, float | Tensor]:
    return {f"normalizers[{task!r}]": n for task, n in statistics.normalizers.items()}


def _seen(run: _Run) -> str:
    statistics = run.statistics
    return (
        f"The weighter saw {len(statistics)} samples, {len(statistics.foreground)} of them positive"
    )


def _check_finite(expected: _Run, with_1: _Run) -> None:
    for name, plain in expected.losses.items():
        loss = with_1.losses.get(name, plain)
        if plain.isfinite() and not loss.isfinite():
            raise UserError(
                f"with weights of 1, {name} is {loss:.6g}, but {plain:.6g} in the plain detector. "
                f"{_seen(with_1)}: see that they are the detector's."
            )


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
    for other, value in expected.losses.items():
        if other != name and _same(loss, value):
            raise UserError(f"{message}, whose {other} it is; exchange the names of the losses.")
    gradient, gradient_of_plain = (
        run.gradient(value, expected.trainable())
        for run, value in ((with_1, loss), (expected, plain))
    )
    ratio = loss.item() / plain.item() if plain else 0.0
    rest = gradient - ratio * gradient_of_plain
    if task is not None and rest.norm() <= _RELATIVE_OF_GRADIENTS * gradient.norm():
        normalizer = float(with_1.statistics.normalizers[task])
        right = normalizer * ratio
        twice = (
            " if the losses are divided by it already"
            if math.isclose(right, 1, rel_tol=1e-4)
            else ""
        )
        raise UserError(
            f"{message}, and its gradient has the same direction: the normaliser is wrong. "
            f"normalizers[{task!r}] is {normalizer:.6g}, and should be {right:.6g}{twice}."
        )
    raise UserError(
        f"{message}, and its gradient has another direction: it is of other samples, or another "
        f"loss. {_seen(with_1)}: if the detector counts others, leave out the samples that the "
        "detector ignores, and no others; if it counts these, compare the loss, the order of the "
        "classes (the background is the last) and the images' factors."
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


def _check_sum(name: str, task: str, with_1: _Run, reply: Callable[..., _Run]) -> None:
    """The statistics are of the losses that the detector trains on, sample by sample."""
    statistics = with_1.statistics
    losses = statistics.loss(task) / statistics.normalizers[task]
    if not _same(losses.sum(), with_1.losses[name]):
        raise UserError(
            f"the statistics' {task}_loss adds up to {losses.sum():.6g}, but {name} to "
            f"{with_1.losses[name]:.6g}; make the statistics of the same losses "
            "and samples (SampleStatistics.of does)."
        )
    weights = torch.linspace(0, 2, len(losses), device=losses.device)  # each has another
    if task == "cls" and "label_loss" in statistics.details:
        label_losses = statistics.detail("label_loss") / statistics.normalizers[task]
        expected = (losses - (1 - weights) * label_losses).sum()
        if not _same(expected, reply(label=weights).losses[name]):
            raise UserError(
                "weights of labels are not multiplied with the statistics' label_loss; make both "
                "by swn_d2.weighting.gather_samples, with weighted_losses."
            )
    if not _same((weights * losses).sum(), reply(**{task: weights}).losses[name]):
        raise UserError(
            f"weights of the task {task!r} are multiplied with losses of other samples than "
            "those whose statistics they are for; keep one order of the samples."
        )


def _check_iou(name: str, expected: _Run, with_1: _Run, reply: Callable[..., _Run]) -> None:
    """A step down the gradient of the box loss changes the IoU, and, where the loss is one of
    coordinates, raises its mean. (With GIoU, boxes without an area can come nearer by IoUs of 0.)
    """
    names = expected.trainable()
    loss, others = with_1.losses[name], [v for n, v in with_1.losses.items() if n != name]
    gradient = dict(zip(names, with_1.gradients(loss, names), strict=True))
    if others:
        shared = with_1.gradients(sum(others), names)
        # Of the box branch alone, if there is one: it has no part in what the samples are.
        alone = {n: g for (n, g), s in zip(gradient.items(), shared, strict=True) if s is None}
        if any(g is not None for g in alone.values()):
            gradient = alone
    gradient = {n: g for n, g in gradient.items() if g is not None}
    steepness = sum(g.double().square().sum() for g in gradient.values())
    if not steepness:
        return
    length = _STEP * loss.item() / float(steepness)
    after = reply(step={n: -length * g for n, g in gradient.items()}).statistics
    before = with_1.statistics
    if len(before.foreground) != len(after.foreground):  # what is sampled has changed
        return
    rise = after.iou[after.foreground] - before.iou[before.foreground]
    is_of_coordinates = before.box_loss.shape[1] > 1
    if not rise.any() and (is_of_coordinates or before.iou.any()):
        fault = "stays the same"
    elif is_of_coordinates and rise.mean() <= 0:
        fault = "falls"
    else:
        return
    raise UserError(
        f"when the predicted boxes come nearer to their objects, the statistics' iou {fault}; it "
        "must be that of the predicted, decoded boxes with their own objects, both XYXY in pixels."
    )


def _check_gradient_of_weighters(weighted: nn.Module, inputs: tuple, weighters: list[str]) -> None:
    run = _Run(weighted, inputs)
    names = [n for n in run.trainable() if any(n.startswith(f"{w}.") for w in weighters)]
    if not names:
        return
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
