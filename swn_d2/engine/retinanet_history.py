"""What a RetinaNet remembers of its training that its state dict does not have."""

import torch
from detectron2.engine import HookBase
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss_jit
from torch import nn

from ..modeling import SWNRetinaNet

__all__ = ["RetinaNetHistory"]


class RetinaNetHistory(HookBase):
    """Keeps what RetinaNet divides its losses by, in the checkpoints: a moving average of the
    number of positives, of which each process has its own, in an attribute. And has the loss
    function compiled before the first iteration, since until then its gradients are rounded
    otherwise: the first iteration would differ from the same one in a process that did others.

    It belongs before what saves checkpoints, in every process.
    """

    def __init__(self, model: RetinaNet, period: int):
        """
        Args:
            model: the detector.
            period: of the checkpoints.
        """
        self._model = model
        self._period = period
        self._of_processes: list[float | None] = []

    @staticmethod
    def is_for(model: nn.Module) -> bool:
        """Whether the detector has anything to keep."""
        return isinstance(model, RetinaNet)

    def gather(self) -> None:
        """Make the next checkpoint one of now. To be called in every process."""
        # Some versions of Detectron2 do not have it before the first iteration.
        self._of_processes = comm.all_gather(getattr(self._model, "loss_normalizer", None))

    def before_train(self) -> None:
        model = self._model
        logits = torch.zeros(1, model.num_classes, device=model.device, requires_grad=True)
        reduction = "none" if isinstance(model, SWNRetinaNet) else "sum"
        for _ in range(2):
            sigmoid_focal_loss_jit(
                logits,
                torch.zeros_like(logits),
                alpha=model.focal_loss_alpha,
                gamma=model.focal_loss_gamma,
                reduction=reduction,
            ).sum().backward()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done >= self.trainer.max_iter:
            self.gather()

    def state_dict(self) -> dict[str, list[float | None]]:
        return {"loss_normalizers": self._of_processes} if self._of_processes else {}

    def load_state_dict(self, state: dict[str, list[float | None]]) -> None:
        of_processes = state["loss_normalizers"]
        own = of_processes[comm.get_rank() % len(of_processes)]  # of another number of processes
        if own is not None:
            self._model.loss_normalizer = own
