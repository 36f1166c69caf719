import json
import logging
import math
import shutil

import pytest
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from PIL import Image
from pycocotools import mask as coco_mask

from swn_d2.data import check_datasets, make_digit_scenes, register_coco
from swn_d2.errors import UserError


@pytest.fixture(scope="module")
def small_scenes(tmp_path_factory):
    return make_digit_scenes(tmp_path_factory.mktemp("small") / "s", num_train=3, num_val=1)


class Own:
    """A small data set of a user, registered as ``own``, to be spoilt."""

    def __init__(self, root):
        self.images = root / "train"
        self.file = root / "annotations" / "instances_train.json"
        self.content = json.loads(self.file.read_text())

    def save(self):
        self.file.write_text(json.dumps(self.content))


@pytest.fixture
def own(small_scenes, tmp_path, clean_catalog):
    root = tmp_path / "own"
    shutil.copytree(small_scenes, root)
    own = Own(root)
    register_coco("own", str(own.file), str(own.images))
    return own


@pytest.fixture
def train_cfg(cfg):
    cfg.DATASETS.TRAIN = ("own",)
    return cfg


def message_for(cfg, **kwargs):
    with pytest.raises(UserError) as caught:
        check_datasets(cfg, **kwargs)
    return str(caught.value)


def test_good_data_passes_in_silence(own, train_cfg, caplog):
    train_cfg.DATASETS.TEST = ("own",)
    train_cfg.MODEL.MASK_ON = True
    train_cfg.INPUT.MASK_FORMAT = "bitmask"
    check_datasets(train_cfg)
    assert caplog.records == []


def test_an_unknown_name(own, train_cfg):
    train_cfg.DATASETS.TRAIN = ("digit_scene_train",)
    message = message_for(train_cfg)
    assert "no data set named digit_scene_train. Did you mean digit_scenes_train" in message
    assert "--register-coco NAME" in message
    train_cfg.DATASETS.TRAIN = ("@",)
    assert "Did you mean" not in message_for(train_cfg)


def test_only_the_test_sets_count_for_an_evaluation(own, train_cfg):
    train_cfg.DATASETS.TRAIN = ("nowhere",)
    train_cfg.DATASETS.TEST = ("own",)
    check_datasets(train_cfg, eval_only=True)
    train_cfg.DATASETS.TEST = ("nowhere",)
    assert "nowhere" in message_for(train_cfg, eval_only=True)


def test_a_stock_data_set_that_is_not_on_disk(train_cfg):
    train_cfg.DATASETS.TRAIN = ("coco_2017_train",)
    message = message_for(train_cfg)
    assert "coco_2017_train: there is no annotation file" in message
    assert "DETECTRON2_DATASETS" in message


def test_digit_scenes_that_were_not_made(train_cfg, clean_catalog, tmp_path):
    file = tmp_path / "digit_scenes" / "annotations" / "instances_x.json"
    file.parent.mkdir(parents=True)
    file.touch()
    register_coco("digit_scenes_x", str(file), str(tmp_path))
    file.unlink()
    train_cfg.DATASETS.TRAIN = ("digit_scenes_x",)
    command = f"tools/make_digit_scenes.py --output {tmp_path / 'digit_scenes'}"
    assert message_for(train_cfg).endswith(command)


@pytest.mark.parametrize("text", ["", "{", "\x00", '{"images": [}'])
def test_a_file_that_is_not_json(own, train_cfg, text):
    own.file.write_text(text)
    assert f"{own.file} is not valid JSON" in message_for(train_cfg)


def remove(section, index, key):
    def spoil(content):
        del content[section][index][key]

    return spoil


def change(section, index, **values):
    def spoil(content):
        content[section][index].update(values)

    return spoil


