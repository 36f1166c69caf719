"""Weights of single objects, from the annotation to the instances that a detector is given."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as coco_mask

from swn_d2.data import NamingDatasetMapper, keep_sample_weights, register_coco
from swn_d2.engine import SWNTrainer
from swn_d2.errors import UserError

WIDTH, HEIGHT = 96, 64
BOXES = [[2, 3, 20, 25], [30, 5, 18, 20], [60, 8, 30, 22], [5, 36, 24, 24], [50, 38, 22, 20]]
#: Of the objects, each of which has a class of its own: 5, 6, ... The second has none; the fourth
#: is a crowd region.
WEIGHTS = [0.5, None, 3, 7.0, 0]


def annotation(index, **more):
    """Object number ``index``, with a triangle as its mask."""
    x, y, width, height = BOXES[index]
    weight = {} if WEIGHTS[index] is None else {"sample_weight": WEIGHTS[index]}
    return {
        "bbox": [x, y, width, height],
        "category_id": 5 + index,
        "segmentation": [[x, y, x + width, y, x, y + height]],
        "iscrowd": int(index == 3),
        **weight,
        **more,
    }


def expected_weights(classes):
    return [1.0 if WEIGHTS[c - 5] is None else float(WEIGHTS[c - 5]) for c in classes.tolist()]


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "1.png"
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return str(file)


@pytest.fixture
def record(picture):
    """The picture with its five objects, as Detectron2 wants it."""
    return {
        "file_name": picture,
        "image_id": 1,
        "width": WIDTH,
        "height": HEIGHT,
        "annotations": [annotation(i, bbox_mode=BoxMode.XYWH_ABS) for i in range(len(BOXES))],
    }


@pytest.fixture
def json_file(tmp_path, picture):
    """The same as a COCO file, with the categories of COCO 2017."""
    coco = MetadataCatalog.get("coco_2017_train")
    ids = sorted(coco.thing_dataset_id_to_contiguous_id)
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [
            annotation(i, id=1 + i, image_id=1, category_id=ids[5 + i], area=1)
            for i in range(len(BOXES))
        ],
        "categories": [{"id": i, "name": n} for i, n in zip(ids, coco.thing_classes, strict=True)],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content))
    return str(file)


@pytest.fixture
def mapper_cfg(cfg):
    cfg.INPUT.MIN_SIZE_TRAIN = (HEIGHT,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SOLVER.IMS_PER_BATCH = 1
    return cfg


def map_in_both_ways(cfg, record, seed):
    """The instances that Detectron2 makes, and ours, with the same random numbers."""
    instances = []
    for mapper in (DatasetMapper(cfg, is_train=True), NamingDatasetMapper(cfg, is_train=True)):
        np.random.seed(seed)
        instances.append(mapper(record)["instances"])
    return instances


@pytest.mark.parametrize(
    "crop, masks",
    # Detectron2 crops polygons with Shapely, which it does not come with.
    [(False, None), (False, "polygon"), (False, "bitmask"), (True, None), (True, "bitmask")],
)
def test_weights_stay_with_their_objects(mapper_cfg, record, crop, masks):
    mapper_cfg.INPUT.CROP.ENABLED = crop
    mapper_cfg.INPUT.CROP.TYPE, mapper_cfg.INPUT.CROP.SIZE = "relative", [0.4, 0.4]
    mapper_cfg.MODEL.MASK_ON = masks is not None
    if masks == "bitmask":
        mapper_cfg.INPUT.MASK_FORMAT = masks
        for a in record["annotations"]:
            (a["segmentation"],) = coco_mask.frPyObjects(a["segmentation"], HEIGHT, WIDTH)
    before = copy.deepcopy(record)
    numbers, lefts = set(), set()
    for seed in range(10):
        theirs, ours = map_in_both_ways(mapper_cfg, record, seed)
        # Else all is as in Detectron2, whose classes tell which objects are left.
        assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
        assert ours.gt_classes.tolist() == theirs.gt_classes.tolist()
        assert ours.gt_classes.dtype == theirs.gt_classes.dtype
        fields = {"gt_boxes", "gt_classes"} | ({"gt_masks"} if masks else set())
        assert set(theirs.get_fields()) == fields
        assert set(ours.get_fields()) == fields | {"gt_sample_weight"}
        if masks:
            kind = np.concatenate if masks == "polygon" else torch.stack
            assert len(ours.gt_masks) == len(theirs.gt_masks)
            for a, b in zip(ours.gt_masks, theirs.gt_masks, strict=True):
                assert np.array_equal(kind(list(a)), kind(list(b)))
        assert ours.gt_sample_weight.dtype == torch.float32
        assert ours.gt_sample_weight.tolist() == expected_weights(theirs.gt_classes)
        numbers.add(len(ours))
        lefts.update(ours.gt_boxes.tensor[:1, 0].tolist())
    assert record == before  # the loader hands it out again
    assert len(lefts) > 1  # flipped in some
    # Never the crowd region; crops leave out others.
    assert max(numbers) <= 4 and (len(numbers) > 1) == crop


def test_only_crowd_regions_are_left(mapper_cfg, record):
    record["annotations"] = record["annotations"][3:4]
    _, ours = map_in_both_ways(mapper_cfg, record, seed=0)
    assert ours.gt_sample_weight.shape == (0,)
    assert ours.gt_classes.shape == (0,)


def test_an_image_without_objects_is_cut(mapper_cfg, record):
    """Of cut masks Detectron2 makes boxes, and fails where there are none."""
    mapper_cfg.INPUT.CROP.ENABLED = mapper_cfg.MODEL.MASK_ON = True
    mapper_cfg.INPUT.MASK_FORMAT = "bitmask"
    mapper = NamingDatasetMapper(mapper_cfg, is_train=True)
    for annotations in ([], record["annotations"][3:4]):  # a crowd region
        mapped = mapper({**record, "annotations": annotations})
        assert len(mapped["instances"]) == 0


def test_an_image_without_weights_has_no_such_field(mapper_cfg, record):
    record["annotations"] = record["annotations"][1:2]
    _, ours = map_in_both_ways(mapper_cfg, record, seed=0)
    assert len(ours) == 1 and not ours.has("gt_sample_weight")
    record["annotations"] = []
    _, ours = map_in_both_ways(mapper_cfg, record, seed=0)
    assert len(ours) == 0 and not ours.has("gt_sample_weight")


def test_testing_reads_no_annotations(mapper_cfg, record):
    record["annotations"][0]["sample_weight"] = "unread"
    result = NamingDatasetMapper(mapper_cfg, is_train=False)(record)
    assert set(result) == {"file_name", "image_id", "width", "height", "image"}


@pytest.mark.parametrize(
    "weight", [-1, float("nan"), float("inf"), 1e39, 10**400, "2", None, [1.0], True]
)
def test_a_weight_that_is_none(mapper_cfg, record, weight):
    record["annotations"][2]["sample_weight"] = weight
    with pytest.raises(UserError) as error:
        NamingDatasetMapper(mapper_cfg, is_train=True)(record)
    assert str(error.value) == (
        f"an annotation of image {record['file_name']} (image id 1) has the sample_weight "
        f"{weight!r}, but it must be a number from 0 to 1000000. Correct it, or remove the key."
    )


def test_each_weight_becomes_a_field_of_its_own(mapper_cfg, record):
    record["annotations"][0] |= {"label_weight": 0.5, "box_weight": 0}
    instances = NamingDatasetMapper(mapper_cfg, is_train=True)(record)["instances"]
    assert instances.gt_label_weight.tolist() == [0.5, 1, 1, 1]
    assert instances.gt_box_weight.tolist() == [0, 1, 1, 1]
    assert instances.gt_sample_weight.tolist() == expected_weights(instances.gt_classes)
    record["annotations"][1]["box_weight"] = -1
    with pytest.raises(UserError, match="the box_weight -1, but it must be a number from 0"):
        NamingDatasetMapper(mapper_cfg, is_train=True)(record)


@pytest.mark.parametrize("weight", [0, 2, 0.25, np.float32(0.5), np.float64(2), np.int64(3)])
def test_every_kind_of_number(mapper_cfg, record, weight):
    record["annotations"][0]["sample_weight"] = weight
    instances = NamingDatasetMapper(mapper_cfg, is_train=True)(record)["instances"]
    assert instances.gt_sample_weight[0] == float(weight)


def first_instances(cfg, name):
    """What the trainer's loader hands to a detector."""
    cfg.DATASETS.TRAIN = (name,)
    cfg.MODEL.ROI_HEADS.NAME = "SWNROIHeads"  # which looks at the weights
    (mapped,) = next(iter(SWNTrainer.build_train_loader(cfg)))
    return mapped["instances"]


