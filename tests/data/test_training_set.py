"""The loading of a training set, and the numbers by which its annotations are known."""

import copy
import pickle

import detectron2.data.build
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
)
from detectron2.structures import BoxMode
from PIL import Image

from swn_d2.data import NamingDatasetMapper, load_training_set, number_annotations, training_set
from swn_d2.engine import SWNTrainer
from swn_d2.errors import UserError

WIDTH, HEIGHT = 96, 64
BOXES = [[2, 3, 20, 25], [30, 5, 18, 20], [60, 8, 30, 22], [5, 36, 24, 24], [50, 38, 22, 20]]
WEIGHTS = [0.5, 2.0, 3.0, 7.0, 0.0]
CROWD = 2  # which of them is a crowd region


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "1.png"
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return str(file)


@pytest.fixture
def make_record(picture):
    """Makes a record of the picture with some of the boxes, each of which has its own class."""

    def make(indices, *, image_id=1, has_weights=False):
        annotations = [
            {
                "bbox": BOXES[i],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": i,
                "iscrowd": int(i == CROWD),
            }
            for i in indices
        ]
        if has_weights:
            for annotation in annotations:
                annotation["sample_weight"] = WEIGHTS[annotation["category_id"]]
        return {
            "file_name": picture,
            "image_id": image_id,
            "width": WIDTH,
            "height": HEIGHT,
            "annotations": annotations,
        }

    return make