MALFORMED = {
    "no images": (lambda c: c.pop("images"), 'it has no "images"'),
    "two sections": (
        lambda c: (c.pop("annotations"), c.pop("categories")),
        'it has no "categories", "annotations"',
    ),
    "not a list": (lambda c: c.update(annotations={}), '"annotations" is not a list of objects'),
    "not objects": (lambda c: c.update(images=[1]), '"images" is not a list of objects'),
    "empty images": (lambda c: c.update(images=[]), '"images" is empty'),
    "empty categories": (lambda c: c.update(categories=[]), '"categories" is empty'),
    "no width": (
        remove("images", 1, "width"),
        '1 of 3 entries in "images" have no "width"; the first is id 2',
    ),
    "no id": (remove("images", 1, "id"), '"images" have no "id"; the first is number 2 in the'),
    "text width": (change("images", 2, width="192"), "image 3 has width '192' and height 160"),
    "zero height": (change("images", 0, height=0), "image 1 has width 192 and height 0"),
    "same image id": (change("images", 1, id=1), 'once in "images"; the first is 1'),
    "no bbox": (
        remove("annotations", 1, "bbox"),
        '"annotations" have no "bbox"; the first is id 2',
    ),
    "same annotation id": (change("annotations", 1, id=1), 'once in "annotations"; the first is 1'),
    "unknown image": (
        change("annotations", 1, image_id=99),
        'an image_id that is not in "images" (1 in all): annotation 2 of image 99',
    ),
    "unknown category": (
        change("annotations", 0, category_id=0),
        'a category_id that is not in "categories" (1 in all): annotation 1 of image 1',
    ),
    "negative size": (
        change("annotations", 0, bbox=[50, 50, -10, 5]),
        "a bbox of negative size (COCO wants x, y, width, height) (1 in all): annotation 1 of ",
    ),
    "outside": (
        change("annotations", 0, bbox=[192, 0, 5, 5]),
        "a bbox wholly outside its image (1 in all): annotation 1 of image 1",
    ),
    "outside, negative": (change("annotations", 0, bbox=[-9, 3, 9, 5]), "wholly outside its image"),
    "NaN": (change("annotations", 0, bbox=[1, 2, math.nan, 4]), "not four finite numbers"),
    "infinite": (change("annotations", 0, bbox=[1, 2, math.inf, 4]), "not four finite numbers"),
    "three numbers": (change("annotations", 0, bbox=[1, 2, 3]), "not four finite numbers"),
    "no box": (change("annotations", 0, bbox=None), "not four finite numbers"),
    "text box": (change("annotations", 0, bbox=["1", "2", "3", "4"]), "not four finite numbers"),
    "nothing to learn": (
        lambda c: [a.update(iscrowd=1) for a in c["annotations"]],
        "has no annotation to train on",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_named_with_what_is_wrong(own, train_cfg, case):
    spoil, expected = MALFORMED[case]
    spoil(own.content)
    own.save()
    message = message_for(train_cfg)
    assert str(own.file) in message
    assert expected in message


def test_a_list_is_not_coco(own, train_cfg):
    own.file.write_text("[]")
    assert 'has no "images", "categories", "annotations"' in message_for(train_cfg)


def test_many_faults_are_counted_and_the_first_few_named(own, train_cfg):
    for annotation in own.content["annotations"]:
        annotation["bbox"][2] *= -1
    own.content["annotations"][0]["category_id"] = 11
    own.save()
    count = len(own.content["annotations"]) - 1
    assert count > 3
    message = message_for(train_cfg)
    assert 'not in "categories" (1 in all): annotation 1 of image 1; ' in message
    assert f"({count} in all): annotation 2 of image" in message
    assert message.count("annotation ") == 1 + 3
    assert message.endswith(" and others.")


@pytest.mark.parametrize("key", ["area", "iscrowd"])
def test_keys_that_only_the_evaluation_needs(own, train_cfg, key):
    del own.content["annotations"][0][key]
    own.save()
    check_datasets(train_cfg)
    train_cfg.DATASETS.TEST = ("own",)
    assert f'"annotations" have no "{key}"; the first is id 1' in message_for(train_cfg)


def test_a_test_set_may_have_no_annotations(own, train_cfg):
    del own.content["annotations"]
    own.save()
    assert 'has no "annotations"' in message_for(train_cfg)
    train_cfg.DATASETS.TRAIN, train_cfg.DATASETS.TEST = (), ("own",)
    check_datasets(train_cfg)


def test_masks_that_the_config_cannot_read(own, train_cfg):
    train_cfg.MODEL.MASK_ON = True
    message = message_for(train_cfg)  # Detectron2's default is polygons
    assert "a run-length mask (add the override INPUT.MASK_FORMAT bitmask)" in message
    train_cfg.INPUT.MASK_FORMAT = "bitmask"
    check_datasets(train_cfg)
    del own.content["annotations"][1]["segmentation"]
    own.save()
    assert '"annotations" have no "segmentation"; the first is id 2' in message_for(train_cfg)
    train_cfg.MODEL.MASK_ON = False
    check_datasets(train_cfg)


def test_oddities_of_stock_coco_pass_with_one_warning(own, train_cfg, caplog):
    annotations = own.content["annotations"]
    base = annotations[0]
    crowd_mask = coco_mask.frPyObjects([[0, 0, 50, 0, 50, 50]], 160, 192)[0]
    crowd_mask["counts"] = crowd_mask["counts"].decode()
    odd = [
        {"bbox": [0, 9.5, 100, 0], "segmentation": [[0, 9.5, 100, 9.5, 50, 9.5]]},
        {"bbox": [192, 160, 0, 0], "segmentation": [[192, 160, 192, 160, 192, 160]]},
        {"bbox": [150, 100, 80.25, 70], "segmentation": [[150, 100, 230.25, 100, 200, 170]]},
        {"bbox": [-0.4, 0, 50, 50], "segmentation": [[0, 0, 50, 0, 50, 50]]},
        {"bbox": [0, 0, 50, 50], "segmentation": crowd_mask, "iscrowd": 1},
    ]
    own.content["annotations"] = [
        {**base, "image_id": 1, **values, "id": 1000 + i} for i, values in enumerate(odd)
    ]
    own.save()
    train_cfg.MODEL.MASK_ON = True
    train_cfg.DATASETS.TEST = ("own",)
    with caplog.at_level(logging.WARNING):
        check_datasets(train_cfg)
    (record,) = caplog.records
    assert "2 boxes have no area and 1 reach more than a pixel beyond" in record.message
    # What the warning says is what Detectron2 does: two boxes remain, both inside the image.
    mapper = DatasetMapper(train_cfg, is_train=True, augmentations=[])
    boxes = mapper(DatasetCatalog.get("own")[0])["instances"].gt_boxes.tensor
    assert boxes.tolist() == [[150, 100, 192, 160], [0, 0, 49.599998474121094, 50]]


def test_number_of_classes(own, train_cfg):
    train_cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    message = message_for(train_cfg)
    assert "own has 10 categories, but MODEL.ROI_HEADS.NUM_CLASSES is 80" in message
    assert message.endswith("MODEL.ROI_HEADS.NUM_CLASSES 10")
    train_cfg.MODEL.META_ARCHITECTURE = "SWNRetinaNet"
    train_cfg.MODEL.RETINANET.NUM_CLASSES = 3
    assert message_for(train_cfg).endswith("MODEL.RETINANET.NUM_CLASSES 10")
    train_cfg.MODEL.RETINANET.NUM_CLASSES = 10
    check_datasets(train_cfg)
    train_cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"  # knows no classes
    check_datasets(train_cfg)


def test_categories_that_differ(own, train_cfg, clean_catalog):
    """As many, but not the same: the evaluation would count digits as other digits."""
    other = own.file.with_name("other.json")
    content = json.loads(own.file.read_text())
    content["categories"][3]["name"] = "three"
    other.write_text(json.dumps(content))
    register_coco("other", str(other), str(own.images))
    train_cfg.DATASETS.TEST = ("other",)
    message = message_for(train_cfg)
    assert "own and other differ" in message and "number 4 is '3' in one and 'three'" in message


def test_a_value_of_the_wrong_type(own, train_cfg):
    own.content["images"][0]["file_name"] = 17
    own.save()
    assert f"{own.file} has a value of the wrong type" in message_for(train_cfg)


def test_a_test_set_that_can_not_be_evaluated(own, train_cfg, clean_catalog):
    DatasetCatalog.register("of_a_kind", lambda: [])
    MetadataCatalog.get("of_a_kind").evaluator_type = "lvis"
    train_cfg.DATASETS.TEST = ("of_a_kind",)
    assert "of_a_kind, whose evaluator type is 'lvis'" in message_for(train_cfg)


def test_images_that_are_missing(own, train_cfg):
    (own.images / "000002.jpg").unlink()
    (own.images / "000003.jpg").unlink()
    message = message_for(train_cfg)
    assert f"2 of 3 files that {own.file} names do not exist" in message
    assert str(own.images / "000002.jpg") in message
    shutil.rmtree(own.images)
    assert "3 of 3 files" in message_for(train_cfg)


def test_an_image_that_is_no_picture(own, train_cfg):
    (own.images / "000002.jpg").write_text("not a picture")
    message = message_for(train_cfg)
    assert f"Cannot read {own.images / '000002.jpg'}, image 2 of {own.file}" in message


def test_an_image_of_another_size(own, train_cfg):
    path = own.images / "000002.jpg"
    Image.new("RGB", (160, 192)).save(path)
    message = message_for(train_cfg)
    assert f"{path} is 160x192 pixels, but image 2 of {own.file} says 192x160" in message
    # Detectron2 turns pictures the way EXIF asks for; so must the check.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (160, 192)).save(path, exif=exif)
    check_datasets(train_cfg)
    mapper = DatasetMapper(train_cfg, is_train=True, augmentations=[])
    assert mapper(DatasetCatalog.get("own")[1])["image"].shape == (3, 160, 192)


VOC_XML = """<annotation><size><width>64</width><height>48</height><depth>3</depth></size><object>
<name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax>
<ymax>30</ymax></bndbox></object></annotation>"""


def test_pascal_voc(tmp_path, clean_catalog, train_cfg):
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    for image_id in ("000005", "000007"):
        (tmp_path / "Annotations" / f"{image_id}.xml").write_text(VOC_XML)
        Image.new("RGB", (64, 48)).save(tmp_path / "JPEGImages" / f"{image_id}.jpg")
    listing = tmp_path / "ImageSets" / "Main" / "train.txt"
    register_pascal_voc("own_voc", str(tmp_path), "train", 2007)
    MetadataCatalog.get("own_voc").evaluator_type = "pascal_voc"  # as for Detectron2's own names
    train_cfg.DATASETS.TRAIN = ("own_voc",)
    train_cfg.MODEL.ROI_HEADS.NUM_CLASSES = 20

    assert f"own_voc: there is no file {listing}" in message_for(train_cfg)
    listing.touch()
    assert f"{listing} names no image" in message_for(train_cfg)
    listing.write_text("000005\n000007\n")
    check_datasets(train_cfg)
    assert len(DatasetCatalog.get("own_voc")) == 2
    train_cfg.MODEL.ROI_HEADS.NUM_CLASSES = 10
    assert message_for(train_cfg).endswith("MODEL.ROI_HEADS.NUM_CLASSES 20")
    (tmp_path / "JPEGImages" / "000007.jpg").unlink()
    message = message_for(train_cfg)
    assert "1 of 2 files" in message and "JPEGImages/000007.jpg" in message
    (tmp_path / "Annotations" / "000005.xml").unlink()
    assert "Annotations/000005.xml" in message_for(train_cfg)