@pytest.mark.parametrize("kind", ["command line", "Detectron2's function", "stock name", "own"])
def test_every_way_to_name_a_data_set(
    mapper_cfg, record, json_file, tmp_path, clean_catalog, monkeypatch, kind, caplog
):
    name = "weighted"
    if kind == "command line":
        register_coco(name, json_file, str(tmp_path))
    elif kind == "Detectron2's function":
        register_coco_instances(name, {}, json_file, str(tmp_path))
    elif kind == "stock name":
        name = "coco_2017_train"
        monkeypatch.setitem(DatasetCatalog.data, name, DatasetCatalog[name])
        metadata = vars(MetadataCatalog.get(name))
        monkeypatch.setitem(metadata, "json_file", json_file)
        monkeypatch.setitem(metadata, "image_root", str(tmp_path))
    else:
        DatasetCatalog.register(name, lambda: [record])
    own = DatasetCatalog[name]
    with caplog.at_level("INFO", logger="swn_d2"):
        instances = first_instances(mapper_cfg, name)
    assert instances.gt_classes.tolist() == [5, 6, 7, 9]
    assert instances.gt_sample_weight.tolist() == expected_weights(instances.gt_classes)
    if kind == "own":
        assert DatasetCatalog[name] is own  # loads what only it knows
    else:
        assert f"{json_file}: 4 of 5 annotations have a sample_weight." in caplog.text
        once = DatasetCatalog[name]
        keep_sample_weights([name])
        assert DatasetCatalog[name] is once


