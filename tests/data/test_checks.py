import json
import logging
import math
import re
import shutil
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from swn_d2.data import check_datasets, make_digit_scenes, register_coco, register_voc
from swn_d2.errors import UserError
from swn_d2.own import note_own, recall
from tests.voc import CLASSES, voc_object, write_voc


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


def test_an_object_that_the_evaluation_never_finds(own, train_cfg, caplog):
    own.content["annotations"][0]["id"] = 0
    own.save()
    check_datasets(train_cfg)
    assert not caplog.records
    train_cfg.DATASETS.TEST = ("own",)
    check_datasets(train_cfg)
    assert "an annotation has the id 0, which COCO's evaluation takes for none" in caplog.text


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


@pytest.fixture
def foreign(own, tmp_path, clean_catalog):
    """A test set that a config of ours might have, as Detectron2 registers it."""
    file = tmp_path / "foreign.json"
    content = json.loads(own.file.read_text())
    content["categories"] = content["categories"][:3]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] <= 3]
    file.write_text(json.dumps(content))
    register_coco_instances("foreign", {}, str(file), str(own.images))
    return file


def test_a_test_set_that_was_forgotten(own, train_cfg, foreign):
    train_cfg.DATASETS.TEST = ("foreign",)
    for _ in range(2):  # it is of other classes; it is not there
        message = message_for(train_cfg)
        assert message.startswith("DATASETS.TEST has foreign, which does not go with your own data")
        assert re.search(r'; add DATASETS.TEST \w+, or DATASETS.TEST "\(\)" for no', message)
        foreign.unlink(missing_ok=True)
    shutil.copy(own.file, own.file.with_name("val.json"))
    register_coco("own_val", str(own.file.with_name("val.json")), str(own.images))
    assert "add DATASETS.TEST own_val, or" in message_for(train_cfg)
    train_cfg.DATASETS.TRAIN = ("foreign",)  # nothing is forgotten
    assert "foreign: there is no annotation file" in message_for(train_cfg)
    train_cfg.DATASETS.TRAIN, train_cfg.DATASETS.TEST = ("own",), ("own_vla",)
    assert "no data set named own_vla. Did you mean own_val" in message_for(train_cfg)


def test_another_mistake_of_a_foreign_test_set_is_told(own, train_cfg, foreign):
    content = json.loads(foreign.read_text())
    del content["images"]
    foreign.write_text(json.dumps(content))
    train_cfg.DATASETS.TEST = ("foreign",)
    assert 'foreign.json is not in COCO format: it has no "images"' in message_for(train_cfg)


def test_classes_that_are_no_longer_those_of_the_run(own, train_cfg, tmp_path, clean_catalog):
    MetadataCatalog.get("own").thing_classes = list("0123456789")
    note_own(tmp_path / "run", train_cfg)
    DatasetCatalog.remove("own")
    MetadataCatalog.remove("own")
    recall(tmp_path / "run")
    check_datasets(train_cfg)
    own.content["categories"][3]["name"] = "three"
    own.save()
    message = message_for(train_cfg)
    assert "own has the categories 0, 1, 2, three, 4, 5" in message
    assert f"for {tmp_path / 'run'} it had 0, 1, 2, 3, 4, 5" in message


def test_a_value_of_the_wrong_type(own, train_cfg):
    own.content["images"][0]["file_name"] = 17
    own.save()
    expected = (
        '1 of 3 entries in "images" have a "file_name" that is not a text; the first is id 1.'
    )
    assert message_for(train_cfg) == f"{own.file}: {expected}"


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


@pytest.fixture
def voc(tmp_path, clean_catalog, train_cfg):
    """A VOC folder to be spoilt. Its data set ``own_voc`` ignores difficult objects; ``stock_voc``
    is the same as Detectron2 registers it."""
    objects = [voc_object(), voc_object("cat", difficult=1)]
    root = Path(write_voc(tmp_path, {"000005": objects, "000007": [voc_object()]}))
    register_voc("own_voc", str(root), "train", CLASSES)
    register_pascal_voc("stock_voc", str(root), "train", 2007, CLASSES)
    MetadataCatalog.get("stock_voc").evaluator_type = "pascal_voc"
    train_cfg.DATASETS.TRAIN = ("own_voc",)
    train_cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    return root


