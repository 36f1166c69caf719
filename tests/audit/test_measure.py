import json

import pytest

from swn_d2.audit.measure import measure_annotations, measure_missing, read_audit
from swn_d2.errors import UserError

AT_ONE_PLACE = {"category_id": 1, "bbox": [5, 5, 10, 10]}


def row(id_, suspicion):
    suspicions = {"wrong class": suspicion, "misplaced box": 0.1, "duplicate": 0}
    judged = {"kind": "wrong class", "suspicion": suspicion, "suspicions": suspicions}
    return {"id": id_, **AT_ONE_PLACE, **judged}


AUDIT = {
    "format": "swn_d2 audit",
    "version": 1,
    "annotations": [
        *(row(i, s) for i, s in enumerate((0.9, 0.2, 0.8, 0.1))),
        {"id": 4, **AT_ONE_PLACE, "kind": None, "suspicion": 0},
    ],
    "missing": [
        {"image_id": 1, "bbox": [0, 0, 10, 10], "suspicion": 0.5},
        {"image_id": 1, "bbox": [1, 0, 10, 10], "suspicion": 0.9},
        {"image_id": 1, "bbox": [50, 0, 10, 10], "suspicion": 0.6},
    ],
}
TRUTH = [
    {**AT_ONE_PLACE, "id": 0, "noise": ["wrong class"], "category_id": 2},
    {**AT_ONE_PLACE, "id": 1, "noise": ["wrong class"], "category_id": 3},
    {**AT_ONE_PLACE, "id": 2, "noise": []},
    {**AT_ONE_PLACE, "id": 3, "noise": []},
    {**AT_ONE_PLACE, "id": 4},
    {"id": 5, "noise": ["missing object"], "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]},
    {"id": 6, "noise": ["missing object"], "image_id": 2, "category_id": 1, "bbox": [0, 0, 10, 10]},
]


def test_annotations():
    measured = measure_annotations(AUDIT, TRUTH)
    assert measured.number == 4 and measured.wrong == 2 and measured.first == 2
    assert measured.area == 0.75
    assert measured.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert measured.expected == pytest.approx(2)
    assert measure_annotations(AUDIT, TRUTH, "wrong class").area == 0.75
    assert measure_annotations(AUDIT, TRUTH, "misplaced box").wrong == 0
    jittered = [{**a, "noise": ["jittered box"]} if "noise" in a else a for a in TRUTH[:2]]
    assert measure_annotations(AUDIT, jittered, "misplaced box").wrong == 2


def test_missing():
    measured = measure_missing(AUDIT, TRUTH)
    # Each object is found once, by the most suspicious box.
    assert measured.number == 3 and measured.wrong == 2 and measured.first == 1
    assert measured.average_precision == 0.5 and measured.expected == pytest.approx(2)


@pytest.mark.parametrize(
    "audit, truth, message",
    [
        ({**AUDIT, "version": 2}, TRUTH, "no audit of version 1"),
        ([], TRUTH, "no audit of version 1"),
        (AUDIT, [{"id": 0}], "does not say which annotations are noisy"),
        ({**AUDIT, "annotations": [{**row(2, 0.5), "bbox": [1, 1, 2, 2]}]}, TRUTH, "another bbox"),
        ({**AUDIT, "annotations": [{**row(3, 0.5), "category_id": 9}]}, TRUTH, "another category"),
        (AUDIT, TRUTH[:1], "4 annotations of .* truth of other data"),
        ({**AUDIT, "annotations": None}, TRUTH, "audit.json is damaged"),
        ({**AUDIT, "annotations": ["a"]}, TRUTH, "audit.json is damaged"),
        ({**AUDIT, "annotations": [row(0, "a")]}, TRUTH, "audit.json is damaged"),
        ({**AUDIT, "annotations": [row(0, float("nan"))]}, TRUTH, "audit.json is damaged"),
        ({**AUDIT, "annotations": [row([0], 0.5)]}, TRUTH, "audit.json is damaged"),
        ({**AUDIT, "missing": [{"image_id": 1}]}, TRUTH, "audit.json is damaged"),
        ({**AUDIT, "missing": [{**AUDIT["missing"][0], "bbox": "abcd"}]}, TRUTH, "is damaged"),
        ({**AUDIT, "annotations": [{**row(0, 0.5), "suspicions": {}}]}, TRUTH, "is damaged"),
        (AUDIT, None, "does not say which annotations are noisy"),
        (AUDIT, [{"id": 0, "noise": ["missing object"]}], "does not say which annotations are"),
        (AUDIT, [5], "does not say which annotations are noisy"),
        (AUDIT, [{"noise": []}], "does not say which annotations are noisy"),
        (AUDIT, [{"id": 0, "noise": 5}], "does not say which annotations are noisy"),
    ],
)
def test_what_does_not_fit(audit, truth, message, tmp_path):
    (tmp_path / "audit.json").write_text(json.dumps(audit))
    (tmp_path / "truth.json").write_text(json.dumps({"annotations": truth}))
    with pytest.raises(UserError, match=message):
        read_audit(tmp_path / "audit.json", tmp_path / "truth.json")
