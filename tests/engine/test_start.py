"""How a run starts, and whose config.yaml stands in its folder."""

from argparse import Namespace

import pytest
import torch
from detectron2.engine import defaults

from swn_d2 import load_config
from swn_d2.engine import start, start_run, write_config
from swn_d2.errors import UserError
from tests.tiny import tiny_config


def test_the_start_does_what_detectron2s_does(monkeypatch, tmp_path):
    """Except that nothing is written before the weights are loaded."""
    monkeypatch.setattr(start, "setup_logger", lambda *args, **kwargs: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    precisions = []
    monkeypatch.setattr(defaults, "_set_float32_precision", precisions.append, raising=False)
    cfg = tiny_config("OUTPUT_DIR", str(tmp_path), "SEED", 3, "CUDNN_BENCHMARK", True)
    drawn = []
    for eval_only in (True, False):
        start_run(cfg, Namespace(eval_only=eval_only))
        drawn.append(torch.rand(3).tolist())
        assert torch.backends.cudnn.benchmark != eval_only
    assert drawn[0] == drawn[1] and not precisions
    cfg.FLOAT32_PRECISION = "high"
    start_run(cfg, Namespace(eval_only=True))
    assert precisions == ["high"]
    assert not list(tmp_path.iterdir())


@pytest.fixture
def written(tmp_path):
    """Writes the config of a run with so many iterations, and gives what the folder has then."""

    def write(iterations, *, eval_only):
        cfg = tiny_config("OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_ITER", iterations)
        write_config(cfg, eval_only=eval_only)
        return load_config(str(tmp_path / "run" / "config.yaml")).SOLVER.MAX_ITER

    return write


def test_a_training_replaces_what_was_there(written, tmp_path):
    assert written(10, eval_only=False) == 10
    (tmp_path / "run" / "metrics.json").write_text("{}\n")
    assert written(20, eval_only=False) == 20


def test_an_evaluation_replaces_that_of_an_evaluation_only(written, tmp_path):
    assert written(10, eval_only=True) == 10
    assert written(20, eval_only=True) == 20
    (tmp_path / "run" / "model_final.pth").write_bytes(b"weights")
    assert written(30, eval_only=True) == 20
    assert written(40, eval_only=False) == 40


def test_a_config_that_cannot_be_written(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="cannot write .*config.yaml"):
        write_config(tiny_config("OUTPUT_DIR", str(tmp_path / "run")), eval_only=False)
