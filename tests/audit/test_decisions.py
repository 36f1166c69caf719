import csv
import io
import json
from dataclasses import replace

import pytest

from swn_d2.audit.decisions import decided, read_decisions
from swn_d2.audit.files import corrected_json, to_csv, weighted_json
from swn_d2.errors import UserError

from .test_files import document, make_audit

AUDIT = make_audit()
ANNOTATIONS = AUDIT.annotations.content["annotations"]


def write(file, decisions, delimiter=",", encoding="utf-8", audit=AUDIT):
    """The audit.csv, with a decision for some of its rows: by id, or for a missing object by its
    place in the list."""
    rows = list(csv.DictReader(io.StringIO(to_csv(audit))))
    missing = [row for row in rows if not row["id"]]
    for row in rows:
        row["decision"] = decisions.get(
            row["id"].removeprefix("'") or f"missing {missing.index(row)}", ""
        )
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    file.write_bytes(stream.getvalue().encode(encoding))
    return file


def after(tmp_path, decisions):
    """The weighted and the corrected annotations."""
    before = document(AUDIT)
    content = decided(before, read_decisions(write(tmp_path / "audit.csv", decisions)))
    assert before == document(AUDIT)
    texts = weighted_json(AUDIT.annotations, content), corrected_json(AUDIT.annotations, content)
    return tuple(json.loads(text)["annotations"] for text in texts)


def test_nothing_is_decided(tmp_path):
    file = tmp_path / "audit.csv"
    assert read_decisions(file) == []
    assert read_decisions(write(file, {})) == []


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: "", "has no column 'id' in its first line"),
        (lambda text: text.replace(",", "|"), "has no column 'id' in its first line"),
        (lambda text: "sep=,\n" + text, "has no column 'id' in its first line"),
        (lambda text: text.replace(",bbox", ",box"), "has no column 'bbox' in its first line"),
        (lambda text: text.replace(",decision", ",said"), "has no column 'decision'"),
        (lambda text: text.replace(",keep", ",,keep"), "line 4 has more cells than columns"),
        (lambda text: text.replace("100,0", '"100,0'), "line .*; is a quote missing"),
    ],
)
def test_damaged(change, message, tmp_path):
    file = write(tmp_path / "audit.csv", {"102": "keep"})
    file.write_text(change(file.read_text()))
    with pytest.raises(UserError, match=message):
        read_decisions(file)


def test_a_list_that_is_to_be_replaced_may_be_of_an_earlier_version(tmp_path):
    file = tmp_path / "audit.csv"
    file.write_text("id,image_id,kind,bbox\n100,0,wrong class,1 2 3 4\n")
    assert read_decisions(file, is_used=False) == []
    with pytest.raises(UserError, match="has no column 'decision'"):
        read_decisions(file)


def test_line_ends_and_names_of_columns(tmp_path):
    file = write(tmp_path / "audit.csv", {"102": "keep"})
    text = file.read_text().replace("decision", " Decision")
    for line_end in ("\n", "\r\n", "\r", "\n\n"):
        file.write_bytes(text.replace("\n", line_end).encode())
        assert [row["id"] for row in read_decisions(file)] == ["102"]


@pytest.mark.parametrize("id_", ["102.0", "1.02E+02", " 102"])
def test_numbers_that_a_spreadsheet_has_formatted(id_, tmp_path):
    decisions = {"102": "change", "missing 0": "change"}
    rows = read_decisions(write(tmp_path / "audit.csv", decisions))
    rows[0]["id"], rows[1]["bbox"] = id_, "150 150.00 40 100"
    content = decided(document(AUDIT), rows)
    assert content["annotations"][2]["suspicions"]["misplaced box"] == 1
    assert content["missing"][0]["suspicion"] == 1


