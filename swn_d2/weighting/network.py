"""The sample weighting network (Sec. 3.4 of the paper, Eq. 10 and 11)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .statistics import SampleStatistics

__all__ = ["SampleWeightingNetwork"]

EMBEDDING_DIM = 64

_CHUNK_ON_CPU = 8192  # samples


class SampleWeightingNetwork(nn.Module):
    """Predicts ``m_i = log(sigma_i^2)`` for every sample and task from the sample's statistics.

    Every statistic is embedded by its own two-layer MLP (F, G, H and K of Eq. 10, one more for
    the mask loss); the embeddings of a sample are concatenated to ``d_i``, from which an MLP per
    task (Eq. 11), or one MLP with an output per task, predicts ``m_i``.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        box_loss_dim: int = 1,
        has_mask: bool = False,
        shared_head: bool = False,
        init: str = "normal",
    ):
        """
        Args:
            tasks: the tasks to predict an m for, a subset of :data:`~swn_d2.weighting.TASKS`.
            box_loss_dim: columns of the box-loss feature. With 1 the network sees the sum over
                the columns of the box loss (the paper's scalar L_i), else the columns themselves.
            has_mask: whether the mask loss is a fifth statistic.
            shared_head: one MLP with an output per task (the authors' code) instead of one MLP
                per task (the paper's text).
            init: "normal": all weights from N(0, 1e-4^2), biases 0 (Sec. 4.2), m being about 0;
                "zero_output": PyTorch's own for the hidden layers, 0 for the outputs, m being 0.
                The first starts at a saddle point if the gradient of m has mean 0: nothing but
                the output biases feels a gradient then.
        """
        super().__init__()
        self.tasks = tuple(tasks)
        self.box_loss_dim = box_loss_dim
        self.has_mask = has_mask
        dims = {"cls_loss": 1, "box_loss": box_loss_dim, "iou": 1, "prob": 1}
        if has_mask:
            dims["mask_loss"] = 1
        self.embeddings = nn.ModuleDict({name: _embedding(dim) for name, dim in dims.items()})
        if shared_head:
            heads = {"shared": _head(len(dims), outputs=len(self.tasks))}
        else:
            heads = {task: _head(len(dims), outputs=1) for task in self.tasks}
        self.heads = nn.ModuleDict(heads)
        if init == "normal":
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=1e-4)
                    nn.init.zeros_(layer.bias)
        else:
            for head in self.heads.values():
                nn.init.zeros_(head[-1].weight)
                nn.init.zeros_(head[-1].bias)

    def forward(self, statistics: SampleStatistics) -> dict[str, Tensor]:
        """Task -> (R,) the unclamped m of the samples. The statistics must be finite.

        For "cls" the m of every sample. The other losses have no negatives, whose m is 0.
        """
        foreground = statistics.foreground
        m = self.of_positives(
            {name: self._feature(statistics, name)[foreground] for name in self.embeddings}
        )
        result = {}
        for task, m_of_positives in zip(self.tasks, m.unbind(dim=1), strict=True):
            everyone = (
                self._classification_of_negatives(statistics.cls_loss)
                if task == "cls"
                else m.new_zeros(len(statistics))
            )
            result[task] = everyone.index_copy(0, foreground, m_of_positives)
        return result

    def of_positives(self, features: Mapping[str, Tensor]) -> Tensor:
        """(n, T) the unclamped m of n positives for each of the T tasks.

        Args:
            features: name of a statistic -> (n, its number of columns).
        """
        d = torch.cat([embed(features[name]) for name, embed in self.embeddings.items()], dim=1)
        return torch.cat([head(d) for head in self.heads.values()], dim=1)

    def _classification_of_negatives(self, cls_loss: Tensor) -> Tensor:
        """(R,) the m that negatives with these classification losses have, at a fraction of the
        cost: their other statistics are 0, so that all but one embedding are constants, and the
        first layer of the head needs to be applied to these only once. A dense detector has
        hundreds of thousands of negatives. It is the same function of the same parameters."""
        is_shared = "shared" in self.heads
        head = self.heads["shared" if is_shared else "cls"]
        parts = dict(zip(self.embeddings, head[0].weight.split(EMBEDDING_DIM, dim=1), strict=True))
        bias = head[0].bias
        for name, embed in self.embeddings.items():
            if name != "cls_loss":
                zero = bias.new_zeros(1, embed[0].in_features)
                bias = bias + nn.functional.linear(embed(zero), parts[name]).squeeze(0)
        column = self.tasks.index("cls") if is_shared else 0
        # On a CPU, pieces that stay in its cache take half the time that the whole takes.
        size = _CHUNK_ON_CPU if cls_loss.device.type == "cpu" else max(len(cls_loss), 1)
        m = []
        for chunk in cls_loss.split(size):
            hidden = self.embeddings["cls_loss"](chunk[:, None])
            hidden = nn.functional.linear(hidden, parts["cls_loss"], bias)
            m.append(head[1:](hidden)[:, column])
        return torch.cat(m)

    def _feature(self, statistics: SampleStatistics, name: str) -> Tensor:
        value = getattr(statistics, name)
        if value is None:
            raise ValueError(f"the network was built for a {name}, which these samples don't have")
        if name == "box_loss":
            if self.box_loss_dim not in (1, value.shape[1]):
                raise ValueError(
                    f"the network was built for box_loss_dim {self.box_loss_dim}, but the box loss "
                    f"of these samples has {value.shape[1]} columns"
                )
            return value.sum(dim=1, keepdim=True) if self.box_loss_dim == 1 else value
        return value[:, None]


def _embedding(input_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(input_dim, EMBEDDING_DIM),
        nn.ReLU(inplace=True),
        nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM),
        nn.ReLU(inplace=True),
    )


def _head(num_embeddings: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_embeddings * EMBEDDING_DIM, EMBEDDING_DIM),
        nn.ReLU(inplace=True),
        nn.Linear(EMBEDDING_DIM, outputs),
    )
