"""Where a process stands that a cluster's launcher has started: torchrun, srun, or Kubernetes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

__all__ = ["Place", "find_place", "is_restart", "note_start"]


@dataclass(frozen=True)
class Place:
    """Of a process among those of its job.

    Attributes:
        rank, local_rank: among all, and among those on its machine, from 0.
        num_processes, num_local: how many there are, and on each machine.
    """

    rank: int
    local_rank: int
    num_processes: int
    num_local: int


def find_place(environment: Mapping[str, str]) -> Place | None:
    """The place that the environment tells, None if no launcher has started this process.

    torchrun says it all, a Kubernetes job with a process in each pod leaves out the machine. Of
    Slurm's it is read in a step of srun, where there is a ``MASTER_ADDR``: what a batch script
    itself starts is one process, whatever the job has asked for.

    Raises:
        UserError: the machines have different numbers of processes, or not one after the other; or
            something is missing.
    """
    if "MASTER_ADDR" not in environment:
        return None
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        defaults = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    elif "SLURM_STEP_NUM_TASKS" in environment:
        names = (
            *("SLURM_PROCID", "SLURM_LOCALID"),
            *("SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"),
        )
        defaults = {}
    else:
        return None
    numbers = []
    for name in names:
        # Slurm writes "4(x2)" for two machines of four each, and "4,3" for different ones.
        match = re.fullmatch(r"(\d+)(\(x\d+\))?", environment.get(name, defaults.get(name, "")))
        if match is None:
            raise UserError(
                f"{name} is {environment.get(name)!r} in the environment, but it must be a number, "
                "the same on every machine; start the processes with torchrun or srun."
            )
        numbers.append(int(match.group(1)))
    place = Place(*numbers)
    local = place.num_local
    if not local or place.num_processes % local or place.rank % local != place.local_rank:
        raise UserError(
            f"process {place.rank} of {place.num_processes} is number {place.local_rank} of the "
            f"{place.num_local} on its machine, but every machine must have as many, one after "
            "the other (with srun: --ntasks-per-node and --distribution=block)."
        )
    return place


def is_restart(environment: Mapping[str, str]) -> bool:
    """Whether torchrun has started this process again, its job having begun the run before.

    Not where the first start was refused, such as for another run in the folder, and torchrun tries
    again all the same: see :func:`note_start`.
    """
    mark = _mark(environment)
    restarts = int(environment.get("TORCHELASTIC_RESTART_COUNT", 0))
    return mark is not None and restarts > 0 and mark.exists()


def note_start(environment: Mapping[str, str]) -> None:
    """To be called when nothing keeps a run from beginning: a restart goes on with it."""
    mark = _mark(environment)
    if mark is not None:
        mark.touch()


def _mark(environment: Mapping[str, str]) -> Path | None:
    """A file in a folder that one torchrun has for itself, None if there is none."""
    error_file = environment.get("TORCHELASTIC_ERROR_FILE")  # FOLDER/attempt_0/0/error.json
    return Path(error_file).parents[2] / "swn_d2_began" if error_file else None
