"""tools/measure_noise.py."""

import importlib
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from swn_d2.analysis.run_folder import RunFolder
from swn_d2.data import make_digit_scenes, register_coco
from swn_d2.data.noise import WRONG_CLASS, add_noise
from swn_d2.engine import SWNTrainer
from swn_d2.own.notes import REGISTERED
from tests.tiny import tiny_config

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
tool = importlib.import_module("measure_noise")


@pytest.fixture
def scenes(digit_scenes_here):
    """A small DigitScenes with much noise, in the place of the usual one."""
    make_digit_scenes(
        digit_scenes_here,
        num_train=8,
        num_val=1,
        image_size=(96, 64),
        box_noise_share=0.5,
        box_noise_amount=0.45,
    )


def saved_run(folder, *opts, **kwargs):
    """The folder of a run that ends before its first step."""
    os.makedirs(folder)
    cfg = tiny_config(
        *("MODEL.ROI_HEADS.NUM_CLASSES", 10),
        *("INPUT.MIN_SIZE_TRAIN", (64,)),
        *("DATALOADER.NUM_WORKERS", 0),
        *("DATASETS.TRAIN", ("digit_scenes_train",)),
        *("SOLVER.IMS_PER_BATCH", 4),
        *("OUTPUT_DIR", str(folder)),
        *opts,
        **kwargs,
    )
    torch.manual_seed(0)
    trainer = SWNTrainer(cfg)
    trainer.checkpointer.save("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def test_noisy_boxes_are_known_by_their_numbers(scenes, tmp_path, monkeypatch, capsys):
    folder = saved_run(tmp_path / "run", "MODEL.SAMPLE_WEIGHTER.NAME", "IoUBalanced")
    monkeypatch.setattr(sys, "argv", ["tool", str(folder), "--batches", "6"])
    tool.main()
    out = capsys.readouterr().out
    share = int(re.search(r"(\d+)% of noisy", out)[1])
    columns = tool.positives(RunFolder(folder), 6)
    noisy = columns["is_noisy"] == 1
    assert share == round(100 * noisy.mean()) and 20 < share < 80
    row = r"^  {} +exact +([\d.]+)  noisy +([\d.]+)  area under the ROC curve ([\d.]+)$"
    for name, sign in (("iou", 1), ("box_weight", 1), ("box_loss", -1)):
        exact, other, area = map(float, re.search(row.format(name), out, re.M).groups())
        values = columns[name] * sign
        assert exact == pytest.approx(columns[name][~noisy].mean(), abs=6e-4)
        assert other == pytest.approx(columns[name][noisy].mean(), abs=6e-4)
        a, b = values[~noisy][:, None], values[noisy]
        assert area == pytest.approx((a > b).mean() + (a == b).mean() / 2, abs=6e-4)
    assert "gt_class" not in out and "cls_weight" in out
    assert np.isfinite(np.concatenate(list(columns.values()))).all()


def test_noise_that_was_added_to_other_data(digit_scenes_here, tmp_path, monkeypatch, capsys):
    """The truth is what add_noise.py wrote."""
    make_digit_scenes(digit_scenes_here, num_train=8, num_val=1, image_size=(96, 64))
    clean = digit_scenes_here / "annotations" / "instances_train.json"
    noisy, left_out = tmp_path / "noisy.json", tmp_path / "left_out.json"
    add_noise(clean, noisy, shares={WRONG_CLASS: 0.5}, left_out=left_out)
    images = digit_scenes_here / "train"
    register_coco("noisy_digits", str(noisy), str(images))
    folder = saved_run(
        tmp_path / "run",
        *("MODEL.SWN.TASKS", ["cls"]),
        *("DATASETS.TRAIN", ("noisy_digits",)),
    )
    weights = [a.get("sample_weight", 1) for a in json.loads(left_out.read_text())["annotations"]]
    data = ["--register-coco", "left_out", str(left_out), str(images), "--dataset", "left_out"]
    monkeypatch.setattr(sys, "argv", ["tool", str(folder), "--batches", "4", *data])
    tool.main()
    out = capsys.readouterr().out
    share = int(re.search(r"(\d+)% of noisy", out)[1]) / 100
    assert share == pytest.approx(1 - sum(weights) / len(weights), abs=0.2)
    assert "label_loss" in out
    content = torch.load(folder / "model_final.pth", weights_only=True)
    kept = {name: v for name, v in content["model"].items() if "sample_weighter" not in name}
    torch.save({"model": kept}, folder / "model_final.pth")
    with pytest.raises(tool.UserError, match="does not fit this model"):
        tool.main()


def test_what_it_can_not_look_at(scenes, tmp_path, monkeypatch):
    cascade = saved_run(tmp_path / "cascade", detector="cascade_rcnn")
    (tmp_path / "empty").mkdir()
    for argument, message in (
        (tmp_path / "empty", "has no config.yaml"),
        (cascade, "cascade has 3 sample weighters"),
        ("--batches=0", "--batches must be at least 1"),
        ("--dataset=nowhere", "no data set named nowhere"),
    ):
        monkeypatch.setattr(sys, "argv", ["tool", str(argument), str(cascade)])
        with pytest.raises(tool.UserError, match=message):
            tool.main()


def test_data_with_other_classes_than_the_run_learned(scenes, tmp_path, monkeypatch):
    run = saved_run(tmp_path / "run")
    note = {"format": "swn_d2 registered", "version": 1, "imports": [], "data_sets": {}}
    (run / REGISTERED).write_text(json.dumps({**note, "learned": ["cat", "dog", "cow"]}))
    monkeypatch.setattr(sys, "argv", ["tool", str(run)])
    with pytest.raises(tool.UserError, match="has learned cat, dog, cow. .* with --dataset"):
        tool.main()
