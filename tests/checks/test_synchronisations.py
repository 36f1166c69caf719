"""What makes a GPU wait, as it is counted without one."""

import pytest
import torch

from swn_d2.checks.synchronisations import waits

values = torch.arange(6.0, requires_grad=True)
mask = values.detach() > 2

WAITING = {
    "item": lambda: values.sum().item(),
    "bool": lambda: bool(mask.any()),
    "tolist": lambda: values.tolist(),
    "cpu": lambda: values.cpu(),
    "numpy": lambda: mask.numpy(),
    "nonzero": lambda: mask.nonzero(),
    "masked_select": lambda: values.masked_select(mask),
    "read by a mask": lambda: values[mask],
    "write by a mask": lambda: values.detach().clone().__setitem__(mask, values[:3].detach()),
    "unique": lambda: values.detach().unique(),
    "where": lambda: torch.where(mask),
}
GOING_ON = {
    "arithmetic": lambda: (values * mask).sum() / mask.sum().clamp(min=1),
    "read by numbers": lambda: values[torch.tensor([1, 2])],
    "write by numbers": lambda: (
        values.detach().clone().index_copy(0, torch.tensor([1]), values[:1])
    ),
    "choice": lambda: torch.where(mask, values, 0.0),
}


@pytest.mark.parametrize("does", WAITING.values(), ids=WAITING)
def test_waiting_is_counted_with_its_line(does):
    with waits("cpu") as places:
        does()
    assert places.total() >= 1
    assert all("checks/test_synchronisations.py:" in place for place in places), places


@pytest.mark.parametrize("does", GOING_ON.values(), ids=GOING_ON)
def test_nothing_else_is(does):
    with waits("cpu") as places:
        does()
    assert not places


def test_in_the_backward_pass_too():
    loss = values[mask].sum()
    with waits("cpu") as places:
        loss.backward()
    assert places


def test_nothing_is_counted_afterwards():
    with waits("cpu") as places:
        pass
    values.tolist()
    assert not places
