"""torchvision's detectors with sample weights in two gloo processes on the CPU."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import tests.processes  # noqa: F401  whose server has torch imported
from swn_d2.recording import RECORDING, read_recording
from swn_d2.torchvision import join_adam, record_samples, weight_samples
from tests.weighting.conftest import randomize

from .tiny import DETECTORS, batch, empty_batch, tiny_model, tiny_swn, training_losses

NUM_ITERATIONS = 3


def build(detector, seed):
    """A detector whose weights are not 1."""
    model = tiny_model(detector, seed=seed)
    # Classes by object would be learned from the samples of both processes.
    swn = randomize(tiny_swn(detector, strength=0.5, cls_averaging="none"), seed=seed)
    return weight_samples(model, swn)


def inputs_of(rank, step):
    """The second process never sees an object."""
    return empty_batch(step) if rank else batch(step)


def gradients(model):
    """Name -> gradient, None where a parameter has none."""
    return {
        name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }


def train(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", world_size=2, rank=rank)
    try:
        for detector in DETECTORS:
            # Different seeds: DistributedDataParallel starts both from the first's parameters.
            model = build(detector, seed=rank)
            optimizer = join_adam(torch.optim.SGD(model.parameters(), 0.01), model)
            parallel = DistributedDataParallel(model)
            if rank == 0:
                record_samples(
                    model, f"{folder}/{detector}", num_iterations=NUM_ITERATIONS, period=1
                )
            for step in range(NUM_ITERATIONS):
                losses = training_losses(parallel, inputs_of(rank, step), seed=step)
                optimizer.zero_grad()
                sum(losses.values()).backward()
                if step == 0:
                    first = gradients(model)
                optimizer.step()
            state = {"first": first, "last": gradients(model), "end": model.state_dict()}
            torch.save(state, f"{folder}/{detector}.{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two processes")
    mp.start_processes(train, args=(folder,), nprocs=2, start_method="forkserver")
    return folder


@pytest.fixture(params=DETECTORS)
def both(request, folder):
    return request.param, [torch.load(folder / f"{request.param}.{rank}.pt") for rank in (0, 1)]


def test_both_processes_have_the_mean_of_their_gradients(both):
    detector, states = both
    own = []
    for rank in (0, 1):
        model = build(detector, seed=0)
        sum(training_losses(model, inputs_of(rank, 0), seed=0).values()).backward()
        own.append(gradients(model))
    for state in states:
        for name, gradient in state["first"].items():
            expected = (own[0][name] + own[1][name]) / 2
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
    assert any(g.any() for name, g in states[0]["first"].items() if "sample_weighter" in name)


def test_both_processes_end_with_the_same_parameters(both):
    """Also of the weighter, each of which gets a gradient in every iteration."""
    _, (first, second) = both
    for name, gradient in first["last"].items():
        assert torch.equal(gradient, second["last"][name]), name
        assert torch.equal(first["end"][name], second["end"][name]), name


def test_one_process_records(folder):
    for detector in DETECTORS:
        records = list(read_recording(folder / detector / RECORDING))
        assert [record.iteration for record in records] == list(range(NUM_ITERATIONS))
        assert all(record.num_positives for record in records)
