"""What a training records of its samples."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from swn_d2.engine import SWNTrainer, check_run
from swn_d2.errors import UserError
from swn_d2.recording import (
    REASONS,
    RECORDING,
    SNAPSHOTS,
    farthest_first,
    read_recording,
    weighters_of,
)
from swn_d2.weighting import build_sample_weighter
from tests.tiny import batch, batch_with_empty_image, tiny_config

ITERATIONS = 6


class OnBatches(SWNTrainer):
    """Iteration i trains on batch i, whose objects are white."""

    @classmethod
    def build_train_loader(cls, cfg):
        return map(white_objects, range(100))


def white_objects(seed):
    entries = batch_with_empty_image(seed) if seed == 3 else batch(seed)
    for i, entry in enumerate(entries):
        entry["file_name"] = f"{seed}_{i}.jpg"
        entry["image"] = entry["image"] // 4
        for x1, y1, x2, y2 in entry["instances"].gt_boxes.tensor.int().tolist():
            entry["image"][:, y1:y2, x1:x2] = 255
    return entries


def train(folder, *opts, until=None, resume=False, **kwargs):
    """A trainer that has done its iterations, with what its weighters saw and said:
    (iteration, stage, statistics, weights)."""
    os.makedirs(folder, exist_ok=True)
    cfg = tiny_config(
        *("OUTPUT_DIR", str(folder)),
        *("SOLVER.MAX_ITER", ITERATIONS),
        *("SOLVER.STEPS", ()),
        *("SOLVER.CHECKPOINT_PERIOD", 2),
        *("SOLVER.WARMUP_ITERS", 0),
        *("SOLVER.SWN.BASE_LR", 0.05),  # so that the weights differ at once
        *("DATASETS.TEST", ()),
        *("RECORDING.PERIOD", 2),
        *opts,
        **kwargs,
    )
    torch.manual_seed(0)
    trainer = OnBatches(cfg)
    trainer.seen = []
    for stage, weighter in weighters_of(trainer.model).items():

        def listen(_, inputs, weights, stage=stage):
            trainer.seen.append((trainer.iter, stage, inputs[0], weights))

        weighter.register_forward_hook(listen)
    trainer.resume_or_load(resume=resume)
    trainer.max_iter = until or trainer.max_iter
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with all tasks weighted, whose records are of all samples."""
    folder = tmp_path_factory.mktemp("run")
    trainer = train(folder, "RECORDING.NUM_SAMPLES", 4000, detector="mask_rcnn", reading="relative")
    return folder, trainer


@pytest.mark.parametrize("detector", ["mask_rcnn", "cascade_mask_rcnn", "retinanet"])
def test_records_are_what_the_weighter_saw_and_said(detector, run, tmp_path):
    if detector == "mask_rcnn":
        folder, trainer = run
    else:
        folder, opts = tmp_path, ("RECORDING.NUM_SAMPLES", 4000)
        trainer = train(folder, *opts, detector=detector, reading="relative")
    records = read_recording(folder / RECORDING)
    seen = [entry for entry in trainer.seen if entry[0] % 2 == 1]
    assert [(r.iteration, r.stage) for r in records] == [entry[:2] for entry in seen]
    assert len({r.stage for r in records}) == (3 if detector == "cascade_mask_rcnn" else 1)
    for record, (_, _, statistics, weights) in zip(records, seen, strict=True):
        positive = statistics.is_foreground
        assert (record.num_positives, record.num_negatives) == (positive.sum(), (~positive).sum())
        expected = {
            "cls_loss": statistics.cls_loss,
            "box_loss": statistics.box_loss.sum(dim=1),
            "iou": statistics.iou,
            "prob": statistics.prob,
            "gt_class": statistics.detail("gt_class"),
            "label_loss": statistics.detail("label_loss").detach(),
            "label_weight": torch.ones(len(statistics)),
            "cls_weight": weights.cls,
            "cls_learned": weights.learned["cls"],
            "box_weight": weights.box,
            "box_learned": weights.learned["box"],
        }
        if statistics.mask_loss is not None:
            expected["mask_loss"] = statistics.mask_loss
            expected["mask_weight"] = weights.mask
            expected["mask_learned"] = weights.learned["mask"]
        assert set(record.positives) == set(expected)
        assert set(record.negatives) == {"cls_loss", "cls_weight", "cls_learned"}
        for name, values in expected.items():  # four digits are written
            same = {"rtol": 1e-3, "atol": 1e-7}
            np.testing.assert_allclose(record.positives[name], values[positive], **same)
            if name in record.negatives:
                np.testing.assert_allclose(record.negatives[name], values[~positive], **same)
    assert any(record.positives["box_weight"].std() > 0 for record in records)


