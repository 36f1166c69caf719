"""The learned weighter of the paper, with its two readings and the relative formulation."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .checks import check, check_choice, check_columns, check_masks
from .network import SampleWeightingNetwork
from .objective import (
    average_per_group,
    group_mean,
    preserve_total_loss,
    regularizer,
)
from .rightness import ClassRightness
from .statistics import TASKS, SampleStatistics, SampleWeights
from .weighters import SAMPLE_WEIGHTER_REGISTRY, SampleWeighter

__all__ = ["SWN"]

#: Lambda_1 and lambda_2 of Eq. 9, and one for the mask loss.
LAMBDAS = MappingProxyType({task: 0.5 for task in TASKS})


@SAMPLE_WEIGHTER_REGISTRY.register()
class SWN(SampleWeighter):
    """Sample weighting network: ``w_i = exp(-k m_i)``, with m from a network trained by Eq. 9.

    The *absolute* formulation is the paper's: the detector's losses are multiplied by w as it
    is. Its stationary point is ``w = lambda / (k L)``, L being what the sample contributes to
    the loss; so the weights also rescale whole tasks and groups.

    In the *relative* formulation (the config's default, not in the paper) every group of samples
    keeps the total loss that it has without weights, so that a weight only says how much a sample
    counts within its group: positives and negatives for the classification loss, positives for
    the other losses. The network is trained by Eq. 9 in units of the group's mean loss: a sample
    with that loss has its stationary point at w = 1, whatever the scale of the detector's loss.
    Lambda is then a factor on all of the objective, to which Adam is nearly indifferent.

    In classification a large loss is what there is to learn. With ``cls_averaging`` "per_object",
    the default, it is weighted in another way, by
    :class:`~swn_d2.weighting.rightness.ClassRightness` with a network of its own: the label losses
    of an object count as much as its class is likely to be right. Exponent, clamp, lambda,
    strength and easing in are those of the other tasks alone.

    In both, what the detector sees is ``1 + a (w - 1)``. ``a`` rises linearly from 0 to
    ``strength`` while the iterations go through ``ease_in``: the losses of a detector that can
    not detect yet say little about its samples.
    """

    def __init__(
        self,
        *,
        tasks: Sequence[str] = TASKS,
        lambdas: Mapping[str, float] = LAMBDAS,
        exponent: float = 1.0,
        clamp: float = 2.0,
        box_loss_dim: int = 4,
        box_loss_feature: str = "columns",
        has_mask: bool = False,
        heads: str = "separate",
        init: str = "zero_output",
        cls_averaging: str = "per_object",
        regularizer_divisor: str = "group",
        relative: bool = True,
        strength: float = 1.0,
        ease_in: tuple[int, int] = (0, 0),
    ):
        """
        Args:
            tasks: the tasks to weight, a subset of :data:`~swn_d2.weighting.TASKS`; the other
                tasks keep weight 1.
            lambdas: for each task, the factor of its regulariser (lambda_1 and lambda_2 of
                Eq. 9), at least 0; 0.5 if they are not given.
            exponent: k, greater than 0; 2 in Eq. 9.
            clamp: m is clamped to ``[-clamp, clamp]`` (Sec. 4.2).
            box_loss_dim: columns of the detector's box loss.
            box_loss_feature: "columns", or "sum" for the paper's scalar.
            has_mask: whether the detector has a mask loss.
            heads: "separate", one MLP per task, or "shared".
            init: "normal" or "zero_output", see :class:`SampleWeightingNetwork`. The relative
                formulation could not leave the start that "normal" gives it.
            cls_averaging: with "per_object", for relative weights alone, all positives of an object
                have its weight, see the class. Else average m of the classification task over
                positives and negatives apart ("per_group"), over all samples ("all"), or not
                ("none"). Averaged weights say nothing relative to their group.
            regularizer_divisor: "group" divides R(m) by the number of samples in the group,
                "loss" by what the detector divides the loss by.
            relative: the formulation, see the class.
            strength: a, in [0, 1], once it is eased in. A strength of 0.5 leaves every sample at
                least half of the weight that it has in a plain detector. Not of classes by object.
            ease_in: iterations at which a starts to rise and has risen.

        Raises:
            UserError: an argument is out of its range, or two of them together would leave every
                weight at 1.
        """
        super().__init__()
        check("MODEL.SWN.EXPONENT", exponent, exponent > 0, "greater than 0")
        check("MODEL.SWN.CLAMP", clamp, clamp > 0, "greater than 0")
        check("MODEL.SWN.STRENGTH", strength, 0 <= strength <= 1, "between 0 and 1")
        check(
            "MODEL.SWN.EASE_IN",
            ease_in,
            len(ease_in) == 2
            and all(isinstance(iteration, int) for iteration in ease_in)
            and 0 <= ease_in[0] <= ease_in[1],
            "two whole numbers of iterations, 0 <= start <= end (only in a config are they shares)",
        )
        for task, value in lambdas.items():
            check_choice("lambdas", task, TASKS)
            check(f"MODEL.SWN.LAMBDA_{task.upper()}", value, value >= 0, "at least 0")
        check_choice("MODEL.SWN.BOX_LOSS_FEATURE", box_loss_feature, ("columns", "sum"))
        check_choice("MODEL.SWN.HEADS", heads, ("separate", "shared"))
        check_choice("MODEL.SWN.INIT", init, ("normal", "zero_output"))
        averagings = ("per_group", "all", "none", "per_object")
        check_choice("MODEL.SWN.CLS_AVERAGING", cls_averaging, averagings)
        check_choice("MODEL.SWN.REGULARIZER_DIVISOR", regularizer_divisor, ("group", "loss"))
        for task in tasks:
            check_choice("MODEL.SWN.TASKS", task, TASKS)
        if relative and "cls" in tasks and cls_averaging in ("per_group", "all"):
            raise UserError(
                f"MODEL.SWN.CLS_AVERAGING is {cls_averaging!r}, and averaged weights are 1 "
                "relative to their group; set it to per_object, or MODEL.SWN.RELATIVE to False."
            )
        if "cls" in tasks and cls_averaging == "per_object" and not relative:
            raise UserError(
                "MODEL.SWN.CLS_AVERAGING is 'per_object', which makes relative weights; set it to "
                "per_group, all or none, take cls out of MODEL.SWN.TASKS, or set "
                "MODEL.SWN.RELATIVE to True."
            )
        if relative and init == "normal":
            raise UserError(
                "MODEL.SWN.INIT is 'normal', which relative weights never leave; set it to "
                "zero_output, or MODEL.SWN.RELATIVE to False."
            )
        self.tasks = tuple(t for t in TASKS if t in tasks and (has_mask or t != "mask"))
        offered = ", ".join(task for task in TASKS if has_mask or task != "mask")
        check("MODEL.SWN.TASKS", list(tasks), bool(self.tasks), f"at least one of {offered}")
        self.rightness = None
        if "cls" in self.tasks and cls_averaging == "per_object":
            self.rightness = ClassRightness(box_loss_dim=box_loss_dim)
            self.tasks = tuple(task for task in self.tasks if task != "cls")

        self.lambdas = {**LAMBDAS, **lambdas}
        self.exponent = exponent
        self.clamp = clamp
        self.cls_averaging = cls_averaging
        self.regularizer_divisor = regularizer_divisor
        self.relative = relative
        self.strength = strength
        self.ease_in = tuple(ease_in)
        self.has_mask = has_mask
        self.network = None
        if self.tasks:
            self.network = SampleWeightingNetwork(
                self.tasks,
                box_loss_dim=box_loss_dim if box_loss_feature == "columns" else 1,
                has_mask=has_mask,
                shared_head=heads == "shared",
                init=init,
            )

    @classmethod
    def from_config(cls, cfg, *, box_loss_dim: int, has_mask: bool) -> dict[str, Any]:
        swn = cfg.MODEL.SWN
        ease_in = swn.EASE_IN
        check(
            "MODEL.SWN.EASE_IN",
            ease_in,
            len(ease_in) == 2
            and all(isinstance(share, (int, float)) for share in ease_in)
            and 0 <= ease_in[0] <= ease_in[1] <= 1,
            "two shares of the schedule, 0 <= start <= end <= 1",
        )
        return {
            "tasks": swn.TASKS,
            "lambdas": {
                "cls": swn.LAMBDA_CLS,
                "box": swn.LAMBDA_BOX,
                "mask": swn.LAMBDA_MASK,
            },
            "exponent": swn.EXPONENT,
            "clamp": swn.CLAMP,
            "box_loss_dim": box_loss_dim,
            "box_loss_feature": swn.BOX_LOSS_FEATURE,
            "has_mask": has_mask,
            "heads": swn.HEADS,
            "init": swn.INIT,
            "cls_averaging": swn.CLS_AVERAGING,
            "regularizer_divisor": swn.REGULARIZER_DIVISOR,
            "relative": swn.RELATIVE,
            "strength": swn.STRENGTH,
            "ease_in": tuple(round(share * cfg.SOLVER.MAX_ITER) for share in ease_in),
        }

    def check_detector(self, *, is_dense: bool, box_loss_dim: int, has_mask: bool) -> None:
        super().check_detector(is_dense=is_dense, box_loss_dim=box_loss_dim, has_mask=has_mask)
        if is_dense and self.regularizer_divisor == "loss":
            raise UserError(
                "MODEL.SWN.REGULARIZER_DIVISOR is 'loss', which would divide the m of some "
                "100,000 anchors by the number of positives, and drive every weight to its "
                "limit; for a dense detector set it to group."
            )
        if self.network is not None and self.network.box_loss_dim != 1:  # else it sees their sum
            check_columns("SWN", self.network.box_loss_dim, box_loss_dim)
        if self.rightness is not None:
            check_columns("SWN", self.rightness.network.box_loss_dim, box_loss_dim)
        check_masks("SWN", self.has_mask, has_mask)

    def forward(self, statistics: SampleStatistics) -> SampleWeights:
        # Eq. 9 has exponentials and sums over all samples: not for half precision.
        with torch.autocast(statistics.cls_loss.device.type, enabled=False):
            return self._weigh(statistics.finite())

    def _weigh(self, statistics: SampleStatistics) -> SampleWeights:
        result = SampleWeights()
        if self.rightness is not None:
            result.label, result.regularizers["loss_swn_cls"] = self.rightness(statistics)
            result.learned["label"] = result.label
        if self.network is None:
            return result
        amount = self._amount(statistics.iteration)
        for task, m in self.network(statistics).items():
            groups = self._groups(task, statistics.is_foreground)
            losses, normalizer = statistics.loss(task), statistics.normalizers[task]
            if self.regularizer_divisor == "group":
                divisors = [group.sum().clamp(min=1) for group in groups]
            else:
                divisors = [normalizer] * len(groups)

            m = m.clamp(-self.clamp, self.clamp)
            if task == "cls" and self.cls_averaging != "none":
                m = average_per_group(m, groups)
            w = torch.exp(-self.exponent * m)
            seen, trained = w.detach(), w
            if self.relative:
                seen = self._keep_totals(w.detach(), statistics.counted_loss(task), groups)
                trained = self._in_units_of_mean(
                    w, losses, groups, divisors, normalizer, self.lambdas[task]
                )
            setattr(result, task, 1 + amount * (seen - 1))
            # The first term of Eq. 9 is already among the detector's losses, with the weights that
            # the detector sees; here it has only the gradient, which trains the network.
            objective = (trained * losses).sum() / normalizer
            result.regularizers[f"loss_swn_{task}"] = (
                self.lambdas[task] * regularizer(m, groups, divisors)
                + objective
                - objective.detach()
            )
            result.learned[task] = w.detach()
        return result

    @staticmethod
    def _keep_totals(w: Tensor, counted: Tensor, groups: list[Tensor]) -> Tensor:
        """(R,) the weights as the detector sees them, with which every group keeps its total of
        the losses that are counted."""
        seen = torch.ones_like(w)
        for group in groups:
            seen = torch.where(group, w * preserve_total_loss(w, counted, group), seen)
        return seen

    def _in_units_of_mean(
        self,
        w: Tensor,
        losses: Tensor,
        groups: list[Tensor],
        divisors: list,
        normalizer,
        weight_of_regularizer: float,
    ) -> Tensor:
        """(R,) the weights as they train the network.

        For a group G with regulariser ``lambda sum_G m / D`` the second term must be
        ``lambda / k sum_G w_i l_i / D``, with ``l_i = L_i / mean_G(L)``, for w to be stationary
        at ``1 / l_i``. The detector will multiply by ``L_i / N``, hence the scale.
        """
        trained = torch.zeros_like(w)
        for group, divisor in zip(groups, divisors, strict=True):
            mean_loss = group_mean(losses, group)
            scale = weight_of_regularizer * normalizer / (self.exponent * divisor * mean_loss)
            scale = torch.where(mean_loss > 0, scale, torch.zeros_like(scale))
            trained = trained + w * group * scale
        return trained

    def _groups(self, task: str, is_foreground: Tensor) -> list[Tensor]:
        if task != "cls":
            return [is_foreground]
        if self.cls_averaging == "all":
            return [torch.ones_like(is_foreground)]
        return [is_foreground, ~is_foreground]

    def _amount(self, iteration: int) -> float:
        """The strength at an iteration that is counted from 0."""
        start, end = self.ease_in
        risen = (iteration + 1 - start) / max(end - start, 1)
        return self.strength * min(max(risen, 0.0), 1.0)
