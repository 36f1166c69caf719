"""What COCOeval makes of the files of an evaluation: precision, and which detection is of what."""

import json

import numpy as np
import pytest

from swn_d2.errors import UserError
from swn_d2.evaluation.coco import CocoResults

BOX, SHIFTED, ELSEWHERE = [10, 10, 20, 20], [12, 10, 20, 20], [60, 60, 20, 20]
CROWD = [100, 100, 80, 80]


def annotation(id_, image, category, box, iscrowd=0):
    ids = {"id": id_, "image_id": image, "category_id": category}
    return ids | {"bbox": box, "area": box[2] * box[3], "iscrowd": iscrowd}


def detection(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


TRUTH = {
    "images": [{"id": "a"}, {"id": "b"}],  # VOC's ids are texts
    "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "none"}],
    "annotations": [
        annotation(1, "a", 3, BOX),
        annotation(2, "a", 7, ELSEWHERE),
        annotation(3, "b", 3, BOX),
        annotation(4, "b", 3, CROWD, iscrowd=1),
    ],
}
UNANNOTATED = {key: value for key, value in TRUTH.items() if key != "annotations"}
RESULTS = [
    detection("a", 3, BOX, 0.9),
    detection("a", 3, ELSEWHERE, 0.8),  # a dog
    detection("b", 3, SHIFTED, 0.6),
    detection("b", 3, BOX, 0.55),  # has no object left
    detection("b", 3, [110, 110, 20, 20], 0.95),  # in the crowd
    detection("b", 7, BOX, 0.4),
]


@pytest.fixture
def write(tmp_path):
    def write(results=RESULTS, truth=TRUTH):
        for name, content in (("results.json", results), ("truth.json", truth)):
            (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / "results.json", tmp_path / "truth.json"

    return write


@pytest.fixture
def coco(write):
    return CocoResults(*write())


def seen(pairs):
    """(id of the object, score of the detection) by image."""
    return {
        str(image): sorted(
            ((o and o["id"], d and d["score"]) for o, d in of_image), key=lambda pair: str(pair)
        )
        for image, of_image in pairs.items()
    }


def test_pairs_of_a_class(coco):
    assert seen(coco.pairs(0.5, by_class=True)) == {
        "a": [(1, 0.9), (2, None), (None, 0.8)],
        "b": [(3, 0.6), (None, 0.55)],
    }


def test_pairs_whatever_the_class(coco):
    assert seen(coco.pairs(0.5, by_class=False)) == {
        "a": [(1, 0.9), (2, 0.8)],
        "b": [(3, 0.6), (None, 0.55)],
    }


def test_detections_below_the_threshold_are_left_out(coco):
    assert seen(coco.pairs(0.4, by_class=True))["b"] == [(3, 0.6), (None, 0.4), (None, 0.55)]
    assert seen(coco.pairs(0.7, by_class=True)) == {
        "a": [(1, 0.9), (2, None), (None, 0.8)],
        "b": [(3, None)],
    }


def test_precision_over_recall(coco):
    # Cats by score: right, wrong (a dog), right, wrong; of 2. No class but these has objects.
    curves = coco.precisions()
    assert list(curves) == [3, 7]
    assert curves[3] == pytest.approx(np.where(np.linspace(0, 1, 101) <= 0.5, 1, 2 / 3))
    assert not curves[7].any()
    assert coco.precisions()[3] == pytest.approx(curves[3])  # nothing is used up


@pytest.mark.parametrize("ids", [(0, 1, 2, 3), ("17", "a", "b", "c"), (1.5, 2**60 + 1, 2, 3)])
def test_ids_of_any_kind(write, ids):
    expected = seen(CocoResults(*write()).pairs(0.5, by_class=True))
    renamed = [{**a, "id": id_} for a, id_ in zip(TRUTH["annotations"], ids, strict=True)]
    coco = CocoResults(*write(truth={**TRUTH, "annotations": renamed}))
    assert seen(coco.pairs(0.5, by_class=True)) == expected
    assert len(expected["b"]) > 1


def test_nothing_was_detected(write):
    coco = CocoResults(*write(results=[]))
    assert not coco.precisions()[3].any()
    assert seen(coco.pairs(0.5, by_class=False)) == {"a": [(1, None), (2, None)], "b": [(3, None)]}


@pytest.mark.parametrize(
    "results, truth, message",
    [
        ([detection("c", 3, BOX, 1)], TRUTH, "detections of image 'c', which .*truth.json does"),
        ([detection("a", 1, BOX, 1)], TRUTH, "of category 1, which .*; it is the result of other"),
        ([{"score": 1}], TRUTH, "results.json is not the list of detections"),
        ([], [], "truth.json is not a file of annotations in COCO's format"),
        ([], {"images": []}, "truth.json is not a file of annotations in COCO's format"),
        ([], UNANNOTATED, "truth.json has no annotations to compare detections with"),
    ],
)
def test_what_is_wrong_with_the_files(write, results, truth, message):
    with pytest.raises(UserError, match=message):
        CocoResults(*write(results, truth))


def test_categories_of_one_name_are_told_apart(write):
    categories = [{"id": k, "name": name} for k, name in ((3, "cat"), (7, "cat"), (9, "dog"))]
    coco = CocoResults(*write(truth={**TRUTH, "categories": categories}))
    assert coco.class_names == {3: "cat (3)", 7: "cat (7)", 9: "dog"}
