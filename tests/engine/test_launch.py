"""Real torch.distributed: two gloo processes on the CPU."""

import os
import signal

import pytest
import torch
import torch.distributed as dist
from detectron2.engine import create_ddp_model
from detectron2.utils import comm

from swn_d2.engine import build_joint_optimizer, launch
from swn_d2.errors import UserError, user_errors_exit
from tests.tiny import (
    DETECTORS,
    READINGS,
    batch,
    empty_batch,
    tiny_config,
    tiny_model,
    training_losses,
)

PAIRS = [("faster_rcnn", reading) for reading in READINGS]
PAIRS += [
    (detector, reading)
    for detector in DETECTORS
    for reading in ("relative", "authors")
    if detector != "faster_rcnn"
]


def train_in_two_processes(folder):
    """Rank 1 never sees a positive sample. Both save their parameters."""
    assert (comm.get_world_size(), dist.get_backend()) == (2, "gloo")
    assert comm.get_local_rank() == comm.get_rank()
    for detector, reading in PAIRS:
        cfg = tiny_config(detector=detector, reading=reading)
        # Different seeds: DistributedDataParallel starts all from rank 0's parameters.
        model = create_ddp_model(tiny_model(cfg, seed=comm.get_rank()), device_ids=None)
        optimizer = build_joint_optimizer(cfg, model)
        for step in range(4):
            inputs = empty_batch(seed=step) if comm.get_rank() else batch(seed=step)
            losses = training_losses(model, inputs, seed=step, start_iter=19)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        # BatchNorm's running statistics are each process's own, as in Detectron2's trainer.
        parameters = {name: p.detach() for name, p in model.module.named_parameters()}
        torch.save(parameters, f"{folder}/{detector} {reading} {comm.get_rank()}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of what two processes have saved: one job for all pairs, since in each job both
    processes import everything anew."""
    folder = tmp_path_factory.mktemp("trained")
    launch(train_in_two_processes, 2, args=(str(folder),), device="cpu")
    return folder


@pytest.mark.parametrize("detector, reading", PAIRS)
def test_two_processes_stay_in_step(trained, detector, reading):
    first, second = (torch.load(trained / f"{detector} {reading} {rank}.pt") for rank in (0, 1))
    model = tiny_model(tiny_config(detector=detector, reading=reading), seed=0)
    start = dict(model.named_parameters())
    assert first.keys() == second.keys() == start.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    head = "head" if detector == "retinanet" else "box_predictor"
    for part in ("sample_weighter", head, "backbone"):
        assert any(part in n and not torch.equal(v, start[n]) for n, v in first.items()), part


def fail_as_a_user_error():
    with user_errors_exit():
        raise UserError("the file x.json is missing")


def test_a_user_error_in_a_process_ends_the_job_without_a_traceback(capfd):
    with pytest.raises(SystemExit) as exit_info:
        launch(fail_as_a_user_error, 2, device="cpu")
    assert exit_info.value.code == 1
    written = capfd.readouterr().err
    assert "error: the file x.json is missing" in written
    assert "Traceback" not in written


def run_out_of_memory():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_named():
    with pytest.raises(SystemExit, match="ended by SIGKILL.*memory"):
        launch(run_out_of_memory, 2, device="cpu")


def test_one_process_is_this_one():
    seen = []
    launch(seen.append, 1, args=("here",))
    assert seen == ["here"]
