import pytest
import torch
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets.pascal_voc import CLASS_NAMES

from swn_d2 import SWNTrainer
from swn_d2.data import register_all_voc, register_voc
from swn_d2.data.voc import VOCObject, read_voc_annotation
from swn_d2.errors import UserError
from tests.tiny import tiny_config
from tests.voc import CLASSES, voc_object, write_voc

NAMES = [
    f"voc_{year}_{split}_ignore_difficult"
    for year, splits in ((2007, "train val trainval test"), (2012, "train val trainval"))
    for split in splits.split()
]


@pytest.fixture
def folder(tmp_path):
    images = {
        "2008_000002": [
            voc_object("cat", (11, 21, 110, 120), difficult=1),
            voc_object("dog", (1, 1, 200, 160), difficult=0),
            voc_object("cat", (50, 50, 50, 60), difficult=None),
        ],
        "000005": [voc_object(difficult=1)],
        "extra": [],
        "000007": [voc_object("cat", (2.5, 1, 90, 80))],
    }
    return write_voc(tmp_path / "voc", images)


@pytest.fixture
def registered(folder, clean_catalog):
    register_voc("own", folder, "train", CLASSES)
    return "own"


def test_names_after_import():
    for name in NAMES:
        theirs = MetadataCatalog.get(name.removesuffix("_ignore_difficult"))
        ours = MetadataCatalog.get(name)
        assert name in DatasetCatalog
        assert ours.thing_classes == list(CLASS_NAMES)
        for key in ("year", "split", "dirname"):
            assert getattr(ours, key) == getattr(theirs, key)
    assert "voc_2012_test_ignore_difficult" not in DatasetCatalog
    register_all_voc()  # once more does no harm


def test_they_live_under_detectron2_datasets(monkeypatch, tmp_path):
    def forget():
        for name in NAMES:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    try:
        forget()
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        register_all_voc()
        write_voc(tmp_path / "VOC2012", {"a": [], "b": []}, "val")
        assert len(DatasetCatalog.get("voc_2012_val_ignore_difficult")) == 2
    finally:
        forget()
        monkeypatch.undo()
        register_all_voc()


def test_difficult_objects_are_marked_and_all_else_is_detectron2s(registered):
    records = DatasetCatalog.get(registered)
    assert [r["image_id"] for r in records] == ["2008_000002", "000005", "extra", "000007"]
    assert all(type(r["image_id"]) is str for r in records)
    assert [[a["iscrowd"] for a in r["annotations"]] for r in records] == [[1, 0, 0], [1], [], [0]]
    # VOC counts from 1 and includes the last pixel.
    assert records[0]["annotations"][0]["bbox"] == [10, 20, 110, 120]
    assert records[0]["annotations"][0]["category_id"] == 1


def test_training_leaves_them_out(registered):
    """Through Detectron2's own filter and mapper, as the trainer puts them together."""
    kept = get_detection_dataset_dicts([registered])
    assert [r["image_id"] for r in kept] == ["2008_000002", "000007"]
    cfg = tiny_config(
        *("DATASETS.TRAIN", (registered,)),
        *("DATALOADER.NUM_WORKERS", 0),
        *("DATALOADER.ASPECT_RATIO_GROUPING", False),
        *("SOLVER.IMS_PER_BATCH", 2),
        *("INPUT.MIN_SIZE_TRAIN", (160,)),
        *("INPUT.RANDOM_FLIP", "none"),
    )
    batch = {b["image_id"]: b["instances"] for b in next(iter(SWNTrainer.build_train_loader(cfg)))}
    seen = batch["2008_000002"]
    assert seen.gt_classes.tolist() == [0, 1]
    assert torch.equal(
        seen.gt_boxes.tensor, torch.tensor([[0.0, 0.0, 200.0, 160.0], [49.0, 49.0, 50.0, 60.0]])
    )


def test_register_twice(folder, registered):
    register_voc(registered, folder, "train", CLASSES)
    with pytest.raises(UserError, match="name own is already taken"):
        register_voc(registered, folder, "val", CLASSES)
    with pytest.raises(UserError, match="name coco_2017_train is already taken"):
        register_voc("coco_2017_train", folder, "train", CLASSES)


MALFORMED = {
    "not XML": ("<annotation>", "<annotation", "is not valid XML"),
    "no size": ("<width>200</width>", "", "the image has no <width>; add it"),
    "no number": ("<xmin>11</xmin>", "<xmin>left</xmin>", "number 2 has 'left' as its <xmin>"),
    "no corner": ("<xmin>11</xmin>", "", "object number 2 has no <xmin>; add it"),
    "infinite": ("<xmax>90</xmax>", "<xmax>inf</xmax>", "'inf' as its <xmax>; it must be a number"),
    "negative": ("<xmax>90</xmax>", "<xmax>10</xmax>", "whose xmax or ymax is smaller than"),
    "outside": (
        "<xmin>11</xmin><ymin>11</ymin><xmax>90</xmax>",
        "<xmin>201</xmin><ymin>11</ymin><xmax>290</xmax>",
        "object number 2 has a box wholly outside its image of 200x160 pixels",
    ),
    "unknown class": ("<name>cat</name>", "<name>cow</name>", "is of the class 'cow', which"),
    "no name": ("<name>cat</name>", "", "object number 2 has no <name>, which is its class"),
    "difficult": ("<difficult>1<", "<difficult>yes<", "'yes' as its <difficult>; it must be a"),
}


@pytest.fixture
def annotation(tmp_path):
    objects = [voc_object(), voc_object("cat", (11, 11, 90, 90), difficult=1)]
    write_voc(tmp_path, {"7": objects})
    return tmp_path / "Annotations" / "7.xml"


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_annotation_is_named(annotation, case):
    before, after, expected = MALFORMED[case]
    text = annotation.read_text()
    assert before in text
    annotation.write_text(text.replace(before, after))
    with pytest.raises(UserError) as caught:
        read_voc_annotation(str(annotation), CLASSES)
    assert str(annotation) in str(caught.value)
    assert expected in str(caught.value)


def test_a_missing_annotation_is_named(annotation):
    annotation.unlink()
    with pytest.raises(UserError, match="Cannot read .*7.xml: No such file"):
        read_voc_annotation(str(annotation), CLASSES)


def test_a_sound_annotation(annotation):
    read = read_voc_annotation(str(annotation), CLASSES, is_evaluated=True)
    assert (read.file_name, read.width, read.height) == ("7.jpg", 200, 160)
    assert read.objects == [
        VOCObject("dog", (1, 1, 100, 100), False),
        VOCObject("cat", (11, 11, 90, 90), True),
    ]
    assert read_voc_annotation(str(annotation), None) == read  # of any classes


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("<xmin>11<", "<xmin>11.5<", "'11.5' as its <xmin>; it must be a whole number"),
        ("<pose>Left</pose>", "", "object number 1 has no <pose>"),
        ("<truncated>0</truncated>", "", "object number 1 has no <truncated>; add it"),
        ("<difficult>1</difficult>", "", "object number 2 has no <difficult>; add it"),
    ],
)
def test_what_only_the_evaluation_needs(annotation, before, after, expected):
    text = annotation.read_text()
    annotation.write_text(text.replace(before, after))
    read_voc_annotation(str(annotation), CLASSES)
    with pytest.raises(UserError, match=expected):
        read_voc_annotation(str(annotation), CLASSES, is_evaluated=True)
