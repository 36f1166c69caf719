import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from swn_d2.data import check_datasets, register_coco
from swn_d2.data.voc_subset import make_voc_subset, voc_part_of
from swn_d2.errors import UserError
from tests.voc import voc_object, write_voc

CONTENTS = {
    "000001": [voc_object("train", (1, 1, 500, 400)), voc_object("dog", (11, 21, 60, 121))],
    "000002": [voc_object("person", (101, 51, 300, 250), difficult=1)],
    "000003": [],
    "000004": [voc_object("tvmonitor", (3, 5, 3, 5), difficult=None)],
    "000005": [voc_object("aeroplane", (1, 1, 2, 2))],
}
NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()


@pytest.fixture
def voc(tmp_path):
    """VOC's layout with five pictures of 500x400 pixels, of which 000001 has a white half."""
    root = tmp_path / "VOC2007"
    write_voc(root, CONTENTS, split="test", size=(500, 400))
    pixels = np.zeros((400, 500, 3), dtype=np.uint8)
    pixels[:, 250:] = 255
    Image.fromarray(pixels).save(root / "JPEGImages" / "000001.jpg", quality=95)
    return root


def parts_of(output):
    return {
        part: json.loads((output / f"{part}.json").read_text())
        for part in ("train", "val", "held_out")
    }


def merged(output, section):
    """The entries of all parts, by id."""
    entries = [entry for part in parts_of(output).values() for entry in part[section]]
    by_id = {entry["id"]: entry for entry in entries}
    assert len(by_id) == len(entries)
    return by_id


def test_which_part_a_picture_is_in():
    for number in range(1, 200):
        name = f"{number:06}.jpg"
        n = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 1000
        assert voc_part_of(name) == ("train" if n < 450 else "val" if n < 690 else "held_out")
    # The first of the data that experiments here were made with.
    assert {voc_part_of(f"{i:06}.jpg") for i in (1, 2, 3, 4, 6, 8, 11, 15)} == {"train"}


def test_makes_small_pictures_and_their_annotations(voc, tmp_path):
    output = tmp_path / "new" / "small"
    numbers = make_voc_subset(voc, output)
    parts = parts_of(output)
    assert numbers == {part: len(content["images"]) for part, content in parts.items()}
    assert sum(numbers.values()) == 5
    for part, content in parts.items():
        assert list(content) == ["images", "annotations", "categories"]
        assert content["categories"] == [{"id": i, "name": n} for i, n in enumerate(NAMES, 1)]
        assert all(voc_part_of(image["file_name"]) == part for image in content["images"])
        ids = {image["id"] for image in content["images"]}
        assert all(a["image_id"] in ids for a in content["annotations"])
    assert merged(output, "images") == {
        i: {"id": i, "file_name": f"{i:06}.jpg", "width": 400, "height": 320} for i in range(1, 6)
    }
    assert list(merged(output, "images")[1]) == ["id", "file_name", "width", "height"]
    # Scaled by 0.8; the last pixel of a box belongs to it.
    rows = [
        (1, 1, 19, [0.0, 0.0, 400.0, 320.0], 128000.0, 0),
        (2, 1, 12, [8.0, 16.0, 40.0, 80.8], 3232.0, 0),
        (3, 2, 15, [80.0, 40.0, 160.0, 160.0], 25600.0, 1),
        (4, 4, 20, [1.6, 3.2, 0.8, 0.8], 0.64, 0),
        (5, 5, 1, [0.0, 0.0, 1.6, 1.6], 2.56, 0),
    ]
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    annotations = merged(output, "annotations")
    assert [annotations[row[0]] for row in rows] == [dict(zip(keys, r, strict=True)) for r in rows]
    assert len(annotations) == len(rows) and list(annotations[1]) == list(keys)

    assert sorted(p.name for p in output.iterdir()) == sorted(
        ["images", *(f"{part}.json" for part in parts)]
    )
    files = sorted((output / "images").iterdir())
    assert [file.stem for file in files] == list(CONTENTS)
    with Image.open(files[0]) as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (400, 320))
        pixels = np.asarray(picture).astype(int)
    assert pixels[:, :190].max() < 20 and pixels[:, 210:].min() > 235


