"""What is found out about a data set, in a file whose numbers are known."""

import json

import numpy as np
import pytest
from PIL import Image

from swn_d2.data import register_coco, register_voc
from swn_d2.recipe.facts import look_at
from tests.voc import CLASSES, voc_object, write_voc


def annotation(number, image, box, category=7, **keys):
    keys = {"iscrowd": 0, **keys}
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, **keys}


@pytest.fixture
def registered(tmp_path, clean_catalog):
    """Three pictures, one without objects; a crowd and a box without area do not count."""
    sizes = [(200, 100), (100, 200), (200, 100)]
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": w, "height": h}
            for i, (w, h) in enumerate(sizes)
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "ant"}, {"id": 9, "name": "x"}],
        "annotations": [
            annotation(1, 0, [0, 0, 40, 10]),
            annotation(2, 0, [0, 0, 10, 10], category=3),
            annotation(3, 1, [0, 0, 50, 50]),
            annotation(4, 1, [0, 0, 90, 90], iscrowd=1),
            annotation(5, 1, [0, 0, 0, 50]),
        ],
    }
    (tmp_path / "mine.json").write_text(json.dumps(content))
    register_coco("mine", str(tmp_path / "mine.json"), str(tmp_path))
    return tmp_path


def test_coco(registered):
    facts = look_at("mine")
    assert [file.rpartition("/")[2] for file in facts.files] == ["0.png", "1.png", "2.png"]
    assert facts.sizes.tolist() == [[200, 100], [100, 200], [200, 100]]
    assert facts.shorter_side == 100
    assert facts.boxes.tolist() == [[40, 10], [10, 10], [50, 50]]
    assert facts.relative_sizes == pytest.approx([0.2, 0.1, 0.5])
    assert facts.ratios == pytest.approx([0.25, 1, 1])
    assert sorted(facts.objects_a_picture) == [1, 2]
    assert facts.classes == [("ant", 1), ("cat", 2), ("x", 0)]  # by their ids
    assert facts.in_words() == (
        "mine: 3 pictures, most of about 200 x 100 pixels, with 3 objects\n"
        "  1.5 objects a picture, at most 2; 1 without any\n"
        "  objects of 12 to 44 % of the picture's shorter side, most of about 20 %\n"
        "  classes (3): ant 1, cat 2, x 0"
    )


def test_a_name_with_the_line_end_of_another_system(registered):
    content = json.loads((registered / "mine.json").read_text())
    content["categories"][0]["name"] = "cat\r"
    (registered / "mine.json").write_text(json.dumps(content))
    assert r"classes (3): ant 1, 'cat\r' 2, x 0" in look_at("mine").in_words()


def test_voc(tmp_path, clean_catalog):
    objects = {"a": [voc_object("cat", (1, 1, 100, 80)), voc_object(difficult=1)], "b": []}
    register_voc("mine", write_voc(tmp_path / "voc", objects), "train", CLASSES)
    facts = look_at("mine")
    assert facts.sizes.tolist() == [[200, 160]] * 2
    assert facts.boxes.tolist() == [[100, 80]]
    assert np.array_equal(facts.picture, [0]) and facts.classes == [("dog", 0), ("cat", 1)]


def test_a_test_set_without_annotations(registered):
    content = json.loads((registered / "mine.json").read_text())
    del content["annotations"]
    (registered / "mine.json").write_text(json.dumps(content))
    assert look_at("mine").in_words() == (
        "mine: 3 pictures, most of about 200 x 100 pixels, with 0 objects"
    )