def test_large_ids(tmp_path):
    content = document(AUDIT)
    for i, row in enumerate(content["annotations"]):
        row["id"] = 123456789012345670 + i
    rows = read_decisions(write(tmp_path / "audit.csv", {"100": "keep"}))
    rows[0]["id"] = "123456789012345671"
    rows[0]["bbox"] = " ".join(map(str, content["annotations"][1]["bbox"]))
    rows = decided(content, rows)["annotations"]
    assert ["decided" in row for row in rows] == [False, True, False, False, False, False]


@pytest.mark.parametrize("id_", ["1_23", "12_3", "123", "0123", "nan", "=1+2", "-1"])
def test_ids_that_look_alike(id_, tmp_path):
    audit = make_audit()
    ids = ["1_23", "12_3", "123", "0123", id_ if id_ in ("nan", "=1+2", "-1") else "1e2"]
    for annotation, other in zip(audit.annotations.content["annotations"], ids, strict=False):
        annotation["id"] = other
    audit = replace(audit, annotations=replace(audit.annotations))
    decisions = read_decisions(write(tmp_path / "audit.csv", {id_: "keep"}, audit=audit))
    rows = decided(document(audit), decisions)["annotations"]
    assert [row["id"] for row in rows if "decided" in row] == [id_]
    # Which of two a spreadsheet meant that took ids for numbers, nobody can tell.
    if id_ in ("123", "0123"):
        with pytest.raises(UserError, match=r"annotation 123\.0, .*change no other column"):
            decided(document(audit), [{**decisions[0], "id": "123.0"}])


def test_two_decisions_about_one_thing(tmp_path):
    (row,) = read_decisions(write(tmp_path / "audit.csv", {"100": "keep"}))
    decided(document(AUDIT), [row, row])
    with pytest.raises(UserError, match="two decisions about annotation 100, .*: keep and drop"):
        decided(document(AUDIT), [row, {**row, "decision": "drop"}])


def test_a_column_that_a_row_does_not_reach(tmp_path):
    (row,) = read_decisions(write(tmp_path / "audit.csv", {"100": "change"}))
    assert row["duplicate_of"] == ""
    content = decided(document(AUDIT), [{**row, "duplicate_of": None}])
    assert content["annotations"][0]["suspicions"]["wrong class"] == 1


def dropped(tmp_path, decisions, drop, suspicion=0.9):
    """Which annotations have a weight of 0, the first having such a suspicion."""
    rows = read_decisions(write(tmp_path / "audit.csv", decisions))
    content = document(AUDIT)
    content["annotations"][0]["suspicions"]["wrong class"] = suspicion
    text = weighted_json(AUDIT.annotations, decided(content, rows), drop=drop)
    keys = ("label_weight", "box_weight", "sample_weight")
    annotations = json.loads(text)["annotations"]
    return [a["id"] for a in annotations if any(a.get(key) == 0 for key in keys)]


def test_a_number_to_drop(tmp_path):
    assert dropped(tmp_path, {}, 2) == [100, 104]
    assert dropped(tmp_path, {"100": "keep"}, 2) == [102, 104]
    assert dropped(tmp_path, {"101": "drop"}, 2) == [101, 104]
    assert dropped(tmp_path, dict.fromkeys(["101", "102", "104"], "drop"), 1) == [101, 102, 104]
    assert dropped(tmp_path, {"101": "drop"}, 1, suspicion=1) == [101]
    everything = dict.fromkeys(["100", "101", "102", "103", "104"], "keep")
    assert dropped(tmp_path, everything, 2) == []


@pytest.mark.parametrize(
    "id_, column, value",
    [
        ("100", "kind", "misplaced box"),
        ("100", "suggested_category_id", "3"),
        ("102", "suggested_bbox", "1 2 3 4"),
        ("104", "duplicate_of", "100"),
        ("100", "image_id", "1"),
        ("100", "bbox", "0 10 40 51"),
    ],
)
def test_of_another_audit(id_, column, value, tmp_path):
    (row,) = read_decisions(write(tmp_path / "audit.csv", {id_: "change"}))
    row[column] = value
    with pytest.raises(UserError, match=f"annotation {id_}, picture ., of which audit.json says"):
        decided(document(AUDIT), [row])
    row |= {"image_id": "0", "bbox": row["bbox"].replace("51", "50")}
    decided(document(AUDIT), [{**row, "decision": "keep"}])  # right, whatever is said of it