def test_weights_from_the_data_are_in_the_record(tmp_path):
    opts = ("MODEL.SAMPLE_WEIGHTER.NAME", "Uniform")
    train(tmp_path, *opts, "MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS", (2.0, 3.0, 5.0))
    for record in read_recording(tmp_path / RECORDING):
        weights = np.array([2.0, 3.0, 5.0])[record.positives["gt_class"].astype(int)]
        assert (record.positives["cls_weight"] == weights).all()
        assert (record.positives["box_weight"] == weights).all()
        assert (record.negatives["cls_weight"] == 1).all()


def test_a_record_is_bounded_and_a_part_of_the_samples(run, tmp_path):
    few = train(
        tmp_path,
        *("RECORDING.NUM_SAMPLES", 5),
        detector="mask_rcnn",
        reading="relative",
    )
    of_all = read_recording(run[0] / RECORDING)
    for record, whole in zip(read_recording(tmp_path / RECORDING), of_all, strict=True):
        assert record.num_negatives == whole.num_negatives > 5
        for part, group in (
            (record.positives, whole.positives),
            (record.negatives, whole.negatives),
        ):
            assert len(part["cls_loss"]) == min(5, len(group["cls_loss"]))
            rows = {tuple(row) for row in np.stack(list(group.values())).T.tolist()}
            assert {tuple(row) for row in np.stack(list(part.values())).T.tolist()} <= rows
    assert len(few.seen) == ITERATIONS


def test_recording_changes_nothing_in_the_training(run, tmp_path):
    silent = train(tmp_path, "RECORDING.PERIOD", 0, detector="mask_rcnn", reading="relative")
    assert not (tmp_path / RECORDING).exists() and not (tmp_path / SNAPSHOTS).exists()
    with_recording = run[1].model.state_dict()
    for name, value in silent.model.state_dict().items():
        assert torch.equal(value, with_recording[name]), name


def test_a_killed_run_that_is_resumed_has_every_record_once(tmp_path):
    train(tmp_path, until=4)
    with open(tmp_path / RECORDING, "a") as stream:
        stream.write('{"iteration":5,"stage":"","posi')  # killed while it wrote
    train(tmp_path, resume=True)
    # Done again from the checkpoint after iteration 2, as if the last one had been lost.
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    train(tmp_path, resume=True)
    records = read_recording(tmp_path / RECORDING)
    assert [record.iteration for record in records] == [1, 3, 5]


def test_pictured_are_the_extremes_of_all_positives(run):
    folder, trainer = run
    seen = {entry[0]: entry for entry in trainer.seen}
    pictured = 0
    for record in read_recording(folder / RECORDING):
        _, _, statistics, weights = seen[record.iteration]
        positive = statistics.is_foreground
        objects = statistics.detail("object")[positive].numpy()
        loss, weight = statistics.cls_loss[positive].numpy(), weights.cls[positive].numpy()
        # How many have a smaller loss, less how many have a smaller weight.
        hard = (loss[:, None] > loss).sum(axis=1) - (weight[:, None] > weight).sum(axis=1)
        apart = (statistics.detail("pred_score") - statistics.iou)[positive].abs().detach().numpy()
        for reason, value in zip(REASONS, (hard, -hard, apart), strict=True):
            # The farthest sample of every object, the farthest objects first.
            farthest = sorted((value[objects == o].max() for o in set(objects)), reverse=True)
            crops = [crop for crop in record.crops if crop.reason == reason]
            # Which sample a crop is of, by its numbers.
            iou = statistics.iou[positive].numpy()
            shown = [
                np.abs(
                    np.stack([loss, weight, iou]).T
                    - [c.stats[name] for name in ("cls_loss", "cls_weight", "iou")]
                )
                .sum(axis=1)
                .argmin()
                for c in crops
            ]
            assert value[shown].tolist() == farthest[:4]
            assert len(set(objects[shown])) == len(crops)
            pictured += len(crops)
    assert pictured > 10


