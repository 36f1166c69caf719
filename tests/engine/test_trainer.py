"""Training, checkpoints and resuming, with real files and real data."""

import itertools
import json
import os
import re
import resource
import signal
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog

from swn_d2 import load_config
from swn_d2.engine import SafeCheckpointer, SWNTrainer
from swn_d2.errors import UserError
from tests.tiny import NUM_CLASSES, batch, tiny_config, tiny_model


class GivenBatches(SWNTrainer):
    """Iteration i always trains on batch i, with the sampling of regions fixed by i."""

    @classmethod
    def build_train_loader(cls, cfg):
        return [None]

    def run_step(self):
        torch.manual_seed(self.iter)
        data = batch(seed=self.iter)
        self._trainer._data_loader_iter_obj = self._trainer.__dict__["_data_loader_iter"] = (
            itertools.repeat(data)
        )
        super().run_step()


def given_batches_config(folder, *opts):
    os.makedirs(folder, exist_ok=True)
    return tiny_config(
        *("OUTPUT_DIR", str(folder)),
        *("SOLVER.MAX_ITER", 8),
        *("SOLVER.STEPS", (3, 6)),
        *("SOLVER.WARMUP_ITERS", 2),
        *("SOLVER.CHECKPOINT_PERIOD", 4),
        *("MODEL.SWN.EASE_IN", [0.2, 0.9]),
        *("DATASETS.TEST", ()),
        *opts,
    )


def train(cfg, *, resume, until=None):
    torch.manual_seed(0)
    trainer = GivenBatches(cfg)
    trainer.resume_or_load(resume=resume)
    if until is not None:
        trainer.max_iter = until
    trainer.train()
    return trainer


def test_n_and_n_resumed_steps_are_2n_steps(tmp_path):
    whole = train(given_batches_config(tmp_path / "whole"), resume=False)
    first = train(given_batches_config(tmp_path / "halves"), resume=False, until=4)
    assert first.iter == 4
    second = train(given_batches_config(tmp_path / "halves"), resume=True)
    assert second.start_iter == 4
    expected, actual = whole._trainer.model.state_dict(), second._trainer.model.state_dict()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name
    # It would also be so if the weighter's state had never mattered:
    assert not torch.equal(
        first._trainer.model.state_dict()["roi_heads.sample_weighter.network.heads.box.2.bias"],
        expected["roi_heads.sample_weighter.network.heads.box.2.bias"],
    )
    for optimizer in ("detector", "weighter"):
        states = [
            t._trainer.optimizer.members[optimizer].state_dict()["state"] for t in (whole, second)
        ]
        assert states[0].keys() == states[1].keys() and states[0]


