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
        start_run(cfg, Namespace(eval_only=eval_only, resume=False))
        drawn.append(torch.rand(3).tolist())
        assert torch.backends.cudnn.benchmark != eval_only
    assert drawn[0] == drawn[1] and not precisions
    cfg.FLOAT32_PRECISION = "high"
    start_run(cfg, Namespace(eval_only=True, resume=False))
    assert precisions == ["high"]
    assert not list(tmp_path.iterdir())


def test_a_seed_is_drawn_once_for_a_run(monkeypatch, tmp_path):
    monkeypatch.setattr(start, "setup_logger", lambda *args, **kwargs: None)

    def seed_of_start(*opts, resume=False, eval_only=False):
        cfg = tiny_config("OUTPUT_DIR", str(tmp_path), *opts)
        cfg.freeze()
        start_run(cfg, Namespace(eval_only=eval_only, resume=resume))
        return cfg

    first = seed_of_start()
    assert first.SEED >= 0
    write_config(first, eval_only=False)
    assert seed_of_start(resume=True).SEED == first.SEED
    assert seed_of_start().SEED != first.SEED  # another run, if by a chance of 1 in 2 billions
    assert seed_of_start("SEED", 3, resume=True).SEED == 3
    assert seed_of_start(eval_only=True).SEED == -1
    for content in ("", "- 1", "SEED: -1", "SEED: [", "SEED: x"):
        (tmp_path / "config.yaml").write_text(content)
        assert seed_of_start(resume=True).SEED >= 0


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