def test_good_voc_passes(voc, train_cfg, caplog):
    train_cfg.DATASETS.TRAIN = train_cfg.DATASETS.TEST = ("own_voc", "stock_voc")
    check_datasets(train_cfg)
    assert caplog.records == []


def test_voc_files(voc, train_cfg):
    listing = voc / "ImageSets" / "Main" / "train.txt"
    train_cfg.MODEL.ROI_HEADS.NUM_CLASSES = 20
    assert message_for(train_cfg).endswith("MODEL.ROI_HEADS.NUM_CLASSES 2")
    (voc / "JPEGImages" / "000007.jpg").unlink()
    message = message_for(train_cfg)
    assert "1 of 2 files" in message and "JPEGImages/000007.jpg" in message
    (voc / "Annotations" / "000005.xml").unlink()
    assert "Annotations/000005.xml" in message_for(train_cfg)
    listing.write_text("000007\n000005\n000007\n")
    assert f"{listing} names 000007 more than once" in message_for(train_cfg)
    listing.write_text("")
    assert f"{listing} names no image" in message_for(train_cfg)
    listing.unlink()
    assert f"own_voc: there is no file {listing}" in message_for(train_cfg)


def test_voc_with_one_image(voc, train_cfg):
    (voc / "ImageSets" / "Main" / "train.txt").write_text("000005\n")
    assert "names only one image; Detectron2 needs two" in message_for(train_cfg)
    with pytest.raises(TypeError):  # which says no more than this
        DatasetCatalog.get("stock_voc")


@pytest.mark.parametrize("name", ["own_voc", "stock_voc"])
def test_malformed_voc(voc, train_cfg, name):
    """One case; tests/data/test_voc.py has them all."""
    file = voc / "Annotations" / "000007.xml"
    file.write_text(file.read_text().replace("<pose>Left</pose>", ""))
    train_cfg.DATASETS.TRAIN = (name,)
    check_datasets(train_cfg)
    train_cfg.DATASETS.TEST = (name,)
    assert f"{file}: object number 1 has no <pose>" in message_for(train_cfg)
    file.write_text("<annotation>")
    assert f"{file} is not valid XML" in message_for(train_cfg)


def test_a_voc_image_of_another_size(voc, train_cfg):
    path = voc / "JPEGImages" / "000007.jpg"
    Image.new("RGB", (160, 200)).save(path)
    message = message_for(train_cfg)
    assert f"{path} is 160x200 pixels, but {voc / 'Annotations' / '000007.xml'} says" in message


def test_voc_has_no_masks(voc, train_cfg):
    train_cfg.MODEL.MASK_ON = True
    assert message_for(train_cfg).endswith("add the override MODEL.MASK_ON False.")
    train_cfg.DATASETS.TEST = ("own_voc",)
    check_datasets(train_cfg, eval_only=True)  # of its boxes


def test_voc_with_nothing_to_learn(voc, train_cfg):
    write_voc(voc, {"1": [voc_object(difficult=1)], "2": []})
    expected = "2 images, whose annotations have 1 objects, all of them difficult"
    assert expected in message_for(train_cfg)
    train_cfg.DATASETS.TRAIN = ("stock_voc",)  # trains on them, but can't evaluate
    check_datasets(train_cfg)
    train_cfg.DATASETS.TEST = ("stock_voc",)
    assert expected in message_for(train_cfg)
    write_voc(voc, {"1": [], "2": []})
    train_cfg.DATASETS.TEST = ()
    assert "2 images, none of which has an object" in message_for(train_cfg)


TRIANGLE = [0, 0, 50, 0, 50, 50]
RUNS = {"size": [160, 192], "counts": [100, 20, 160 * 192 - 120]}
NOT_POLYGONS = "a segmentation that is not a list of polygons"
NOT_FINITE = "a polygon that is not a list of finite numbers"

