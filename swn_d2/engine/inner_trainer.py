"""What does the steps of a training: Detectron2's, with one wait for the losses, not many."""

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import Tensor

__all__ = ["inner_trainer_class"]


class _OneCopy:
    """Detectron2 asks a GPU for each loss by itself, and a sample weighter adds losses; here all of
    them come to the host together. The values are the same."""

    def _write_metrics(self, loss_dict: dict[str, Tensor], *args, **kwargs):
        losses = torch.stack([loss.detach().float() for loss in loss_dict.values()]).cpu()
        together = dict(zip(loss_dict, losses.unbind(), strict=True))
        return super()._write_metrics(together, *args, **kwargs)


class _Simple(_OneCopy, SimpleTrainer):
    pass


class _AMP(_OneCopy, AMPTrainer):
    pass


def inner_trainer_class(cfg) -> type[SimpleTrainer]:
    """Detectron2's SimpleTrainer, or its AMPTrainer where ``SOLVER.AMP.ENABLED``."""
    return _AMP if cfg.SOLVER.AMP.ENABLED else _Simple
