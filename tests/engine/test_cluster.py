"""What launchers tell the processes that they start."""

import pytest

from swn_d2.engine import Place, find_place, is_restart, note_start
from swn_d2.errors import UserError

ADDRESS = {"MASTER_ADDR": "node1", "MASTER_PORT": "1234"}
TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}


@pytest.mark.parametrize(
    "environment, place",
    [
        ({}, None),
        (ADDRESS, None),
        (TORCHRUN, None),
        (SRUN, None),
        (ADDRESS | BATCH_SCRIPT, None),
        (ADDRESS | TORCHRUN, Place(5, 1, 8, 4)),
        (ADDRESS | SRUN, Place(5, 1, 8, 4)),
        (ADDRESS | SRUN | TORCHRUN | {"LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8"}, (5, 5, 8, 8)),
        (ADDRESS | {"RANK": "2", "WORLD_SIZE": "3"}, Place(2, 0, 3, 1)),
    ],
)
def test_where_a_process_stands(environment, place):
    expected = Place(*place) if isinstance(place, tuple) else place
    assert find_place(environment) == expected


@pytest.mark.parametrize(
    "change, message",
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "4,3"}, "SLURM_STEP_TASKS_PER_NODE is '4,3'.*the same"),
        ({"SLURM_LOCALID": ""}, "SLURM_LOCALID is ''.*must be a number"),
        ({"SLURM_STEP_TASKS_PER_NODE": "0"}, "process 5 of 8 is number 1 of the 0"),
        ({"SLURM_LOCALID": "2"}, "process 5 of 8 is number 2 of the 4.*--distribution=block"),
        ({"SLURM_STEP_TASKS_PER_NODE": "3"}, "must have as many"),
    ],
)
def test_what_does_not_fit_together(change, message):
    with pytest.raises(UserError, match=message):
        find_place(ADDRESS | SRUN | change)


def test_only_a_run_that_was_begun_is_begun_again(tmp_path):
    def attempt(number):
        file = tmp_path / "none_abc" / f"attempt_{number}" / "0" / "error.json"
        file.parent.mkdir(parents=True)
        return {"TORCHELASTIC_RESTART_COUNT": f"{number}", "TORCHELASTIC_ERROR_FILE": str(file)}

    first, second, third = map(attempt, range(3))
    assert not is_restart({}) and not is_restart({"TORCHELASTIC_RESTART_COUNT": "1"})
    note_start({})
    assert not is_restart(first)
    assert not is_restart(second)  # the first was refused
    note_start(second)
    assert not is_restart(first) and is_restart(third)
