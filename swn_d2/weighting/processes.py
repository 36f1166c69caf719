"""What the processes of a training tell each other."""

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["of_all_processes"]


def of_all_processes(*values: Tensor) -> tuple[Tensor, ...]:
    """The rows of all processes after one another, in the same order in each of them. Every process
    must call it, even if it has no row.

    Args:
        values: (F, ...) each, with the same F, which can differ between processes.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    own = torch.full((1,), len(values[0]), device=values[0].device)
    sizes = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own)
    sizes = torch.cat(sizes).tolist()  # waits for a GPU once

    def gather(rows: Tensor) -> Tensor:
        # Processes can only exchange parts of one size.
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.zeros_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    return tuple(map(gather, values))