# segmentation -> what is wrong with it, with polygons and with bitmasks alike.
MALFORMED_MASKS = {
    "none": (None, "an empty segmentation"),
    "empty": ([], "an empty segmentation"),
    "text": ("0 0 50 0 50 50", NOT_POLYGONS),
    "flat": (TRIANGLE, NOT_POLYGONS),
    "text in a polygon": ([["0", 0, 50, 0, 50, 50]], NOT_FINITE),
    "points": ([[[0, 0], [50, 0], [50, 50]]], NOT_FINITE),
    "NaN": ([TRIANGLE, [math.nan, *TRIANGLE[1:]]], NOT_FINITE),
    "null": ([[None, *TRIANGLE[1:]]], NOT_FINITE),
}
MALFORMED_RUNS = {
    "no counts": ({"size": [160, 192]}, '"counts" are neither text nor a list of whole'),
    "no size": ({"counts": [30720]}, '"size" is not [height, width] '),
    "three sizes": ({**RUNS, "size": [160, 192, 1]}, '"size" is not [height, width] '),
    "size turned": ({**RUNS, "size": [192, 160]}, '"size" is not the [height, width] of its'),
    "too many": ({**RUNS, "counts": [100, 20, 160 * 192]}, "do not add up to the pixels"),
    "too few": ({**RUNS, "counts": [100, 20]}, "do not add up to the pixels"),
    "negative": ({**RUNS, "counts": [160 * 192 + 5, -5]}, '"counts" are neither'),
    "fractions": ({**RUNS, "counts": [0.5, 160 * 192 - 0.5]}, '"counts" are neither'),
    "garbage": ({**RUNS, "counts": "garbage"}, "a run-length mask that can't be decoded"),
}


def use_masks(train_cfg, mask_format):
    train_cfg.MODEL.MASK_ON = True
    train_cfg.INPUT.MASK_FORMAT = mask_format


def set_masks(own, masks):
    """One image whose objects have these masks."""
    base = {**own.content["annotations"][0], "bbox": [0, 0, 50, 50], "image_id": 1}
    own.content["annotations"] = [
        {**base, "segmentation": mask, "id": 1 + i} for i, mask in enumerate(masks)
    ]
    own.save()


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("case", MALFORMED_MASKS)
def test_malformed_masks(own, train_cfg, case, mask_format):
    mask, expected = MALFORMED_MASKS[case]
    set_masks(own, [[TRIANGLE], mask])
    use_masks(train_cfg, mask_format)
    message = message_for(train_cfg)
    assert message.startswith(f"{own.file} has {expected}")
    assert message.endswith("(1 in all): annotation 2 of image 1.")
    if case in ("none", "empty", "flat"):
        # Detectron2 stops there, each time in another way. Of the others it drops some; of a NaN it
        # makes a bitmask only when the memory lasts.
        with pytest.raises((AttributeError, KeyError, TypeError, ValueError)):
            load_and_map(train_cfg)


def test_masks_of_which_none_counts(own, train_cfg):
    train_cfg.MODEL.ROI_HEADS.NAME = "SWNROIHeads"
    set_masks(own, [[TRIANGLE]])
    own.content["annotations"][0]["mask_weight"] = 0
    own.save()
    check_datasets(train_cfg)  # nobody learns masks
    use_masks(train_cfg, "polygon")
    assert "a mask_weight of 0 throughout, so that no mask is learned" in message_for(train_cfg)


@pytest.mark.parametrize("case", MALFORMED_RUNS)
def test_malformed_run_lengths(own, train_cfg, case):
    mask, expected = MALFORMED_RUNS[case]
    set_masks(own, [[TRIANGLE], mask])
    use_masks(train_cfg, "bitmask")
    message = message_for(train_cfg)
    assert message.startswith(f"{own.file} has a run-length mask")
    assert expected in message
    assert message.endswith("(1 in all): annotation 2 of image 1.")


def load_and_map(cfg):
    """The instances of the first image, as Detectron2 loads them for training."""
    mapper = DatasetMapper(cfg, is_train=True, augmentations=[])
    instances = mapper(DatasetCatalog.get("own")[0])["instances"]
    return instances, instances.gt_masks