def test_a_lazy_config(record, json_file, clean_catalog):
    """The lines in docs/data.md, in a loader as Detectron2's LazyConfigs have it."""
    register_coco("weighted", json_file, str(Path(json_file).parent))
    keep_sample_weights(["weighted"])
    loader = LazyCall(build_detection_train_loader)(
        dataset=LazyCall(get_detection_dataset_dicts)(names="weighted"),
        mapper=LazyCall(DatasetMapper)(is_train=True, augmentations=[], image_format="BGR"),
        total_batch_size=1,
        aspect_ratio_grouping=False,
    )
    loader.mapper._target_ = NamingDatasetMapper
    (mapped,) = next(iter(instantiate(loader)))
    assert mapped["instances"].gt_sample_weight.tolist() == [0.5, 1, 3, 0]


def test_without_weights_all_is_loaded_as_before(registered_scenes, caplog):
    before = DatasetCatalog.get(registered_scenes[0])
    with caplog.at_level("INFO", logger="swn_d2"):
        keep_sample_weights(registered_scenes)
        assert DatasetCatalog.get(registered_scenes[0]) == before
    assert "sample_weight" not in caplog.text


def test_an_unknown_name_is_left_to_detectron2(mapper_cfg):
    with pytest.raises(UserError, match="'nowhere' is not registered! Available"):
        first_instances(mapper_cfg, "nowhere")
