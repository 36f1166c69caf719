"""The batches of a training: those of Detectron2's loader, from any one on."""

import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm

from swn_d2.data import TrainStream
from swn_d2.errors import UserError
from tests import processes

SEED = 7
#: Wide and high ones, and one square.
SIZES = [(2, 1), (1, 2), (2, 1), (3, 1), (1, 1), (1, 3), (2, 1)]
IMAGES = [
    {
        "image_id": i,
        "width": width,
        "height": height,
        "annotations": [{"category_id": int(i == 3)}],
    }
    for i, (width, height) in enumerate(SIZES)
]


def config(*opts):
    cfg = get_cfg()
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2, "SEED", SEED])
    cfg.merge_from_list(list(opts))
    return cfg


def drawing(record):
    """An augmentation of every kind of random number."""
    drawn = (random.random(), np.random.rand(), torch.rand(()).item())
    return {"image_id": record["image_id"], "drawn": drawn}


def first_batches(stream, count=12):
    return [batch for _, batch in zip(range(count), stream, strict=False)]


def ids_of(batches):
    return [[image["image_id"] for image in batch] for batch in batches]


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
@pytest.mark.parametrize("has_groups", [True, False])
@pytest.mark.parametrize("rank, world_size", [(0, 1), (1, 2)])
def test_the_batches_are_detectron2s(monkeypatch, sampler, has_groups, rank, world_size):
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: world_size)
    cfg = config("DATALOADER.ASPECT_RATIO_GROUPING", has_groups)
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.9
    cfg.SOLVER.IMS_PER_BATCH = 2 * world_size
    if sampler == "TrainingSampler":
        theirs = TrainingSampler(len(IMAGES), seed=SEED)
    else:
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(IMAGES, 0.9)
        assert factors.max() > 2 > factors.min()
        theirs = RepeatFactorTrainingSampler(factors, seed=SEED)
    loader = build_detection_train_loader(cfg, mapper=lambda x: x, dataset=IMAGES, sampler=theirs)
    expected = ids_of(first_batches(loader))
    stream = TrainStream(cfg, dataset=IMAGES, mapper=drawing)
    assert ids_of(first_batches(stream)) == expected
    is_wide = [[SIZES[i][0] > SIZES[i][1] for i in batch] for batch in expected]
    assert all(len(set(batch)) == 1 for batch in is_wide) == has_groups


@pytest.mark.parametrize("num_workers", [0, 2])
def test_any_batch_can_be_the_first(num_workers):
    loaded = []

    def note(record):
        loaded.append(record["image_id"])
        return drawing(record)

    whole = first_batches(TrainStream(config(), dataset=IMAGES, mapper=drawing))
    draws = [image["drawn"] for batch in whole for image in batch]
    assert len(set(draws)) == len(draws)  # an image is another one every time
    stream = TrainStream(
        config("DATALOADER.NUM_WORKERS", num_workers, "SEED", -1), dataset=IMAGES, mapper=note
    )
    for start in (5, 0, 11):
        iterator = iter(stream)  # which Detectron2's trainer asks for before it knows
        stream.begin_at(start, seed=SEED)
        loaded.clear()
        assert first_batches(iterator, 12 - start) == whole[start:]
        if not num_workers:
            assert loaded[: 2 * (12 - start)] == sum(ids_of(whole[start:]), [])
    stream.begin_at(0, seed=SEED + 1)
    assert ids_of(first_batches(stream)) != ids_of(whole)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_draws_none_of_the_trainings_numbers(num_workers):
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    cfg = config("DATALOADER.NUM_WORKERS", num_workers)
    first_batches(TrainStream(cfg, dataset=IMAGES, mapper=drawing))
    assert draw() == expected


def test_without_a_seed_each_iteration_has_its_own():
    stream = TrainStream(config("SEED", -1), dataset=IMAGES, mapper=drawing)
    assert ids_of(first_batches(stream)) != ids_of(first_batches(stream))


def test_a_sampler_that_cannot_be_resumed():
    with pytest.raises(UserError, match="SAMPLER_TRAIN is 'Other'.*TrainingSampler"):
        TrainStream(config("DATALOADER.SAMPLER_TRAIN", "Other"), dataset=IMAGES, mapper=drawing)


LOADS = """
import multiprocessing, time
from torch.utils.data import DataLoader
from swn_d2.data import end_with_parent

if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    images = iter(DataLoader(range(9), num_workers=1, worker_init_fn=end_with_parent))
    next(images)
    print(images._workers[0].pid, flush=True)
    time.sleep(100)
"""


def test_what_loads_ends_with_a_training_that_is_killed(tmp_path):
    script, out = tmp_path / "loads.py", tmp_path / "out"
    script.write_text(LOADS)
    out.touch()
    process = processes.start(script, stdout=out, stderr=tmp_path / "err")
    wait_until(lambda: out.read_text().endswith("\n") or not process.is_alive())
    worker = int(out.read_text())
    assert is_running(worker)
    process.kill()
    wait_until(lambda: not is_running(worker))


def wait_until(is_true):
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(number):
    try:  # empty for a process that nobody has asked how it ended
        return bool(Path(f"/proc/{number}/cmdline").read_bytes())
    except OSError:
        return False


def test_records_without_a_shape():
    records = [IMAGES[0], {"image_id": 9, "file_name": "9.png", "annotations": []}]
    with pytest.raises(UserError, match="1 of the 2 records .* no width .* 9.png"):
        TrainStream(config(), dataset=records, mapper=drawing)
    ungrouped = config("DATALOADER.ASPECT_RATIO_GROUPING", False)
    assert TrainStream(ungrouped, dataset=records, mapper=drawing).num_images == 2