def test_train_writes_what_a_user_looks_for(training_opts, tmp_path):
    opts = [*training_opts, "SOLVER.MAX_ITER", 20, "TEST.EVAL_PERIOD", 20]
    cfg = tiny_config(*opts, reading="authors")
    trainer = SWNTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    files = set(os.listdir(cfg.OUTPUT_DIR))
    assert {"metrics.json", "model_final.pth", "last_checkpoint", "inference"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert not any("partial" in name or name.endswith(".new") for name in files)
    with open(os.path.join(cfg.OUTPUT_DIR, "metrics.json")) as f:
        metrics = {}
        for line in f:
            metrics.update(json.loads(line))
    assert {
        *("loss_cls", "loss_box_reg", "loss_swn_cls", "loss_swn_box", "bbox/AP"),
        *("weights/cls_fg_mean", "weights/cls_bg_std", "weights/box_mean", "weights/box_std"),
        *("swn/cls_fg_mean", "swn/box_std"),
    } <= set(metrics)


def test_in_a_script_it_makes_its_folder_and_writes_over_no_run(training_opts, scenes):
    cfg = tiny_config(*training_opts, "SOLVER.MAX_ITER", 2, "DATASETS.TEST", ())
    folder = Path(cfg.OUTPUT_DIR)
    assert not folder.exists()
    SWNTrainer(cfg).train()
    config = (folder / "config.yaml").read_bytes()
    assert load_config(str(folder / "config.yaml")).SOLVER.MAX_ITER == 2
    known = json.loads((folder / "registered.json").read_text())["data_sets"]["few_digits_train"]
    assert known["paths"]["images"]["absolute"] == str(scenes / "train")
    assert known["classes"] == list("0123456789")

    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    trainer = SWNTrainer(tiny_config(*training_opts, "SOLVER.MAX_ITER", 4, "DATASETS.TEST", ()))
    for _ in range(2):
        with pytest.raises(UserError, match=r"already holds a run .*resume_or_load\(resume=True\)"):
            trainer.train()
        assert {file: file.read_bytes() for file in before} == before
        trainer.resume_or_load(resume=False)  # which does not make it right
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert trainer.start_iter == 2 and (folder / "config.yaml").read_bytes() != config

    (folder.parent / "file").touch()
    with pytest.raises(UserError, match="cannot make OUTPUT_DIR .*file/run"):
        SWNTrainer(tiny_config(*training_opts, "OUTPUT_DIR", str(folder.parent / "file" / "run")))


def test_resumed_with_other_rates(tmp_path, caplog):
    first = train(given_batches_config(tmp_path), resume=False, until=4)
    before = first._trainer.optimizer.settings()
    opts = ["SOLVER.BASE_LR", 1e-5, "SOLVER.SWN.BASE_LR", 0.05, "SOLVER.WEIGHT_DECAY", 0.0]
    with caplog.at_level("INFO", "swn_d2"):
        second = train(given_batches_config(tmp_path, *opts), resume=True)
    (told,) = re.findall("From here on the run has another (.*)", caplog.text)
    assert set(told.rstrip(".").split(", ")) == {"lr", "weight_decay"}
    expected = train(given_batches_config(tmp_path / "anew", *opts), resume=False)
    settings = [t._trainer.optimizer.settings() for t in (second, expected)]
    assert settings[0] == settings[1] != before
    # The schedule goes on from them.
    rates = [[g["lr"] for g in t._trainer.optimizer.param_groups] for t in (second, expected)]
    assert rates[0] == pytest.approx(rates[1])
    # And those of the first iteration after it, too.
    third = GivenBatches(given_batches_config(tmp_path, *opts, "SOLVER.BASE_LR", 2e-5))
    third.resume_or_load(resume=True)
    rates = [t._trainer.optimizer.param_groups[0]["lr"] for t in (second, third)]
    assert rates[1] == pytest.approx(2 * rates[0])
    caplog.clear()
    with caplog.at_level("INFO", "swn_d2"):
        GivenBatches(given_batches_config(tmp_path, *opts)).resume_or_load(resume=True)
    assert "From here on" not in caplog.text


def test_a_length_that_the_run_has_passed(tmp_path):
    train(given_batches_config(tmp_path), resume=False, until=4)
    config = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(UserError, match="has done 4 iterations already; SOLVER.MAX_ITER, 3,"):
        opts = ["SOLVER.MAX_ITER", 3, "SOLVER.STEPS", (2,)]
        train(given_batches_config(tmp_path, *opts), resume=True)
    assert (tmp_path / "config.yaml").read_bytes() == config


def test_the_seed_that_was_drawn_is_in_the_config(tmp_path):
    trainer = train(given_batches_config(tmp_path), resume=False, until=1)
    assert trainer.cfg.SEED < 0 <= trainer._seed
    assert load_config(str(tmp_path / "config.yaml")).SEED == trainer._seed
    train(given_batches_config(tmp_path, "SEED", 7, "SOLVER.MAX_ITER", 2), resume=True)
    assert load_config(str(tmp_path / "config.yaml")).SEED == trainer._seed


def test_the_learning_rate_that_is_reported_is_the_detectors(training_opts):
    cfg = tiny_config(*training_opts, "SOLVER.BASE_LR", 0.02, "SOLVER.WARMUP_ITERS", 0)
    trainer = SWNTrainer(cfg)
    trainer.train()
    # After the step at iteration 5.
    assert trainer.storage.latest()["lr"][0] == pytest.approx(0.002)


def test_evaluators(training_opts, tmp_path):
    cfg = tiny_config(*training_opts)
    assert type(SWNTrainer.build_evaluator(cfg, "few_digits_val")).__name__ == "COCOEvaluator"
    MetadataCatalog.get("of_a_new_type").evaluator_type = "new_type"
    with pytest.raises(UserError, match="of_a_new_type.*new_type"):
        SWNTrainer.build_evaluator(cfg, "of_a_new_type")


def test_the_state_of_the_grad_scaler_is_kept(tmp_path):
    cfg = given_batches_config(tmp_path, "SOLVER.AMP.ENABLED", True)
    trainer = GivenBatches(cfg)
    trainer.iter = trainer._trainer.iter = 3
    trainer._trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer._trainer.grad_scaler.scale(torch.ones(()))  # it is made at the first use
    trainer.checkpointer.save("model_0000003", iteration=3)
    resumed = GivenBatches(cfg)
    resumed._trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    resumed.resume_or_load(resume=True)
    assert resumed._trainer.grad_scaler.get_scale() == 8.0

    without = GivenBatches(given_batches_config(tmp_path))
    without.iter = without._trainer.iter = 3
    without.checkpointer.save("model_0000003", iteration=3)
    with pytest.raises(UserError, match="no state of the grad_scaler.*AMP"):
        GivenBatches(cfg).resume_or_load(resume=True)


def test_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    """The kernel refuses to let the file grow, in the middle of writing it."""
    model = tiny_model(tiny_config())
    checkpointer = SafeCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    before = (tmp_path / "model_0000001.pth").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        with pytest.raises(UserError, match=r"model_0000002.*--resume.*last good.*model_0000001"):
            checkpointer.save("model_0000002", iteration=2)
        # Writing over the checkpoint itself must not harm it either.
        with pytest.raises(UserError):
            checkpointer.save("model_0000001", iteration=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]
    assert (tmp_path / "model_0000001.pth").read_bytes() == before
    assert SafeCheckpointer(model, str(tmp_path)).resume_or_load("")["iteration"] == 1


def saved(folder, model, name="model"):
    SafeCheckpointer(model, str(folder)).save(name)
    return str(folder / f"{name}.pth")


def test_another_architecture_is_refused(tmp_path):
    path = saved(tmp_path, torch.nn.Linear(3, 3))
    model = tiny_model(tiny_config())
    with pytest.raises(UserError, match="another.*architecture"):
        SafeCheckpointer(model).resume_or_load(path, resume=False)
    with pytest.raises(UserError, match="another.*architecture"):
        SafeCheckpointer(model).load_whole(path)


def test_a_detector_of_another_width_is_refused(tmp_path):
    """Detectron2 would skip nearly all of it, and train from scratch without a word."""
    path = saved(tmp_path, tiny_model(tiny_config()))
    wider = tiny_model(tiny_config("MODEL.RESNETS.WIDTH_PER_GROUP", 8))
    with pytest.raises(UserError, match="another.*architecture"):
        SafeCheckpointer(wider).resume_or_load(path, resume=False)


def test_a_backbone_alone_is_enough_to_start_from(tmp_path):
    model = tiny_model(tiny_config())
    backbone = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.bottom_up")}
    path = str(tmp_path / "backbone.pth")
    torch.save({"model": backbone}, path)
    other = tiny_model(tiny_config(), seed=1)
    SafeCheckpointer(other).resume_or_load(path, resume=False)
    for name, value in backbone.items():
        assert torch.equal(other.state_dict()[name], value)


def test_another_number_of_classes(tmp_path):
    path = saved(tmp_path, tiny_model(tiny_config()))
    other = tiny_model(tiny_config("MODEL.ROI_HEADS.NUM_CLASSES", NUM_CLASSES + 2))
    with pytest.raises(UserError, match="number of classes"):
        SafeCheckpointer(other).load_whole(path)
    with pytest.raises(UserError, match="number of classes"):
        SafeCheckpointer(other, str(tmp_path)).resume_or_load("", resume=True)
    # To start a training from it is what one does with a new data set.
    SafeCheckpointer(other).resume_or_load(path, resume=False)


def test_a_baseline_is_evaluated_and_started_from_but_not_resumed(tmp_path):
    baseline = tiny_model(tiny_config(stock=True))
    path = saved(tmp_path, baseline)
    swn = tiny_model(tiny_config(), seed=1)
    SafeCheckpointer(swn).load_whole(path)
    SafeCheckpointer(swn).resume_or_load(path, resume=False)
    for name, value in baseline.state_dict().items():
        assert torch.equal(swn.state_dict()[name], value)
    with pytest.raises(UserError, match="sample_weighter"):
        SafeCheckpointer(swn, str(tmp_path)).resume_or_load("", resume=True)


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint"])
def test_bad_checkpoint_files_are_named(tmp_path, content):
    path = tmp_path / "some.pth"
    if content is not None:
        path.write_bytes(content)
    model = tiny_model(tiny_config())
    with pytest.raises(UserError, match="some.pth"):
        SafeCheckpointer(model).load_whole(str(path))


def test_evaluation_needs_weights():
    with pytest.raises(UserError, match="MODEL.WEIGHTS"):
        SafeCheckpointer(tiny_model(tiny_config())).load_whole("")
