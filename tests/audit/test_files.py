import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from swn_d2.audit.audit import KINDS, Audit
from swn_d2.audit.files import corrected_json, to_csv, to_json, weighted_json
from swn_d2.audit.misplaced_boxes import MisplacedBoxes
from swn_d2.audit.objects import MissingObjects, find_duplicates
from swn_d2.audit.shares import Estimate
from swn_d2.audit.wrong_classes import WrongClasses
from swn_d2.data.checks.coco import read_coco
from swn_d2.errors import UserError

from .synthetic import annotations

NOTHING = Estimate(0.0, 0.0, 0.0)
BOXES = [(10 * i, 10, 10 * i + 40, 60) for i in range(4)] + [(31, 10, 71, 60)]


def make_audit(**more):
    """Five annotations, 100 to 104, and a crowd region: the first is of class 1 for sure, the
    second of some other one, the third lies elsewhere, the fourth is right, the fifth repeats it.
    An object is missing."""
    data = annotations(
        BOXES,
        [0, 0, 0, 0, 0],
        image=[0] * 5,
        num_classes=4,
        crowds=[(0, (100, 100, 150, 150))],
        **more,
    )
    probs = np.array(
        [[0.1, 0.9, 0, 0], [0.4, 0.3, 0.2, 0.1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    )
    suggestion = np.array(BOXES, np.float32) + np.float32(0.25)
    suggestion[2] = (-5, 20, 30, 60)
    missing = MissingObjects(
        image=np.array([0, 0]),
        boxes=np.array([(150, 150, 190, 250), (0, 0, 5, 5)], np.float32),
        classes=np.array([3, 1]),
        suspicion=np.array([0.8, 0.3]),
    )
    return Audit(
        data,
        WrongClasses(1 - probs[:, 0], probs, Estimate(0.3, 0.2, 0.4)),
        MisplacedBoxes(np.array([0, 0, 0.7, 0, 0]), suggestion, NOTHING),
        missing,
        *find_duplicates(data),
    )


def document(audit):
    """What is in its audit.json."""
    return json.loads(to_json(audit, run="my_run", made_of={"quick": True}))


def weighted(audit, **kwargs):
    return weighted_json(audit.annotations, document(audit), **kwargs)


def corrected(audit):
    return corrected_json(audit.annotations, document(audit))


def test_json():
    content = document(make_audit())
    assert (content["format"], content["version"]) == ("swn_d2 audit", 1)
    rows = content["annotations"]
    assert [row["id"] for row in rows] == [100, 101, 102, 103, 104, 105]
    assert [row["kind"] for row in rows] == [
        *("wrong class", "wrong class", "misplaced box", "wrong class", "duplicate"),
        None,
    ]
    assert [row["suspicion"] for row in rows[:4]] == [0.9, 0.6, 0.7, 0]
    assert all(row["suspicion"] == max(row["suspicions"].values()) for row in rows[:5])
    assert rows[5] == {
        **{"id": 105, "image_id": 0, "kind": None, "suspicion": 0},
        **{"category_id": 1, "bbox": [100, 100, 50, 50]},
    }
    assert rows[0]["suggested_category_id"] == 2 and rows[1]["suggested_category_id"] == 2
    assert rows[2]["suggested_bbox"] == [-5, 20, 35, 40]
    assert rows[4]["duplicate_of"] == 103
    assert rows[1]["likeliest"] == {
        "category_id": 1,
        "probability": 0.4,
        "bbox": [10.25, 10.25, 40, 50],
    }
    assert rows[0]["likeliest"]["category_id"] == 2
    assert content["made_of"] == {"quick": True}
    assert content["missing"] == [
        {"image_id": 0, "bbox": [150, 150, 40, 100], "category_id": 4, "suspicion": 0.8},
        {"image_id": 0, "bbox": [0, 0, 5, 5], "category_id": 2, "suspicion": 0.3},
    ]
    assert content["expected"]["wrong class"] == {"value": 1.5, "low": 1.0, "high": 2.0}
    assert content["expected"]["duplicate"]["value"] == 1
    assert content["expected"]["missing object"]["value"] == 1.1


@pytest.mark.parametrize("before_training", [False, True])
@pytest.mark.parametrize("localised", [False, True])
def test_where_boxes_were_judged(before_training, localised):
    how = {"before_training": before_training, "localised": localised}
    rows = document(replace(make_audit(), **how))["annotations"]
    knows = localised or not before_training
    assert ["bbox" in row["likeliest"] for row in rows if row["kind"]] == [knows] * 5


def test_csv():
    rows = list(csv.DictReader(io.StringIO(to_csv(make_audit()))))
    assert [row["id"] for row in rows[:3]] == ["104", "100", "102"]  # 0.95 is an IoU
    assert rows[0]["duplicate_of"] == "103" and rows[1]["duplicate_of"] == ""
    assert rows[1]["kind"] == "wrong class" and rows[1]["wrong_class"] == "0.9"
    assert rows[1]["file_name"] == "0.png"
    assert rows[2]["suggested_bbox"] == "-5.0 20.0 35.0 40.0"
    assert [row["kind"] for row in rows[-2:]] == ["missing object"] * 2
    assert rows[-1]["id"] == "" and rows[-1]["bbox"] == "0.0 0.0 5.0 5.0"


def weights(text, key):
    return {a["id"]: a[key] for a in json.loads(text)["annotations"] if key in a}


def test_soft_weights():
    """Each kind of error takes the weight from what it makes wrong."""
    text = weighted(make_audit())
    assert weights(text, "label_weight") == {100: 0.1, 101: 0.4}
    assert weights(text, "box_weight") == {102: 0.3}
    assert weights(text, "sample_weight") == {104: 0.0488}  # 1 - IoU


def test_weights_multiply_those_that_the_data_had():
    text = weighted(make_audit(sample_weight=0.5, label_weight=0.5))
    assert weights(text, "label_weight") == {
        **{100: 0.05, 101: 0.2, 102: 0.5, 103: 0.5, 104: 0.5},
        105: 0.5,  # a crowd region
    }
    assert weights(text, "sample_weight")[103] == 0.5


def test_dropped():
    text = weighted(make_audit(), drop=3)
    assert weights(text, "label_weight") == {100: 0}
    assert weights(text, "box_weight") == {102: 0}
    assert weights(text, "sample_weight") == {104: 0}
    before = make_audit().annotations.content["annotations"]
    assert json.loads(weighted(make_audit(), drop=0))["annotations"] == before


def test_relabelled(tmp_path):
    audit = make_audit()
    before = json.dumps(audit.annotations.content)
    text = corrected(audit)
    assert json.dumps(audit.annotations.content) == before
    rows = {a["id"]: a for a in json.loads(text)["annotations"]}
    assert rows[100]["category_id"] == 2 and rows[101]["category_id"] == 1
    # What is written counts as much as it is likely to be right.
    assert weights(text, "label_weight") == {100: 0.9, 101: 0.4}
    assert rows[102]["bbox"] == [0, 20, 30, 40] and rows[102]["area"] == 1200
    assert weights(text, "box_weight") == {}
    assert rows[103] == audit.annotations.content["annotations"][3]
    assert weights(text, "sample_weight") == {104: 0}
    assert rows[106]["category_id"] == 4 and rows[106]["bbox"] == [150, 150, 40, 50]
    assert len(rows) == 7
    (tmp_path / "new.json").write_text(text)
    read_coco(str(tmp_path / "new.json"))  # can be trained on


def test_a_mask_is_not_moved():
    audit = make_audit(segmentation=[[20, 10, 60, 10, 60, 60]])
    row = json.loads(corrected(audit))["annotations"][2]
    assert row["bbox"] == [20, 10, 40, 50] and row["box_weight"] == 0.3


def test_where_objects_have_masks_a_missing_one_gets_one_that_teaches_nothing():
    audit = make_audit()
    for annotation in audit.annotations.content["annotations"]:
        if annotation["iscrowd"]:  # which often has one where objects have none
            annotation["segmentation"] = {"size": [200, 200], "counts": [40000]}
    added = json.loads(corrected(audit))["annotations"][-1]
    assert not {"segmentation", "mask_weight"} & set(added)
    audit = make_audit(segmentation=[[20, 10, 60, 10, 60, 60]])
    added = json.loads(corrected(audit))["annotations"][-1]
    assert added["id"] == 106 and added["mask_weight"] == 0
    assert added["segmentation"] == [[150, 150, 190, 150, 190, 200, 150, 200]]


def test_where_objects_have_keypoints_a_missing_one_has_none_that_is_labelled(tmp_path):
    text = corrected(make_audit(keypoints=[1, 2, 2] * 17, num_keypoints=17))
    added = json.loads(text)["annotations"][-1]
    assert added["keypoints"] == [0] * 51 and added["num_keypoints"] == 0
    assert "keypoints" not in json.loads(corrected(make_audit()))["annotations"][-1]


def test_what_nobody_suspects_is_not_dropped():
    audit = make_audit()
    before = audit.annotations.content["annotations"]
    dropped = json.loads(weighted(audit, drop=5))["annotations"]
    assert [a["id"] for a, b in zip(dropped, before, strict=True) if a != b] == [100, 101, 102, 104]


@pytest.mark.parametrize("name", ["=1+1.jpg", "+x", "-x", "@SUM(1)", "\t=1"])
def test_a_spreadsheet_takes_no_name_for_a_formula(name):
    audit = make_audit()
    audit.annotations.content["images"][0]["file_name"] = name
    rows = list(csv.DictReader(io.StringIO(to_csv(audit), newline="")))
    assert {row["file_name"] for row in rows} == {"'" + name}
    assert rows[2]["suggested_bbox"] == "-5.0 20.0 35.0 40.0"  # which is none


def test_ids_that_are_texts():
    audit = make_audit()
    for annotation in audit.annotations.content["annotations"]:
        annotation["id"] = str(annotation["id"])
    audit = replace(audit, annotations=replace(audit.annotations))  # which has kept the numbers
    added = json.loads(corrected(audit))["annotations"][-1]
    assert added["id"] == "missing-1" and added["category_id"] == 4
    assert document(audit)["annotations"][0]["id"] == "100"
    audit.annotations.content["annotations"][-1]["id"] = "missing-1"  # as another audit had it
    audit = replace(audit, annotations=replace(audit.annotations))
    assert json.loads(corrected(audit))["annotations"][-1]["id"] == "missing-2"


def edited(kind, **suspicions):
    """A person has judged some annotations."""
    content = document(make_audit())
    rows = {str(row["id"]): row for row in content["annotations"]}
    for id_, suspicion in suspicions.items():
        rows[id_.lstrip("_")]["suspicions"][kind] = suspicion
    return make_audit().annotations, content


def test_a_person_knows_better_what_is_to_count():
    text = weighted_json(*edited("wrong class", _100=0, _103=1))
    assert weights(text, "label_weight") == {101: 0.4, 103: 0}
    # The most suspicious of all, the duplicate and the badly placed box.
    text = weighted_json(*edited("wrong class", _100=0, _103=1), drop=3)
    assert weights(text, "label_weight") == {103: 0}
    assert weights(text, "box_weight") == {102: 0}
    assert weights(text, "sample_weight") == {104: 0}


def test_a_person_knows_better_what_is_to_be_changed():
    data, content = edited("wrong class", _100=0, _103=1)
    rows = {a["id"]: a for a in json.loads(corrected_json(data, content))["annotations"]}
    assert rows[100] == data.content["annotations"][0]  # the class is right
    # Wrong, and nothing is known that would be likelier.
    assert rows[103]["category_id"] == 1 and rows[103]["label_weight"] == 0
    data, content = edited("misplaced box", _100=1, _102=0)
    rows = {a["id"]: a for a in json.loads(corrected_json(data, content))["annotations"]}
    assert rows[100]["bbox"] == [0.25, 10.25, 40, 50]
    assert rows[102] == data.content["annotations"][2]
    data, content = edited("duplicate", _104=0)
    del content["missing"][0]
    assert weights(corrected_json(data, content), "sample_weight") == {}
    assert len(json.loads(corrected_json(data, content))["annotations"]) == 6


def test_a_class_that_is_barely_likelier():
    """Rounded, the two are alike; and 1 - 0.7 is more than 0.3."""
    audit = make_audit()
    probs = audit.classes.probs
    probs[1] = [0.299999, 0.300001, 0.2, 0.2]
    classes = WrongClasses(1 - probs[:, 0], probs, NOTHING)
    row = json.loads(corrected(replace(audit, classes=classes)))["annotations"][1]
    assert row["category_id"] == 2 and row["label_weight"] == 0.3


def test_a_box_that_nobody_knows_better_does_not_count():
    audit = replace(make_audit(), before_training=True)
    row = json.loads(corrected(audit))["annotations"][2]
    assert row["bbox"] == [20, 10, 40, 50] and row["box_weight"] == 0.3


def test_nothing_is_written_of_another_file():
    audit = make_audit()
    for write in (weighted_json, corrected_json):
        with pytest.raises(UserError, match="no audit"):
            write(audit.annotations, {})


def test_kinds():
    assert make_audit().suspicions.shape == (5, len(KINDS))
