"""A run that is stopped and resumed ends where one ends that is left alone, to the last bit."""

import numpy as np
import pytest
import torch

from swn_d2.engine import SWNTrainer
from swn_d2.recording import RECORDING, SNAPSHOTS, read_recording
from tests.tiny import tiny_config

ITERATIONS, STOP = 6, 4

CASES = {
    "faster_rcnn": [],
    "mask_rcnn": ["INPUT.MASK_FORMAT", "bitmask"],
    "retinanet": [],
    "stock retinanet": ["MODEL.META_ARCHITECTURE", "RetinaNet", "RECORDING.PERIOD", 0],
    "classes by object": [
        *("MODEL.SWN.TASKS", ["cls", "box"], "MODEL.SWN.CLS_AVERAGING", "per_object"),
    ],
    "repeated": ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"],
    "precise": [
        *("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2, "TEST.EVAL_PERIOD", 2)
    ],
}


@pytest.fixture
def train(training_opts, tmp_path):
    """Trains in a folder, and gives the trainer."""

    def run(name, *opts, case="faster_rcnn", until=None, resume=False, watch=None):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        cfg = tiny_config(
            *training_opts,
            *("OUTPUT_DIR", str(folder), "DATASETS.TEST", ()),
            *("SOLVER.MAX_ITER", ITERATIONS, "MODEL.SWN.EASE_IN", [0.2, 0.9]),
            *("INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.9, 0.9]),
            *("INPUT.MIN_SIZE_TRAIN", (56, 64), "RECORDING.PERIOD", 1),
            *("MODEL.RETINANET.NUM_CLASSES", 10, "SEED", 1),
            *CASES[case],
            *opts,
            detector=next((d for d in ("mask_rcnn", "retinanet") if d in case), "faster_rcnn"),
        )
        torch.manual_seed(0)  # of the first weights alone
        trainer = SWNTrainer(cfg)
        trainer.resume_or_load(resume=resume)
        # Whatever else has drawn before.
        np.random.seed(None), torch.seed()
        trainer.max_iter = until or trainer.max_iter
        if watch is not None:
            trainer.model.register_forward_pre_hook(watch)
        trainer.train()
        return trainer

    return run


def assert_same(first, second):
    """What two runs end with."""
    expected, actual = first.model.state_dict(), second.model.state_dict()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name
    states = [trainer._trainer.optimizer.state_dict() for trainer in (first, second)]
    for member in states[0]:
        expected, actual = (state[member]["state"] for state in states)
        for key, of_parameter in expected.items():
            for name, value in of_parameter.items():
                assert torch.equal(torch.as_tensor(actual[key][name]), torch.as_tensor(value)), name


def test_another_training_begins_without_what_was_seen_of_objects(train, tmp_path):
    """Its weights may be of other data."""

    def seen(model):
        return model.roi_heads.sample_weighter.rightness.recent

    first = train("first", case="classes by object")
    assert (seen(first.model)[-1] >= 0).all()
    at_start = []
    weights = ("MODEL.WEIGHTS", str(tmp_path / "first" / "model_final.pth"))
    watch = lambda model, _: at_start.append(seen(model).clone())  # noqa: E731
    train("second", *weights, case="classes by object", until=1, watch=watch)
    assert (at_start[0] == -1).all()


@pytest.mark.parametrize("case", CASES)
def test_resumed_in_the_middle(train, tmp_path, case):
    whole = train("whole", case=case)
    train("halves", case=case, until=STOP)
    # The other way of loading, too: it makes no difference.
    halves = train("halves", "DATALOADER.NUM_WORKERS", 2, case=case, resume=True)
    assert halves.start_iter == STOP
    assert_same(whole, halves)
    if "stock" in case:
        return
    expected, actual = (read_recording(tmp_path / n / RECORDING) for n in ("whole", "halves"))
    assert len(expected) == ITERATIONS
    for first, second in zip(expected, actual, strict=True):
        assert str(first) == str(second)
    snapshots = sorted(file.name for file in (tmp_path / "whole" / SNAPSHOTS).iterdir())
    assert snapshots
    for name in snapshots:
        files = (torch.load(tmp_path / n / SNAPSHOTS / name) for n in ("whole", "halves"))
        assert str(next(files)) == str(next(files))


def test_every_iteration_draws_anew(train):
    """The comparison above would also hold if nothing were ever drawn."""
    seen = []

    def note(module, inputs):
        images = tuple(image["image"].sum().item() for image in inputs[0])
        seen.append((images, torch.rand(()).item()))

    for seed in (1, 2):
        train(f"seed {seed}", "SEED", seed, watch=note)
    images, drawn = map(set, zip(*seen, strict=True))
    assert len(images) == len(drawn) == 2 * ITERATIONS


def test_a_seed_that_was_drawn_is_that_of_the_resumed_run(train, caplog):
    whole = train("whole", "SEED", -1)
    first = train("halves", "SEED", -1, until=STOP)  # which has drawn the same one from torch's
    checkpoint = torch.load(first.checkpointer.get_checkpoint_file(), weights_only=True)
    assert checkpoint["trainer"]["seed"] >= 0
    assert_same(whole, train("halves", "SEED", 5, resume=True))
    assert "not 5" in caplog.text
