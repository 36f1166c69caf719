import hashlib
import importlib.util
import json
import math
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, DatasetMapper
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from swn_d2.data import digit_scenes, make_digit_scenes
from swn_d2.errors import UserError

REPOSITORY = Path(__file__).parents[2]
SMALL = {"num_train": 6, "num_val": 2}


def annotations(root, split="train"):
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def hashes(root):
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def extents(mask):
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]


def intersection_over_union(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def test_same_request_gives_the_same_bytes(tmp_path):
    first = hashes(make_digit_scenes(tmp_path / "a", **SMALL, box_noise_share=0.5))
    assert len(first) == 6 + 2 + 2
    assert first == hashes(make_digit_scenes(tmp_path / "b", **SMALL, box_noise_share=0.5))
    other_seed = hashes(make_digit_scenes(tmp_path / "c", **SMALL, box_noise_share=0.5, seed=1))
    assert not set(first.values()) & set(other_seed.values())
    assert len(set(first.values())) == len(first)  # no scene occurs twice, nor in both splits


def test_an_image_depends_neither_on_the_number_of_images_nor_on_noise(tmp_path):
    few = make_digit_scenes(tmp_path / "few", num_train=3, num_val=1)
    many = make_digit_scenes(tmp_path / "many", **SMALL, box_noise_share=1.0)
    shared = {k: v for k, v in hashes(few).items() if k.endswith(".jpg")}
    assert shared.items() <= hashes(many).items()
    of_few, of_many = annotations(few)["annotations"], annotations(many)["annotations"]
    assert len(of_few) < len(of_many)
    for a, b in zip(of_few, of_many, strict=False):  # `many` goes on where `few` ends
        assert a["bbox"] == a["clean_bbox"] == b["clean_bbox"] != b["bbox"]
        assert (a["id"], a["segmentation"]) == (b["id"], b["segmentation"])


def test_splits_share_neither_scans_nor_background():
    from sklearn.datasets import load_digits, load_sample_images

    labels = load_digits().target
    train, val = (digit_scenes._scan_indices(labels, split) for split in ("train", "val"))
    assert sorted([*train, *val]) == list(range(len(labels)))
    assert set(labels[train]) == set(labels[val]) == set(range(10))

    materials = digit_scenes._load_materials()
    scans = [{s.tobytes() for s in materials[split].scans} for split in ("train", "val")]
    assert not scans[0] & scans[1]
    # Side by side the two halves are the photograph again, so no pixel is in both.
    for i, photograph in enumerate(load_sample_images().images):
        halves = [np.asarray(materials[split].photographs[i]) for split in ("train", "val")]
        assert np.array_equal(np.concatenate(halves, axis=1), photograph)


def test_scenes_of_the_splits_are_drawn_independently(scenes):
    # The same random numbers would put as many digits in the first training image as in the first
    # validation image, and so on.
    image_ids = [
        [a["image_id"] for a in annotations(scenes, split)["annotations"] if a["image_id"] <= 20]
        for split in ("train", "val")
    ]
    assert image_ids[0] != image_ids[1]


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_are_the_extents_of_the_masks(scenes, split):
    content = annotations(scenes, split)
    for annotation in content["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        assert mask.shape == (160, 192)
        assert annotation["clean_bbox"] == extents(mask)
        assert annotation["area"] == mask.sum() > 0


def test_scenes_hold_three_to_ten_digits_that_hardly_overlap(scenes):
    by_image = {}
    for annotation in annotations(scenes)["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    assert sorted(by_image) == list(range(1, 201))
    # A digit that finds no place in a few tries is left out.
    counts = {len(found) for found in by_image.values()}
    assert set(range(3, 10)) <= counts <= set(range(1, 11))
    for found in by_image.values():
        masks = sum(coco_mask.decode(a["segmentation"]).astype(int) for a in found)
        assert masks.max() == 1
        boxes = [a["clean_bbox"] for a in found]
        for i, box in enumerate(boxes):
            assert all(intersection_over_union(box, b) <= 0.2 for b in boxes[:i])


def test_digits_stand_out_from_the_background(scenes):
    # Without the digits' own pixels, the surroundings inside the box are what is behind them.
    contrasts = []
    for annotation in annotations(scenes)["annotations"]:
        image = Image.open(scenes / "train" / f"{annotation['image_id']:06d}.jpg").convert("L")
        grey = np.asarray(image) / 255
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        x, y, width, height = annotation["clean_bbox"]
        box = np.s_[y : y + height, x : x + width]
        if (~mask[box]).any():
            contrasts.append(abs(grey[box][mask[box]].mean() - grey[box][~mask[box]].mean()))
    # MIN_CONTRAST is 0.4 at full ink; soft edges, a textured background and JPEG eat up some.
    assert np.median(contrasts) > 0.3
    assert np.mean(np.array(contrasts) < 0.1) < 0.02


def test_share_and_amount_of_the_box_noise(scenes):
    content = annotations(scenes)
    clean = np.array([a["clean_bbox"] for a in content["annotations"]], dtype=float)
    noisy = np.array([a["bbox"] for a in content["annotations"]])
    jittered = (clean != noisy).any(axis=1)
    # Four standard deviations of a binomial share: the draw is fixed, so this cannot flicker.
    assert abs(jittered.mean() - 0.4) < 4 * math.sqrt(0.4 * 0.6 / len(clean))

    def corners(boxes):
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)

    clean, noisy = clean[jittered], noisy[jittered]
    sides = np.tile(clean[:, 2:], 2)
    moved = (corners(noisy) - corners(clean)) / sides
    assert (np.abs(moved) <= 0.2 + 0.02 / sides).all()  # coordinates are rounded to 0.01
    inside = (corners(noisy) > 0) & (corners(noisy) < [192, 160, 192, 160])  # those not clipped
    # Uniform in ±0.2: mean size 0.1, standard deviation 0.2 / sqrt(12), of which four, plus the
    # little that clipping takes from the large moves.
    sigma = 0.2 / math.sqrt(12) / math.sqrt(inside.sum())
    assert abs(np.abs(moved[inside]).mean() - 0.1) < 4 * sigma + 0.002
    assert abs(moved[inside].mean()) < 4 * 0.2 / math.sqrt(3) / math.sqrt(inside.sum()) + 0.002
    assert (corners(noisy) >= 0).all() and (corners(noisy) <= [192, 160, 192, 160]).all()
    assert (noisy[:, 2:] > 0).all()


def test_more_noise_keeps_the_jitter_of_less(tmp_path):
    boxes = [
        [(a["bbox"], a["clean_bbox"]) for a in annotations(root)["annotations"]]
        for share in (0.3, 0.7)
        for root in [make_digit_scenes(tmp_path / str(share), **SMALL, box_noise_share=share)]
    ]
    moved = [[bbox != clean for bbox, clean in found] for found in boxes]
    assert 0 < sum(moved[0]) < sum(moved[1])
    assert all(more == less for less, more in zip(*boxes, strict=True) if less[0] != less[1])


def test_class_noise(tmp_path):
    size = {**SMALL, "num_train": 60}
    clean = annotations(make_digit_scenes(tmp_path / "clean", **size))
    noisy_root = make_digit_scenes(tmp_path / "noisy", **size, class_noise_share=0.3)
    noisy = annotations(noisy_root)
    assert "class_noise_share" not in clean["info"]  # as before there was such noise
    assert noisy["info"]["class_noise_share"] == 0.3
    changed = []
    for a, b in zip(clean["annotations"], noisy["annotations"], strict=True):
        assert b["clean_category_id"] == a["category_id"]
        changed.append((b["category_id"] - a["category_id"]) % 10)
        assert {**b, "category_id": a["category_id"]} == {
            **a,
            "clean_category_id": a["category_id"],
        }
    num_changed = np.count_nonzero(changed)
    # Four standard deviations of a binomial share; the draw is fixed.
    assert abs(num_changed / len(changed) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / len(changed))
    assert set(changed) == set(range(10))  # every other digit occurs
    validation = annotations(noisy_root, "val")["annotations"]
    assert not any("clean_category_id" in a for a in validation)
    for root, share in ((tmp_path / "noisy", 0.0), (tmp_path / "clean", 0.3)):
        with pytest.raises(UserError, match=f"class_noise_share .*, not {share} as requested"):
            make_digit_scenes(root, **size, class_noise_share=share)


def test_validation_boxes_stay_clean_and_the_request_is_recorded(scenes):
    content = annotations(scenes, "val")
    assert all(a["bbox"] == a["clean_bbox"] for a in content["annotations"])
    assert content["info"] == {
        "description": "DigitScenes",
        "version": 1,
        "split": "val",
        "num_train": 200,
        "num_val": 20,
        "image_size": [192, 160],
        "box_noise_share": 0.4,
        "box_noise_amount": 0.2,
        "seed": 3,
    }


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_ground_truth_scores_full_marks_in_the_coco_evaluation(scenes, kind):
    truth = COCO(str(scenes / "annotations" / "instances_val.json"))
    fields = ("image_id", "category_id", "bbox", "segmentation")
    detections = [{k: a[k] for k in fields} | {"score": 1.0} for a in truth.anns.values()]
    if kind == "bbox":
        for detection in detections:
            del detection["segmentation"]
    evaluation = COCOeval(truth, truth.loadRes(detections), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_detectron2_reads_boxes_and_masks(registered_scenes, cfg):
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    mapper = DatasetMapper(cfg, is_train=True, augmentations=[])
    for record in DatasetCatalog.get(registered_scenes[1]):
        sample = mapper(record)
        assert sample["image"].shape == (3, 160, 192)
        instances = sample["instances"]
        assert len(instances) == len(record["annotations"]) > 0
        labels = [a["category_id"] for a in record["annotations"]]  # contiguous: the digit itself
        assert instances.gt_classes.tolist() == labels
        assert instances.gt_boxes.tensor.equal(instances.gt_masks.get_bounding_boxes().tensor)


@pytest.mark.parametrize("size", [(64, 64), (320, 200), (100, 240)])
def test_other_image_sizes(tmp_path, size):
    root = make_digit_scenes(tmp_path / "scenes", num_train=3, num_val=1, image_size=size)
    for image in annotations(root)["images"]:
        assert (image["width"], image["height"]) == size
        assert Image.open(root / "train" / image["file_name"]).size == size


def test_the_same_request_keeps_the_folder(tmp_path):
    root = make_digit_scenes(tmp_path / "scenes", **SMALL)
    times = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    make_digit_scenes(root, **SMALL)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == times


def test_another_request_or_other_content_is_never_overwritten(tmp_path):
    root = make_digit_scenes(tmp_path / "scenes", **SMALL)
    before = hashes(root)
    with pytest.raises(UserError, match="seed 0, not 7 as requested"):
        make_digit_scenes(root, **SMALL, seed=7)
    with pytest.raises(UserError, match="num_val 2, not 3 as requested"):
        make_digit_scenes(root, num_train=6, num_val=3)
    assert hashes(root) == before

    (root / "train" / "000004.jpg").unlink()
    with pytest.raises(UserError, match="holds 5 of 6 images"):
        make_digit_scenes(root, **SMALL)

    stranger = tmp_path / "stranger"
    stranger.mkdir()
    make_digit_scenes(stranger, **SMALL)  # an empty folder may be filled
    for path in stranger.rglob("*.json"):
        path.write_text('{"info": {"description": "holiday pictures"}}')
    with pytest.raises(UserError, match="holds no complete DigitScenes"):
        make_digit_scenes(stranger, **SMALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "num_train of at least 1"),
        ({"image_size": (32, 160)}, "at least 64x64 pixels, not 32x160"),
        ({"box_noise_share": 1.5}, r"box_noise_share must be in \[0, 1\], not 1.5"),
        ({"box_noise_share": float("nan")}, "box_noise_share"),
        ({"class_noise_share": -0.1}, r"class_noise_share must be in \[0, 1\], not -0.1"),
        ({"box_noise_amount": 0.5}, r"box_noise_amount must be in \[0, 0.5\), not 0.5"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_arguments_out_of_range(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        make_digit_scenes(tmp_path / "scenes", **{**SMALL, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_without_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # makes its import fail
    with pytest.raises(UserError, match=r"pip install 'swn_d2\[demo\]'"):
        make_digit_scenes(tmp_path / "scenes", **SMALL)


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write DigitScenes"):
        make_digit_scenes(tmp_path / "file" / "scenes", **SMALL)


def start(root, **arguments):
    """Make scenes in a process of their own."""
    context = multiprocessing.get_context("fork")  # quick: nothing has to be imported again
    process = context.Process(target=make_digit_scenes, args=(root,), kwargs=arguments)
    process.start()
    return process


def test_a_killed_run_leaves_nothing_that_looks_complete(tmp_path):
    root = tmp_path / "scenes"
    process = start(root, num_train=20, num_val=100_000)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("val/*.jpg")):  # the training half is written by now
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not root.exists()
    make_digit_scenes(root, **SMALL)
    assert len(annotations(root)["images"]) == 6


def test_two_runs_at_once_make_one_folder(tmp_path):
    root = tmp_path / "scenes"
    processes = [start(root, num_train=40, num_val=1) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert list(tmp_path.iterdir()) == [root]
    make_digit_scenes(root, num_train=40, num_val=1)  # complete, so it is kept


def load_tool():
    path = REPOSITORY / "tools" / "make_digit_scenes.py"
    spec = importlib.util.spec_from_file_location("make_digit_scenes_tool", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_the_tool(tmp_path, monkeypatch, capsys):
    tool = load_tool()
    root = tmp_path / "scenes"
    arguments = f"--output {root} --train 3 --val 1 --image-size 96 64 --box-noise-share 1".split()
    arguments += ["--class-noise-share", "0.5"]
    monkeypatch.setattr(sys, "argv", ["tool", *arguments])
    tool.main()
    assert "3 training and 1 validation images" in capsys.readouterr().out
    expected = make_digit_scenes(
        tmp_path / "expected",
        num_train=3,
        num_val=1,
        image_size=(96, 64),
        box_noise_share=1.0,
        class_noise_share=0.5,
    )
    assert hashes(root) == hashes(expected)

    monkeypatch.setattr(sys, "argv", ["tool", *arguments, "--seed", "5"])
    with pytest.raises(SystemExit, match="^error: .* seed 0, not 5 as requested"):
        tool.main()
