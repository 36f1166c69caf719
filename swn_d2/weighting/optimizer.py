"""Two optimisers that the training, the scheduler, AMP and the checkpoints see as one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import UserError
from .weighters import SampleWeighter

__all__ = ["JointOptimizer", "join_adam", "sample_weighter_parameters"]

#: What of an optimiser's group a config decides, and nothing else: no state, and not how torch
#: computes a step.
SETTINGS = ("initial_lr", "weight_decay", "momentum", "nesterov", "betas")


class JointOptimizer(Optimizer):
    """Steps several optimisers together.

    ``param_groups`` are the members' own groups, one after the other, so that a learning-rate
    scheduler and a GradScaler act on all of them: a scheduler that multiplies each group's own
    rate, as most do, and not one that sets a rate itself, as ``OneCycleLR``. The state is kept, and
    saved, per member.
    """

    def __init__(self, **members: Optimizer):
        """
        Args:
            members: name -> optimiser. The names are the keys of the state dict.
        """
        self.members: Mapping[str, Optimizer] = {}
        super().__init__([group for m in members.values() for group in m.param_groups], {})
        self.members = members

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "members": self.members}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Groups belong to the members, which alone step them.

        Raises:
            UserError: always, once there are members.
        """
        if self.members:
            raise UserError(
                "groups of parameters can't be added to a joint optimiser; give them to the "
                f"optimiser of the {next(iter(self.members))} before the two are joined, with a "
                "learning rate of 0 for as long as they are not to learn."
            )
        super().add_param_group(param_group)

    def step(self, closure=None) -> None:
        if closure is not None:
            raise ValueError("JointOptimizer does not take a closure")
        for member in self.members.values():
            member.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: member.state_dict() for name, member in self.members.items()}

    def settings(self) -> list[dict[str, Any]]:
        """Of each group, what a config decides: ``SETTINGS``, as far as there are such."""
        return [{k: group[k] for k in SETTINGS if k in group} for group in self.param_groups]

    def change(self, settings: Sequence[Mapping[str, Any]]) -> list[str]:
        """Give every group other settings, as :meth:`settings` gave them; the learning rate changes
        as its start, ``initial_lr``, does.

        Returns:
            The names of those that are different now.
        """
        changed = {}
        for group, new in zip(self.param_groups, settings, strict=True):
            before, after = group.get("initial_lr"), new.get("initial_lr")
            if before and after is not None:
                group["lr"] *= after / before
            for key, value in new.items():
                if group.get(key) != value:
                    changed["lr" if key == "initial_lr" else key] = group[key] = value
        return list(changed)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if set(state_dict) != set(self.members):
            raise UserError(
                f"the checkpoint holds the optimisers {sorted(map(str, state_dict))}, but this "
                f"run has {sorted(self.members)}: it was written by another kind of run. Resume "
                "with that run's config, or start a new run from its MODEL.WEIGHTS."
            )
        for name, member in self.members.items():
            try:
                member.load_state_dict(state_dict[name])
            except ValueError as error:  # whose groups have other sizes or another number
                raise UserError(
                    f"the checkpoint's optimiser of the {name} has other groups of parameters than "
                    "this run's, as with another SOLVER.BIAS_LR_FACTOR or WEIGHT_DECAY_BIAS. "
                    "Resume with that run's config, or start a new run from its MODEL.WEIGHTS."
                ) from error
        # Loading gives every member new groups.
        self.param_groups = [group for m in self.members.values() for group in m.param_groups]


def sample_weighter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters of all the :class:`SampleWeighter` in ``model``, each once, also
    where one weighter is made of others."""
    parameters = {
        id(parameter): parameter
        for module in model.modules()
        if isinstance(module, SampleWeighter)
        for parameter in module.parameters()
        if parameter.requires_grad
    }
    return list(parameters.values())


def join_adam(
    params: Sequence[nn.Parameter], *, detector: Optimizer, weighter: Mapping[str, float]
) -> JointOptimizer:
    """An optimiser of a whole model, with Adam for the weighters' share (Sec. 4.2).

    Args:
        params: the weighters' parameters, as :func:`sample_weighter_parameters` gives them. They
            leave ``detector``; without any, the result has that optimiser alone, in the same
            wrapping.
        detector: an optimiser of all the model's parameters, before its first step.
        weighter: Adam's other arguments, such as ``lr`` and ``weight_decay``.
    """
    if not params:
        return JointOptimizer(detector=detector)
    # Nothing but the groups exists yet: an optimiser's state begins with its first step.
    others = {id(parameter) for parameter in params}
    for group in detector.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in others]
    detector.param_groups = [group for group in detector.param_groups if group["params"]]
    return JointOptimizer(detector=detector, weighter=torch.optim.Adam(params, **weighter))