def test_sound_masks_of_all_forms(own, train_cfg, caplog):
    compressed = coco_mask.frPyObjects(RUNS, 160, 192)
    compressed["counts"] = compressed["counts"].decode()
    set_masks(own, [[TRIANGLE], RUNS, compressed])
    use_masks(train_cfg, "bitmask")
    train_cfg.DATASETS.TEST = ("own",)
    check_datasets(train_cfg)
    assert caplog.records == []
    _, masks = load_and_map(train_cfg)
    # 20 pixels of runs, twice.
    assert masks.tensor.flatten(1).sum(1)[1:].tolist() == [20, 20]


def test_polygons_that_detectron2_drops_are_counted(own, train_cfg, caplog):
    line, odd = [0, 0, 50, 50], [*TRIANGLE, 9]
    set_masks(own, [[TRIANGLE], [TRIANGLE, line], [line, odd], [odd]])
    use_masks(train_cfg, "polygon")
    with caplog.at_level(logging.WARNING):
        check_datasets(train_cfg)
    (record,) = caplog.records
    assert "4 polygons do not have three or more points" in record.message
    assert "and 2 objects that have no other polygon" in record.message
    _, masks = load_and_map(train_cfg)
    assert [len(polygons) for polygons in masks.polygons] == [1, 1]


def test_no_sound_polygon_at_all(own, train_cfg):
    """Such as boxes in place of polygons."""
    set_masks(own, [[[0, 0, 50, 50]]] * 3)
    own.content["annotations"][0]["iscrowd"] = 1
    own.save()
    message = message_for(train_cfg)
    assert (
        "no annotation to train on: of 3, 1 are crowd regions, 0 have a box without area and 2 "
        "have no polygon of three" in message
    )


def test_masks_that_are_not_used(own, train_cfg):
    """They may be anything that Detectron2 can load."""
    set_masks(own, [None, [], {**RUNS, "size": [1, 1]}, [["0", 0, 50, 0, 50, 50]]])
    check_datasets(train_cfg)
    assert len(DatasetCatalog.get("own")[0]["annotations"]) == 4
    for mask in (TRIANGLE, {"size": [160, 192]}):
        set_masks(own, [[TRIANGLE], mask])
        assert "annotation 2 of image 1" in message_for(train_cfg)
        with pytest.raises((TypeError, KeyError)):
            DatasetCatalog.get("own")


def test_a_crowd_s_empty_mask_is_not_used(own, train_cfg):
    set_masks(own, [[TRIANGLE], {}])
    own.content["annotations"][1]["iscrowd"] = 1
    own.save()
    use_masks(train_cfg, "polygon")
    check_datasets(train_cfg)
    own.content["annotations"][1]["iscrowd"] = 0
    own.save()
    assert "annotation 2 of image 1" in message_for(train_cfg)


def test_masks_that_only_end_the_evaluation(own, train_cfg):
    set_masks(own, [[TRIANGLE], [[0, 0, 50, 50], TRIANGLE]])
    use_masks(train_cfg, "polygon")
    check_datasets(train_cfg)
    train_cfg.DATASETS.TEST = ("own",)
    assert "which ends the evaluation (take it out) (1 in all): anno" in message_for(train_cfg)
    api = COCO(str(own.file))
    with pytest.raises(TypeError):
        api.annToRLE(api.anns[2])
    set_masks(own, [[TRIANGLE], [TRIANGLE, [0, 0, 50, 50]]])
    check_datasets(train_cfg, eval_only=True)
    api = COCO(str(own.file))
    assert coco_mask.area(api.annToRLE(api.anns[2])) > 0


@pytest.mark.parametrize("weight", [-0.5, math.nan, math.inf, 1e39, "1.0", None, [1], True])
@pytest.mark.parametrize("key", ["sample_weight", "label_weight", "box_weight"])
def test_weights_that_are_no_weights(own, train_cfg, key, weight):
    for index in (1, 2):
        own.content["annotations"][index][key] = weight
    own.save()
    assert message_for(train_cfg) == (
        f"{own.file} has a {key} that is not a number from 0 to 1000000 (correct it, or "
        "remove it) (2 in all): annotation 2 of image 1, annotation 3 of image 1."
    )
    train_cfg.DATASETS.TEST = ("own",)
    check_datasets(train_cfg, eval_only=True)  # which does not read it


