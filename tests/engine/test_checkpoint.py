"""Files that a user gives as weights: of every kind that Detectron2 knows, and none runs code."""

import os
import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from swn_d2.engine import SafeCheckpointer
from swn_d2.errors import UserError
from tests.pickles import Call
from tests.tiny import tiny_config, tiny_model

ARRAYS = {"conv1_w": np.arange(6, dtype=np.float32), "conv1_w_momentum": np.zeros(2)}
TENSORS = {"conv1.weight": torch.arange(6), "bn1.num_batches_tracked": torch.tensor(1)}


def write(path, data):
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(data, protocol=2))
    else:
        torch.save(data, path)
    return str(path)


def seen_by(checkpointer_class, path):
    """What a checkpointer makes of a file, with lists in place of its arrays and tensors."""
    seen = {}

    class Watched(checkpointer_class):
        def _load_model(self, checkpoint):
            weights = {key: value.tolist() for key, value in checkpoint["model"].items()}
            seen.update(checkpoint, model=weights)

    Watched(torch.nn.Linear(1, 1)).load(path)
    return seen


@pytest.mark.parametrize(
    "name, data",
    [
        ("zoo.pkl", {"model": ARRAYS, "__author__": "someone"}),
        ("zoo.pkl", {"model": ARRAYS, "__author__": "someone", "matching_heuristics": True}),
        ("detectron.pkl", {"blobs": ARRAYS, "cfg": "MODEL: {}"}),
        ("classifier.pkl", ARRAYS),
        ("pycls.pyth", {"model_state": TENSORS, "epoch": 1}),
        ("mine.pth", {"model": TENSORS, "iteration": 7}),
        ("state_dict.pth", TENSORS),
    ],
)
def test_what_detectron2_makes_of_a_file(tmp_path, name, data):
    path = write(tmp_path / name, data)
    expected = seen_by(DetectionCheckpointer, path)
    assert expected["model"] and seen_by(SafeCheckpointer, path) == expected


def test_weights_of_the_model_zoo_are_loaded(tmp_path):
    source = tiny_model(tiny_config(stock=True))
    weights = {key: value.numpy() for key, value in source.state_dict().items()}
    path = write(tmp_path / "zoo.pkl", {"model": weights, "__author__": "Detectron2 Model Zoo"})
    model = tiny_model(tiny_config(), seed=1)
    SafeCheckpointer(model).load_whole(path)
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize("name", ["some.pkl", "some.pyth", "some.pth"])
def test_no_kind_of_file_runs_code(tmp_path, monkeypatch, name):
    # With which torch.load runs it, unless told not to, as it always did before 2.6.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    made = tmp_path / "made"
    path = write(tmp_path / name, {"model": Call(os.mkdir, str(made))})
    (tmp_path / "last_checkpoint").write_text(name)
    for load in (
        lambda checkpointer: checkpointer.load_whole(path),
        lambda checkpointer: checkpointer.resume_or_load(path, resume=False),
        lambda checkpointer: checkpointer.resume_or_load("", resume=True),
    ):
        with pytest.raises(UserError, match=name):
            load(SafeCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)))
    assert not made.exists()


@pytest.mark.parametrize(
    "name, data",
    [
        ("some.pth", [1]),
        ("some.pth", {"model": [1]}),
        ("some.pth", {"model": {1: torch.ones(1)}}),
        ("some.pth", {"model": {"weight": "text"}}),
        ("some.pkl", {"model": 1, "__author__": 2}),
        ("some.pkl", {"blobs": None}),
        ("some.pkl", {1: np.ones(1)}),
        ("some.pkl", {"weight": "text"}),
        ("some.pyth", {"weight": torch.ones(1)}),
    ],
)
def test_what_is_no_state_dict_is_one_line(tmp_path, name, data):
    path = write(tmp_path / name, data)
    with pytest.raises(UserError, match=name) as error:
        SafeCheckpointer(torch.nn.Linear(1, 1)).load_whole(path)
    assert "\n" not in str(error.value)