@pytest.fixture
def train_cfg(cfg):
    cfg.INPUT.MIN_SIZE_TRAIN = (HEIGHT,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SOLVER.IMS_PER_BATCH = 1
    return cfg


def numbers_of(records):
    return [[a["annotation_number"] for a in r.get("annotations", [])] for r in records]


def test_numbers_go_on_from_image_to_image(make_record):
    without_key = make_record([])
    del without_key["annotations"]
    records = [make_record([0, CROWD]), make_record([]), without_key, make_record([3, 1, 0])]
    for _ in range(2):  # doing so twice does no harm
        assert number_annotations(records) == 5
        assert numbers_of(records) == [[0, 1], [], [], [2, 3, 4]]
    assert number_annotations([]) == 0


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("has_weights", [False, True])
def test_numbers_stay_with_their_objects(train_cfg, make_record, has_weights, crop):
    train_cfg.INPUT.CROP.ENABLED = crop
    train_cfg.INPUT.CROP.TYPE, train_cfg.INPUT.CROP.SIZE = "relative", [0.4, 0.4]
    record = make_record([4, 1, CROWD, 0, 3], has_weights=has_weights)
    number_annotations([make_record([0, 1, 2]), record])
    number_of_class = {4: 3, 1: 4, CROWD: 5, 0: 6, 3: 7}
    before = copy.deepcopy(record)
    mappers = [mapper(train_cfg, is_train=True) for mapper in (DatasetMapper, NamingDatasetMapper)]
    fields = {"gt_boxes", "gt_classes", "gt_annotation"}
    seen, lengths, lefts = set(), set(), set()
    for seed in range(10):
        instances = []
        for mapper in mappers:
            np.random.seed(seed)
            instances.append(mapper(record)["instances"])
        theirs, ours = instances
        # Else all is as in Detectron2, whose classes tell which objects are left.
        assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
        assert ours.gt_classes.tolist() == theirs.gt_classes.tolist()
        assert ours.gt_annotation.dtype == torch.int64
        assert ours.gt_annotation.tolist() == [number_of_class[c] for c in ours.gt_classes.tolist()]
        if has_weights:
            assert ours.gt_sample_weight.tolist() == [WEIGHTS[c] for c in ours.gt_classes.tolist()]
        assert set(ours.get_fields()) == fields | ({"gt_sample_weight"} if has_weights else set())
        seen.update(ours.gt_annotation.tolist())
        lengths.add(len(ours))
        lefts.update(ours.gt_boxes.tensor[:1, 0].tolist())
    assert record == before  # the loader hands it out again
    assert len(lefts) > 1  # flipped in some
    assert seen == {3, 4, 6, 7}  # never the crowd region
    assert (len(lengths) > 1) == crop  # which leaves out others


def test_images_with_nothing_to_number(train_cfg, make_record):
    mapper = NamingDatasetMapper(train_cfg, is_train=True)
    only_crowd, empty = make_record([CROWD]), make_record([])
    number_annotations([only_crowd, empty])
    instances = mapper(only_crowd)["instances"]
    assert instances.gt_annotation.shape == instances.gt_classes.shape == (0,)
    assert len(mapper(empty)["instances"]) == 0


def test_without_numbers_there_is_no_such_field(train_cfg, make_record):
    for has_weights in (False, True):
        record = make_record([0, 1], has_weights=has_weights)
        instances = NamingDatasetMapper(train_cfg, is_train=True)(record)["instances"]
        assert len(instances) == 2 and not instances.has("gt_annotation")


def test_testing_reads_no_numbers(train_cfg, make_record):
    record = make_record([0, 1])
    number_annotations([record])
    result = NamingDatasetMapper(train_cfg, is_train=False)(record)
    assert "instances" not in result and "annotations" not in result


@pytest.fixture
def two_sets(train_cfg, make_record, clean_catalog):
    """A config of two training sets, of whose images two have no objects to train on."""
    first = [make_record([0, 1], image_id=1), make_record([], image_id=2)]
    second = [make_record([CROWD], image_id=3), make_record([4, CROWD, 3], image_id=4)]
    for name, records in (("first", first), ("second", second)):
        DatasetCatalog.register(name, lambda records=records: copy.deepcopy(records))
        MetadataCatalog.get(name).thing_classes = list("abcde")
    train_cfg.DATASETS.TRAIN = ("first", "second")
    return train_cfg


@pytest.mark.parametrize(
    "filter_empty, numbers", [(True, [[0, 1], [2, 3, 4]]), (False, [[0, 1], [], [2], [3, 4, 5]])]
)
def test_two_training_sets_are_numbered_as_one(two_sets, filter_empty, numbers):
    two_sets.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
    records = load_training_set(two_sets)
    assert number_annotations(records) == sum(map(len, numbers))
    assert numbers_of(records) == numbers


def test_the_loader_hands_on_what_is_given(two_sets):
    dataset = load_training_set(two_sets)
    number_annotations(dataset)
    batches = iter(SWNTrainer.build_train_loader(two_sets, dataset=dataset))
    found = {}
    for _ in range(20):
        (mapped,) = next(batches)
        found[mapped["image_id"]] = mapped["instances"].gt_annotation.tolist()
    assert found == {1: [0, 1], 4: [2, 4]}
    # By itself it loads the same images, without numbers.
    (mapped,) = next(iter(SWNTrainer.build_train_loader(two_sets)))
    assert mapped["image_id"] in found and not mapped["instances"].has("gt_annotation")


def test_loads_what_detectron2_would(train_cfg, make_record, monkeypatch, tmp_path):
    calls = []
    proposals = tmp_path / "one.pkl", tmp_path / "two.pkl"
    for file in proposals:
        file.write_bytes(pickle.dumps({"ids": [1]}))

    def note(*args, **kwargs):
        calls.append((args, kwargs))
        return [make_record([0])]

    for module in (detectron2.data.build, training_set):
        monkeypatch.setattr(module, "get_detection_dataset_dicts", note)
    train_cfg.DATASETS.TRAIN = ("one", "two")
    train_cfg.DATASETS.PROPOSAL_FILES_TRAIN = tuple(map(str, proposals))
    train_cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE = 3
    for is_set in (False, True):
        train_cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = not is_set
        train_cfg.MODEL.KEYPOINT_ON = train_cfg.MODEL.LOAD_PROPOSALS = is_set
        calls.clear()
        build_detection_train_loader(train_cfg, mapper=lambda record: record)
        load_training_set(train_cfg)
        theirs, ours = calls
        assert ours == theirs


def test_a_damaged_png_is_named(tmp_path):
    """Pillow says so by a SyntaxError."""
    file, pixels = tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (300, 300, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(file)
    head, first, second, *rest = file.read_bytes().split(b"IDAT")
    file.write_bytes(b"IDAT".join([head, first]) + b"\0DAT" + b"IDAT".join([second, *rest]))
    mapper = NamingDatasetMapper(get_cfg(), is_train=False)
    with pytest.raises(UserError, match=r"cannot use image .*a\.png \(image id 7\): broken PNG"):
        mapper({"file_name": str(file), "image_id": 7, "width": 300, "height": 300})


def test_weights_that_a_data_set_makes_as_it_is_loaded(two_sets):
    records = DatasetCatalog.get("second")
    records[1]["annotations"][0]["box_weight"] = 0.0
    DatasetCatalog.remove("second")
    DatasetCatalog.register("second", lambda: records)
    two_sets.MODEL.ROI_HEADS.NAME = "SWNROIHeads"
    assert load_training_set(two_sets)
    two_sets.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    with pytest.raises(UserError, match="first, second: 1 annotations .* box_weight, .* no effect"):
        load_training_set(two_sets)