def test_sound_weights(own, train_cfg, caplog):
    for index, weight in enumerate((0, 1, 2.5)):
        own.content["annotations"][index]["sample_weight"] = weight
    own.save()
    train_cfg.MODEL.ROI_HEADS.NAME = "SWNROIHeads"
    check_datasets(train_cfg)
    assert caplog.records == []


def test_what_an_evaluation_of_voc_stops_at(voc, train_cfg):
    train_cfg.DATASETS.TEST = ("own_voc",)
    listing = voc / "ImageSets" / "Main" / "train.txt"
    listing.write_text(listing.read_text() + "\n")
    assert "has an empty line, at which an evaluation stops" in message_for(train_cfg)
    train_cfg.DATASETS.TEST = ()
    check_datasets(train_cfg)  # a training reads the words
    listing.write_text("000005\n0#7\n")
    assert "names 0#7, whose name is cut at the #" in message_for(train_cfg)


def test_a_class_of_voc_with_a_slash(tmp_path, train_cfg, clean_catalog):
    root = write_voc(tmp_path, {"1": [voc_object("n/a")], "2": []})
    register_voc("slash", root, "train", ["n/a"])
    train_cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    train_cfg.DATASETS.TRAIN = ("slash",)
    check_datasets(train_cfg)
    train_cfg.DATASETS.TEST = ("slash",)
    assert "the class 'n/a' has a slash in its name" in message_for(train_cfg)


def test_keypoints_that_a_detector_of_keypoints_learns(own, train_cfg):
    train_cfg.MODEL.KEYPOINT_ON = True
    train_cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 3
    objects = own.content["annotations"]
    check_datasets(train_cfg)  # pictures of which no object has any are left out
    of_first = [a for a in objects if a["image_id"] == objects[0]["image_id"]]
    assert 2 < len(of_first) < len(objects)
    of_first[0]["keypoints"] = [1, 2, 2] * 3
    own.save()
    told = f'a "keypoints" that is not of 9 numbers .* \\({len(of_first) - 1} in all'
    assert re.search(told, message_for(train_cfg))
    for annotation in of_first[1:]:
        annotation["keypoints"] = [1, 2, 2] * 3
    of_first[1]["iscrowd"] = 1
    del of_first[1]["keypoints"]
    own.save()
    check_datasets(train_cfg)
    # The evaluation looks at all of them, crowd regions included.
    train_cfg.DATASETS.TEST = ("own",)
    assert 'no "num_keypoints"' in message_for(train_cfg)
    for annotation in objects:
        annotation |= {"keypoints": [0] * 9, "num_keypoints": 0}
    of_first[1]["keypoints"] = []
    own.save()
    assert f"(1 in all): annotation {of_first[1]['id']}" in message_for(train_cfg)


def test_a_mask_is_made_with_as_many_pixels_as_a_picture_has(own, train_cfg):
    for image in own.content["images"]:
        image["width"] = float(image["width"])
    own.save()
    train_cfg.MODEL.MASK_ON = True
    train_cfg.INPUT.MASK_FORMAT = "bitmask"
    check_datasets(train_cfg)
    train_cfg.DATASETS.TEST = ("own",)
    assert "must be positive whole numbers of pixels" in message_for(train_cfg)


def test_a_name_twice(own, train_cfg):
    train_cfg.DATASETS.TEST = ("own", "own")
    assert "DATASETS.TEST has a name twice: own, own" in message_for(train_cfg)


@pytest.mark.parametrize(
    "key, told", [("box_weight", "a box_weight of 0 throughout"), (None, "no annotation to train")]
)
def test_what_one_data_set_lacks_another_may_have(own, train_cfg, key, told):
    content = {**own.content, "annotations": [dict(a) for a in own.content["annotations"]]}
    if key is None:
        content["annotations"] = []
    for annotation in content["annotations"]:
        annotation[key] = 0
    without = own.file.with_name("without.json")
    without.write_text(json.dumps(content))
    register_coco("without", str(without), str(own.images))
    train_cfg.MODEL.ROI_HEADS.NAME = "SWNROIHeads"
    train_cfg.DATASETS.TRAIN = ("own", "without")
    check_datasets(train_cfg)
    for names in (("without",), ("without", "without")):
        train_cfg.DATASETS.TRAIN = names
        assert told in message_for(train_cfg)
