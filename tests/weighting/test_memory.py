"""The memory of objects in one process; tests/engine/test_launch.py has two."""

import copy

import pytest
import torch
import torch.distributed as dist

from swn_d2.errors import UserError
from swn_d2.weighting.memory import ObjectMemory
from swn_d2.weighting.processes import of_all_processes


def remember(memory, objects, statistics):
    memory.remember(torch.tensor(objects, dtype=torch.long), torch.tensor(statistics))


def test_a_running_mean_by_hand():
    memory = ObjectMemory(2, num_objects=3, window=10)
    remember(memory, [2, 0], [[1.0, 10.0], [5.0, 6.0]])
    remember(memory, [2], [[4.0, 40.0]])
    remember(memory, [2], [[1.0, 70.0]])
    mean, seen = memory.recall(torch.tensor([2, 0]))
    assert mean.tolist() == [[2.0, 40.0], [5.0, 6.0]]
    assert seen.tolist() == [3.0, 1.0]


def test_a_batch_counts_once_however_many_samples_an_object_has():
    memory = ObjectMemory(1, num_objects=2, window=10)
    remember(memory, [1, 0, 1, 1], [[1.0], [8.0], [2.0], [6.0]])
    assert memory.mean.tolist() == [[8.0], [3.0]]
    remember(memory, [1], [[5.0]])
    assert memory.mean.tolist() == [[8.0], [4.0]]
    assert memory.seen.tolist() == [1.0, 2.0]


def test_after_the_window_every_batch_counts_the_same():
    memory = ObjectMemory(1, num_objects=1, window=2)
    means = []
    for value in (4.0, 8.0, 2.0, 10.0):
        remember(memory, [0], [[value]])
        means.append(memory.mean.item())
    assert means == [4.0, 6.0, 4.0, 7.0]
    assert memory.seen.item() == 4


def test_with_a_window_of_1_the_last_batch_is_all():
    memory = ObjectMemory(1, num_objects=1, window=1)
    for value in (4.0, 8.0):
        remember(memory, [0], [[value]])
        assert memory.mean.item() == value


def test_an_object_that_was_not_seen_has_0():
    memory = ObjectMemory(2, num_objects=3)
    remember(memory, [1], [[1.0, 2.0]])
    mean, seen = memory.recall(torch.tensor([0, 2]))
    assert not mean.any() and not seen.any()


def test_what_was_recalled_stays_as_it_was():
    """A weighter recalls before it takes in the batch, and uses it afterwards."""
    memory = ObjectMemory(1, num_objects=2)
    remember(memory, [0], [[3.0]])
    objects = torch.tensor([0, 1, 0])
    mean, seen = memory.recall(objects)
    remember(memory, [0, 1], [[5.0], [7.0]])
    assert mean.tolist() == [[3.0], [0.0], [3.0]] and seen.tolist() == [1.0, 0.0, 1.0]
    mean, seen = memory.recall(objects)
    assert mean.tolist() == [[4.0], [7.0], [4.0]] and seen.tolist() == [2.0, 1.0, 2.0]


def test_an_empty_batch_changes_nothing():
    memory = ObjectMemory(2, num_objects=2)
    remember(memory, [0], [[1.0, 2.0]])
    before = copy.deepcopy(memory.get_state())
    empty = torch.zeros(0, dtype=torch.long)
    memory.remember(empty, torch.zeros(0, 2))
    assert all(torch.equal(value, before[name]) for name, value in memory.get_state().items())
    mean, seen = memory.recall(empty)
    assert mean.shape == (0, 2) and seen.shape == (0,)


def test_no_graph_is_kept():
    memory = ObjectMemory(1, num_objects=1)
    statistics = torch.ones(2, 1, requires_grad=True)
    memory.remember(torch.tensor([0, 0]), statistics * 2)
    mean, seen = memory.recall(torch.tensor([0]))
    assert mean.item() == 2
    for tensor in (memory.mean, memory.seen, mean, seen):
        assert not tensor.requires_grad


def test_statistics_of_half_precision_are_kept_in_single():
    memory = ObjectMemory(1, num_objects=1)
    memory.remember(torch.tensor([0, 0]), torch.tensor([[60000.0], [60000.0]]).half())
    assert memory.mean.dtype == torch.float32
    assert memory.mean.item() == 60000  # the sum is infinite in float16


def test_to_allocate_is_to_forget():
    memory = ObjectMemory(2)
    assert memory.mean.shape == (0, 2)
    memory.allocate(3)
    remember(memory, [2], [[1.0, 2.0]])
    memory.allocate(4)
    assert memory.mean.tolist() == [[0.0, 0.0]] * 4 and memory.seen.tolist() == [0.0] * 4
    memory.double()  # they are still what moves with the module ...
    assert memory.mean.dtype == memory.seen.dtype == torch.float64
    assert not memory.state_dict()  # ... but no part of its state dict


def test_another_memory_goes_on_from_a_state():
    first, second, whole = (ObjectMemory(1, num_objects=2, window=3) for _ in range(3))
    batches = [([0], [[3.0]]), ([0, 1], [[5.0], [1.0]]), ([0], [[4.0]]), ([0], [[0.0]])]
    for memory, part in ((whole, batches), (first, batches[:2])):
        for batch in part:
            remember(memory, *batch)
    second.set_state(first.get_state())
    kept = copy.deepcopy(first.get_state())
    for batch in batches[2:]:
        remember(second, *batch)
    for name, value in whole.get_state().items():
        assert torch.equal(second.get_state()[name], value) and value.any()
        assert torch.equal(first.get_state()[name], kept[name])  # a copy was taken


@pytest.mark.parametrize(
    "shape, now", [((3, 2), "2 of 3"), ((2, 3), "3 of 2")], ids=["objects", "statistics"]
)
def test_a_state_of_something_else(shape, now):
    num_objects, num_statistics = shape
    memory = ObjectMemory(num_statistics, num_objects=num_objects)
    state = ObjectMemory(2, num_objects=2).get_state()
    with pytest.raises(UserError) as error:
        memory.set_state(state)
    assert str(error.value) == (
        f"the checkpoint remembers 2 statistics of 2 annotations, but now there are {now}: the "
        "training set or the sample weighter has changed. Resume with those that it was written "
        "with, or start a new run from its MODEL.WEIGHTS."
    )


def test_all_the_processes_there_are_can_be_one():
    objects, statistics = torch.tensor([3, 1]), torch.rand(2, 4)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        gathered = of_all_processes(objects, statistics)
    finally:
        dist.destroy_process_group()
    assert torch.equal(gathered[0], objects) and torch.equal(gathered[1], statistics)
