"""Whole configs: they can be trained with as they are, but for the backbone's weights."""

import json
import re
import shutil

import pytest
import yaml
from detectron2.utils.events import EventStorage

from swn_d2 import SWNTrainer, load_config
from swn_d2.data import make_digit_scenes, register_coco
from swn_d2.engine import check_run
from swn_d2.errors import UserError
from swn_d2.recipe import choices, plan_project
from swn_d2.recipe.project import DETECTORS


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    return make_digit_scenes(folder, num_train=6, num_val=3, image_size=(128, 96))


@pytest.fixture
def names(digits, clean_catalog):
    for part in ("train", "val"):
        file = digits / "annotations" / f"instances_{part}.json"
        register_coco(f"mine_{part}", str(file), str(digits / part))
    return ["mine_train", "mine_val"]


@pytest.mark.parametrize("has_gpu", [False, True])
@pytest.mark.parametrize("detector", DETECTORS)
def test_a_detector_learns_from_the_data_with_it(names, tmp_path, detector, has_gpu):
    project = plan_project(names, detector=detector, has_gpu=has_gpu, output="output/mine")
    assert max(map(len, project.config.splitlines())) <= 100
    (tmp_path / "mine.yaml").write_text(project.config)
    cfg = load_config(str(tmp_path / "mine.yaml"))
    assert cfg.OUTPUT_DIR == "output/mine" and cfg.MODEL.MASK_ON == (detector == "mask_rcnn")
    cfg.merge_from_list(
        [
            *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "run")),
            *("DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2),
            *("MODEL.TIMM.NORM", "BN"),  # which an untrained network needs
        ]
    )
    check_run(cfg, eval_only=False, resume=False)
    if has_gpu:
        return  # the same keys, too large for a test
    model = SWNTrainer.build_model(cfg)
    with EventStorage():
        losses = model(next(iter(SWNTrainer.build_train_loader(cfg))))
        sum(losses.values()).backward()
    assert ("loss_mask" in losses) == (detector == "mask_rcnn")


def test_weights_of_annotations_are_welcome(names, digits, tmp_path):
    """As the audit writes them."""
    content = json.loads((digits / "annotations" / "instances_train.json").read_text())
    content["annotations"][0]["sample_weight"] = 0.5
    (tmp_path / "weighted.json").write_text(json.dumps(content))
    register_coco("weighted", str(tmp_path / "weighted.json"), str(digits / "train"))
    plan_project(["weighted", names[1]], detector="faster_rcnn", has_gpu=False, output="x")


def test_pictures_in_both_sets(names, digits, clean_catalog):
    file = digits / "annotations" / "instances_train.json"
    register_coco("again", str(file), str(digits / "train"))
    with pytest.raises(UserError, match=r"6 pictures, such as \S+1.jpg, are in mine_train and in"):
        plan_project(["mine_train", "again"], detector="faster_rcnn", has_gpu=False, output="x")


def test_a_picture_that_is_cut_off(names, digits, tmp_path):
    shutil.copytree(digits / "val", tmp_path / "val")
    picture = tmp_path / "val" / "000002.jpg"
    picture.write_bytes(picture.read_bytes()[:-500])
    annotations = digits / "annotations" / "instances_val.json"
    register_coco("cut", str(annotations), str(tmp_path / "val"))
    with pytest.raises(UserError, match="1 of 9 pictures can't be .*000002.jpg: .*truncated"):
        plan_project([names[0], "cut"], detector="faster_rcnn", has_gpu=False, output="x")


def test_masks_that_are_not_there(names, digits, tmp_path):
    content = json.loads((digits / "annotations" / "instances_train.json").read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    register_coco("boxes", str(tmp_path / "boxes.json"), str(digits / "train"))
    plan_project(["boxes", names[1]], detector="retinanet", has_gpu=False, output="x")
    with pytest.raises(UserError, match='have no "segmentation"'):
        plan_project(["boxes", names[1]], detector="mask_rcnn", has_gpu=False, output="x")


def test_the_reasons_are_in_the_file(names):
    project = plan_project(names, detector="faster_rcnn", has_gpu=False, output="x")
    for words in ("mine_train: 6 pictures", "150 iterations of 8 pictures: 200 epochs of 6 pict"):
        assert re.search(rf"^ *# .*{words}", project.config, re.M), project.config


@pytest.mark.parametrize("is_large", [False, True])
def test_a_large_test_set_is_evaluated_once(names, monkeypatch, is_large):
    monkeypatch.setattr(choices, "_LARGEST_TEST", 0 if is_large else 1000)
    project = plan_project(names, detector="faster_rcnn", has_gpu=False, output="x")
    assert (yaml.safe_load(project.config)["TEST"]["EVAL_PERIOD"] == 0) == is_large