def test_loss_and_weight_decide_by_rank():
    loss = np.array([3.0, 2.0, 1.0, 2.5])
    weight = np.array([3.0, 1.0, 2.0, 2.5])  # ranks of the losses 3 1 0 2, of the weights 3 0 1 2
    orders = farthest_first(loss, weight, mismatch=np.array([0.1, 0.0, 0.9, 0.5]))
    assert orders["hard_but_light"].tolist() == [1, 0, 3, 2]
    assert orders["easy_but_heavy"].tolist() == [2, 3, 0, 1]
    assert orders["mismatch"].tolist() == [2, 3, 0, 1]
    orders = farthest_first(loss, np.ones(4), mismatch=np.zeros(4))  # unweighted: by loss
    assert orders["hard_but_light"].tolist() == [0, 3, 1, 2]


def test_a_picture_shows_its_object(run):
    records = read_recording(run[0] / RECORDING)
    for crop in (crop for record in records for crop in record.crops):
        picture = np.asarray(Image.open(io.BytesIO(crop.jpeg)))
        assert max(picture.shape[:2]) == 112
        x1, y1, x2, y2 = (round(x) for x in crop.gt_box)
        assert picture[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].min() > 200  # the object is white
        border = picture[: max(y1 - 2, 0)], picture[y2 + 2 :]
        assert max((rows.mean() for rows in border if rows.size), default=0) < 130
        for box in (crop.box, crop.gt_box):
            assert 0 <= box[0] <= box[2] <= picture.shape[1] + 0.1
            assert 0 <= box[1] <= box[3] <= picture.shape[0] + 0.1
        assert crop.image.endswith(".jpg") and 0 <= crop.gt_class < 3


def test_snapshots_are_the_weighter(run):
    folder, trainer = run
    files = sorted((folder / SNAPSHOTS).iterdir())
    assert [file.name for file in files] == [f"{i:07d}.pth" for i in range(ITERATIONS)]
    weighter = build_sample_weighter(trainer.cfg, box_loss_dim=4, has_mask=True)
    weighter.load_state_dict(torch.load(files[-1])[""])
    for name, value in trainer.model.roi_heads.sample_weighter.state_dict().items():
        assert torch.equal(weighter.state_dict()[name], value)


def test_tensorboard_has_histograms_and_pictures(tmp_path):
    train(tmp_path, "RECORDING.PERIOD", 20, "SOLVER.MAX_ITER", 20)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    assert "weights/box" in events.Tags()["histograms"]
    assert {f"samples/{reason}" for reason in REASONS} <= set(events.Tags()["images"])
    (record,) = read_recording(tmp_path / RECORDING)
    (histogram,) = events.Histograms("weights/box")
    assert histogram.histogram_value.num == len(record.positives["box_weight"])


def test_a_detector_without_a_weighter_has_nothing_to_record(tmp_path):
    train(tmp_path, stock=True)
    assert not (tmp_path / RECORDING).exists()


@pytest.mark.parametrize("key, value", [("PERIOD", -1), ("NUM_SAMPLES", 0)])
def test_values_out_of_range(key, value, tmp_path):
    opts = ("DATASETS.TRAIN", ("coco_2017_train",), "OUTPUT_DIR", str(tmp_path))
    cfg = tiny_config(f"RECORDING.{key}", value, *opts)
    with pytest.raises(UserError, match=f"RECORDING.{key} is {value}, but it must be at least"):
        check_run(cfg, eval_only=False, resume=False)