@pytest.mark.parametrize(
    "delimiter, encoding", [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")]
)
def test_what_spreadsheets_write(delimiter, encoding, tmp_path):
    file = write(
        tmp_path / "audit.csv", {"102": " Keep ", "missing 1": "DROP"}, delimiter, encoding
    )
    rows = read_decisions(file)
    assert [(row["id"], row["decision"]) for row in rows] == [("102", "keep"), ("", "drop")]
    decided(document(AUDIT), rows)


def test_keep(tmp_path):
    decisions = dict.fromkeys(["100", "102", "104"], "keep")
    for annotations in after(tmp_path, decisions):
        for i in (0, 2, 4):
            assert annotations[i] == ANNOTATIONS[i]
        assert annotations[1]["label_weight"] == 0.4


def test_keep_what_is_wrong_for_sure(tmp_path):
    content = document(AUDIT)
    row = content["annotations"][0]
    row["suspicions"]["wrong class"] = row["likeliest"]["probability"] = 1.0
    row["suspicions"]["misplaced box"] = 0.4
    content = decided(content, read_decisions(write(tmp_path / "audit.csv", {"100": "keep"})))
    corrected = json.loads(corrected_json(AUDIT.annotations, content))["annotations"]
    assert corrected[0] == ANNOTATIONS[0]


def test_change(tmp_path):
    decisions = dict.fromkeys(["101", "102", "104"], "change")
    weighted, corrected = after(tmp_path, decisions)
    assert weighted[1] == {**ANNOTATIONS[1], "label_weight": 0}
    assert weighted[2] == {**ANNOTATIONS[2], "box_weight": 0}
    assert weighted[4] == {**ANNOTATIONS[4], "sample_weight": 0}
    assert corrected[1] == {**ANNOTATIONS[1], "category_id": 2}
    assert corrected[2] == {**ANNOTATIONS[2], "bbox": [0, 20, 30, 40], "area": 1200}
    assert corrected[4] == {**ANNOTATIONS[4], "sample_weight": 0}


def test_drop(tmp_path):
    decisions = dict.fromkeys(["100", "101", "102", "104"], "drop")
    for annotations in after(tmp_path, decisions):
        assert annotations[0] == {**ANNOTATIONS[0], "label_weight": 0}
        assert annotations[1] == {**ANNOTATIONS[1], "label_weight": 0}
        assert annotations[2] == {**ANNOTATIONS[2], "box_weight": 0}
        assert annotations[4] == {**ANNOTATIONS[4], "sample_weight": 0}


@pytest.mark.parametrize("decision, boxes", [("keep", []), ("drop", []), ("change", [0, 1])])
def test_missing_objects(decision, boxes, tmp_path):
    _, corrected = after(tmp_path, {"missing 0": decision, "missing 1": decision})
    both = [[150, 150, 40, 50], [0, 0, 5, 5]]  # as far as they are in the picture
    assert [a["bbox"] for a in corrected[6:]] == [both[i] for i in boxes]


def test_no_decision(tmp_path):
    file = write(tmp_path / "audit.csv", {"101": "maybe"})
    with pytest.raises(
        UserError, match=r"audit\.csv, line 5: the decision is 'maybe'; make it keep"
    ):
        read_decisions(file)


def test_about_nothing(tmp_path):
    rows = read_decisions(write(tmp_path / "audit.csv", {"105": "keep"}))  # a crowd region
    with pytest.raises(UserError, match="a decision about annotation 105, picture 0, of which"):
        decided(document(AUDIT), rows)
    rows = read_decisions(write(tmp_path / "audit.csv", {"missing 0": "change"}))
    rows[0]["bbox"] = "1 2 3 4"
    with pytest.raises(UserError, match="about a missing object, picture 0, of which"):
        decided(document(AUDIT), rows)