@pytest.mark.parametrize(
    "size, small, scaled",
    [
        ((353, 500), (320, 453), [319.09, 452.09]),
        ((500, 375), (427, 320), [426.15, 319.15]),
        ((333, 500), (320, 480), [319.04, 479.04]),
        ((320, 320), (320, 320), [319.0, 319.0]),
        ((500, 152), (1053, 320), [1050.89, 317.89]),  # the few that are smaller are enlarged
    ],
)
def test_the_shorter_side_has_320_pixels(tmp_path, size, small, scaled):
    """The sizes are of the data that experiments here were made with."""
    box = voc_object("cat", (2, 2, *size))
    write_voc(tmp_path / "voc", {"000001": [box], "000002": []}, split="test", size=size)
    make_voc_subset(tmp_path / "voc", tmp_path / "small")
    image = merged(tmp_path / "small", "images")[1]
    assert (image["width"], image["height"]) == small
    assert merged(tmp_path / "small", "annotations")[1]["bbox"][2:] == scaled
    with Image.open(tmp_path / "small" / "images" / "000001.jpg") as picture:
        assert picture.size == small


def test_a_part_can_be_trained_on(voc, tmp_path, clean_catalog, cfg):
    output = tmp_path / "small"
    make_voc_subset(voc, output)
    part = voc_part_of("000001.jpg")
    register_coco("small", str(output / f"{part}.json"), str(output / "images"))
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("small",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 20
    check_datasets(cfg)


def unlisted(voc):
    (voc / "ImageSets" / "Main" / "test.txt").rename(voc / "ImageSets" / "Main" / "val.txt")


def listed(voc, *names):
    (voc / "ImageSets" / "Main" / "test.txt").write_text("\n".join(names))


def damage(voc):
    file = voc / "JPEGImages" / "000002.jpg"
    file.write_bytes(file.read_bytes()[:-300])


SPOILT = {
    "no test set": (unlisted, "is not the folder VOC2007 .*: it has no ImageSets/Main/test.txt"),
    "no layout": (lambda voc: (voc / "JPEGImages").rename(voc / "pictures"), "has no JPEGImages"),
    "no picture": (
        lambda voc: (voc / "JPEGImages" / "000002.jpg").unlink(),
        "1 of 5 files that .*test.txt names do not exist; the first is .*000002.jpg",
    ),
    "no annotation": (
        lambda voc: (voc / "Annotations" / "000002.xml").unlink(),
        "1 of 5 files that .*test.txt names do not exist; the first is .*000002.xml",
    ),
    "no XML": (
        lambda voc: (voc / "Annotations" / "000002.xml").write_text("<"),
        "000002.xml is not valid XML",
    ),
    "class": (
        lambda voc: write_voc(voc, {"000002": [voc_object("boletus")]}, "x", (500, 400)),
        "000002.xml: object number 1 is of the class 'boletus'",
    ),
    "size": (
        lambda voc: Image.new("RGB", (40, 50)).save(voc / "JPEGImages" / "000002.jpg"),
        "000002.jpg is 40x50 pixels, but .* says 500x400",
    ),
    "damaged": (damage, r"000002.jpg is damaged \(.*\); unpack the archive again"),
    "empty list": (listed, "names no image"),
    "names": (
        lambda voc: (
            write_voc(voc, {"dog": [], "cat": []}, "x", (500, 400)),
            listed(voc, "dog", "cat"),
        ),
        "test.txt names dog, but the names of VOC 2007's pictures are numbers",
    ),
}


@pytest.mark.parametrize("spoil, message", SPOILT.values(), ids=SPOILT)
def test_bad_folders(voc, tmp_path, spoil, message):
    spoil(voc)
    with pytest.raises(UserError, match=message):
        make_voc_subset(voc, tmp_path / "small")
    assert [p.name for p in tmp_path.iterdir()] == ["VOC2007"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="missing is not the folder VOC2007"):
        make_voc_subset(tmp_path / "missing", tmp_path / "small")


@pytest.mark.parametrize("make", ["mkdir", "touch"])
def test_an_output_that_exists(voc, tmp_path, make):
    getattr(tmp_path / "small", make)()
    with pytest.raises(UserError, match="small exists already; remove it, or give another name"):
        make_voc_subset(voc, tmp_path / "small")


def test_an_output_that_cannot_be_written(voc, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*small: (Not a directory|File exists)"):
        make_voc_subset(voc, tmp_path / "file" / "small")
