"""The checkpoint stripper: what is left is a model of stock Detectron2."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from swn_d2 import UserError, load_config
from swn_d2.engine import SafeCheckpointer, build_joint_optimizer, is_sample_weighter_key
from tests import processes

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "Quickstart"
sys.path.insert(0, str(ROOT / "tools"))
stripper = importlib.import_module("strip_checkpoint")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint as a training with SWN leaves it: the model, two optimisers, the iteration."""
    folder = tmp_path_factory.mktemp("run")
    cfg = load_config(str(QUICKSTART / "faster_rcnn_tiny_FPN_swn.yaml"), ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    optimizer = build_joint_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    SafeCheckpointer(model, str(folder), optimizer=optimizer).save("model_final", iteration=599)
    return folder / "model_final.pth"


def test_stock_detectron2_loads_all_of_it(checkpoint, tmp_path):
    destination = tmp_path / "new" / "stock.pth"
    result = processes.run(ROOT / "tools" / "strip_checkpoint.py", checkpoint, destination)
    assert result.returncode == 0, result.stderr

    trained = torch.load(checkpoint)["model"]
    removed = [key for key in trained if is_sample_weighter_key(key)]
    assert removed and f"left out {len(removed)} of" in result.stdout
    assert list(torch.load(destination)) == ["model"]

    # Without swn_d2's keys: the baseline's config is one of stock Detectron2.
    cfg = get_cfg()
    cfg.merge_from_file(str(QUICKSTART / "faster_rcnn_tiny_FPN.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    stock = build_model(cfg)
    stock.load_state_dict(torch.load(destination)["model"], strict=True)
    for tensor in stock.state_dict().values():
        tensor.zero_()
    DetectionCheckpointer(stock).load(str(destination))
    for key, tensor in stock.state_dict().items():
        assert torch.equal(tensor, trained[key]), key


def test_a_file_is_never_overwritten(checkpoint):
    before = checkpoint.read_bytes()
    with pytest.raises(UserError, match="model_final.pth exists already"):
        stripper.strip(str(checkpoint), str(checkpoint))
    assert checkpoint.read_bytes() == before


def test_what_cannot_be_written_leaves_nothing(checkpoint, tmp_path):
    with pytest.raises(UserError, match="must end with .pth"):
        stripper.strip(str(checkpoint), str(tmp_path / "stock.pkl"))
    # A folder in the place of the partial file.
    (tmp_path / "stock.pth.partial").mkdir()
    with pytest.raises(UserError, match="cannot write .*stock.pth"):
        stripper.strip(str(checkpoint), str(tmp_path / "stock.pth"))
    assert [path.name for path in tmp_path.iterdir()] == ["stock.pth.partial"]


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot read .*: No such file or directory"),
        (b"", "not a PyTorch checkpoint"),
        (b"no checkpoint", "not a PyTorch checkpoint"),
        ([1, 2], "holds a list"),
        ({"weight": torch.zeros(1)}, "has no 'model'"),
        ({"model": torch.zeros(1)}, "has no 'model'"),
    ],
    ids=["missing", "empty", "text", "list", "state dict", "no dict"],
)
def test_other_files_are_refused(tmp_path, content, message):
    source = tmp_path / "source.pth"
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        torch.save(content, source)
    with pytest.raises(UserError, match=message):
        stripper.strip(str(source), str(tmp_path / "stock.pth"))
    assert not (tmp_path / "stock.pth").exists()


def test_a_damaged_checkpoint_is_refused(checkpoint, tmp_path):
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(checkpoint.read_bytes()[:-1000])
    with pytest.raises(UserError, match="damaged.pth is not a PyTorch checkpoint, is damaged"):
        stripper.strip(str(damaged), str(tmp_path / "stock.pth"))
