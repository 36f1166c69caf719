"""Trainings that are killed end as one that is left alone; and what differs is found."""

import shutil
from pathlib import Path

import pytest
import torch

from swn_d2.data import make_digit_scenes
from swn_d2.errors import UserError
from swn_d2.experiments.torture import Campaign, differences
from tests.tiny import tiny_config

TRAIN_NET = Path(__file__).parents[2] / "train_net.py"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torture")
    data = make_digit_scenes(folder / "data", num_train=8, num_val=2, image_size=(96, 64))
    cfg = tiny_config(
        *("DATASETS.TRAIN", ("mine_train",), "DATASETS.TEST", ("mine_val",)),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 10, "MODEL.SWN.EASE_IN", [0.1, 0.9]),
        *("INPUT.MIN_SIZE_TRAIN", (56, 64), "INPUT.MIN_SIZE_TEST", 64),
        *("DATALOADER.NUM_WORKERS", 1, "SOLVER.IMS_PER_BATCH", 2, "SEED", 1),
        *("SOLVER.MAX_ITER", 8, "SOLVER.STEPS", (6,), "SOLVER.WARMUP_ITERS", 2),
        *("SOLVER.CHECKPOINT_PERIOD", 3, "TEST.EVAL_PERIOD", 4, "RECORDING.PERIOD", 1),
    )
    (folder / "config.yaml").write_text(cfg.dump())
    arguments = ["--config-file", str(folder / "config.yaml")]
    for split in ("train", "val"):
        annotations = data / "annotations" / f"instances_{split}.json"
        arguments += ["--register-coco", f"mine_{split}", str(annotations), str(data / split)]
    return arguments


@pytest.mark.parametrize("num_processes, num_kills", [(1, 2), (2, 1)])
def test_a_handful_of_kills(arguments, tmp_path, num_processes, num_kills):
    campaign = Campaign(TRAIN_NET, arguments, tmp_path, num_processes=num_processes, seed=1)
    lines = []
    outcome = campaign.run(num_kills, progress=lines.append)
    assert outcome.kills.total() == num_kills and outcome.trainings > 0
    assert not outcome.differences and "all equal" in str(outcome)
    assert lines[0].startswith(f"kill 1 of {num_kills}")
    if num_processes == 2:
        return
    # What differs is found.
    alone, other = tmp_path / "alone", tmp_path / "other"
    shutil.copytree(alone, other)
    assert differences(alone, other) == []
    (snapshot, *_) = sorted((other / "weighter").iterdir())
    snapshot.unlink()
    records = other / "samples.jsonl"
    records.write_text(records.read_text().replace('"num_negatives":', '"num_negatives":1'))
    end = torch.load(other / "model_final.pth", weights_only=True)
    next(iter(end["model"].values())).view(-1)[0] += 1e-6
    end["trainer"]["_trainer"]["optimizer"]["weighter"]["state"][0]["exp_avg"].view(-1)[0] += 1e-6
    torch.save(end, other / "model_final.pth")
    assert differences(alone, other) == [
        "parameters differ",
        "the optimisers differ",
        "records differ",
        f"weighter/{snapshot.name} differs",
    ]


def test_a_training_that_fails_is_named(arguments, tmp_path):
    campaign = Campaign(
        TRAIN_NET, [*arguments, "MODEL.SWN.LAMBDA_CLS", "-1.0"], tmp_path, num_processes=1, seed=0
    )
    with pytest.raises(UserError, match="alone ended with 1; its output is in"):
        campaign.run(1)
