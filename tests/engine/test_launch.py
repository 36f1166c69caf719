"""Real torch.distributed: two gloo processes on the CPU."""

import os
import signal

import pytest
import torch
import torch.distributed as dist
from detectron2.engine import create_ddp_model
from detectron2.utils import comm

from swn_d2.engine import build_joint_optimizer, launch
from swn_d2.engine.cluster import Place
from swn_d2.errors import UserError, user_errors_exit
from swn_d2.weighting import SWN, SampleStatistics
from swn_d2.weighting.memory import ObjectMemory
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
    for reading in ("by object", "authors")
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


#: Batch after batch what each process has of it: the objects and the statistic of its samples.
PARTS = [
    [([3, 1, 3], [1.0, 5.0, 2.0]), ([3, 0], [6.0, 7.0])],
    [([1], [4.0]), ([], [])],
    [([], []), ([0, 3, 3, 2], [1.0, 9.0, 3.0, 8.0])],
    [([], []), ([], [])],
    [([2, 3], [2.0, 8.0]), ([3], [2.0])],
]


def remember_all(batches):
    """What a memory knows after batches of (objects, statistics), and whom it was told of."""
    memory = ObjectMemory(1, num_objects=5, window=2)
    told = [
        memory.remember(torch.tensor(objects).long(), torch.tensor(statistics)[:, None])
        for objects, statistics in batches
    ]
    return {**memory.get_state(), "objects": torch.cat(told)}


def remember_in_two_processes(folder):
    """Both save what they know in the end."""
    state = remember_all([of_processes[comm.get_rank()] for of_processes in PARTS])
    torch.save(state, f"{folder}/memory {comm.get_rank()}.pt")


def weigh_all(batches):
    """All that an SWN of classes holds after it was trained on batches of (objects, losses)."""
    torch.manual_seed(0)
    weighter = SWN(tasks=["cls"])
    adam = torch.optim.Adam(weighter.parameters(), lr=0.01)
    for objects, losses in batches:
        losses = torch.tensor(losses)
        objects, number = torch.tensor(objects).long(), len(objects)
        nothing = torch.zeros(number)
        details = {
            "object": lambda objects=objects: objects,
            "gt_class": lambda number=number: torch.zeros(number, dtype=torch.long),
            "label_loss": lambda losses=losses: losses,
            "label_losses": lambda losses=losses: torch.stack([losses, 9 - losses, 9 - losses], 1),
        }
        statistics = SampleStatistics(
            cls_loss=losses + 1,
            box_loss=torch.zeros(number, 4),
            iou=nothing,
            prob=nothing,
            is_foreground=nothing == 0,
            normalizers={},
            details=details,
        )
        # Nothing is averaged over processes: the objective is the same in all of them.
        objective = weighter(statistics).regularizers["loss_swn_cls"]
        adam.zero_grad()
        objective.backward()
        adam.step()
    return weighter.state_dict()


def weigh_in_two_processes(folder):
    state = weigh_all([of_processes[comm.get_rank()] for of_processes in PARTS])
    torch.save(state, f"{folder}/weighter {comm.get_rank()}.pt")


def work_in_two_processes(folder):
    train_in_two_processes(folder)
    remember_in_two_processes(folder)
    weigh_in_two_processes(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, forked):
    """The folder of what two processes have saved."""
    folder = tmp_path_factory.mktemp("trained")
    launch(work_in_two_processes, 2, args=(str(folder),), device="cpu")
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


def test_two_processes_remember_the_same_as_one(trained):
    first, second = (torch.load(trained / f"memory {rank}.pt") for rank in (0, 1))
    alone = remember_all([(a + b, x + y) for (a, x), (b, y) in PARTS])
    for name, value in alone.items():
        assert torch.equal(first[name], value) and torch.equal(second[name], value)
    # By hand, for the objects 0 and 4, which was never there.
    assert first["seen"].tolist() == [2.0, 2.0, 2.0, 3.0, 0.0]
    assert first["mean"][[0, 4]].tolist() == [[4.0], [0.0]]


def test_two_processes_learn_from_decoys_as_one(trained):
    first, second = (torch.load(trained / f"weighter {rank}.pt") for rank in (0, 1))
    # The objects of another process are others.
    alone = weigh_all([(a + [o + 10 for o in b], x + y) for (a, x), (b, y) in PARTS])
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, atol=1e-5), name
    # Losses of the annotated classes, means over the regions of an object in a process.
    recent = first["rightness.recent"][-14:, 0].tolist()
    assert recent == pytest.approx([-1, 1.5, 5, 1.5, 6, 7, 4, 1, 6, 6, 8, 2, 8, 2])
    assert (first["rightness.unlikely"] > 0).all()


def fail_as_a_user_error(log):
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    with user_errors_exit():
        raise UserError("the file x.json is missing")


def test_a_user_error_in_a_process_ends_the_job_without_a_traceback(tmp_path, forked):
    log = tmp_path / "log"
    with pytest.raises(SystemExit) as exit_info:
        launch(fail_as_a_user_error, 2, args=(str(log),), device="cpu")
    assert exit_info.value.code == 1
    written = log.read_text()
    assert "error: the file x.json is missing" in written
    assert "Traceback" not in written


def run_out_of_memory():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_named(forked):
    with pytest.raises(SystemExit, match="ended by SIGKILL.*memory"):
        launch(run_out_of_memory, 2, device="cpu")


def test_one_process_is_this_one():
    seen = []
    launch(seen.append, 1, args=("here",))
    assert seen == ["here"]


def test_a_port_that_is_none(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "x")
    message = "meeting the other processes at 127.0.0.1, MASTER_PORT x failed: ValueError"
    with pytest.raises(SystemExit, match=message):
        launch(print, 1, device="cpu", place=Place(0, 0, 2, 2))
