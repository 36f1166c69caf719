import json
import re
from dataclasses import replace

import pytest

import swn_d2
from swn_d2.audit.earlier import check_audit, find_audit, made_of
from swn_d2.errors import UserError
from tests.tiny import tiny_config

from .test_files import document, make_audit

DATA = make_audit().annotations


def change(content, keys, value):
    """Set a value, or with None delete it."""
    *above, last = keys
    for key in above:
        content = content[key]
    if value is None:
        del content[last]
    else:
        content[last] = value


def test_an_audit_as_it_is_made():
    check_audit(document(make_audit()), DATA)
    check_audit(document(replace(make_audit(), before_training=True)), DATA)


@pytest.mark.parametrize(
    "content", [None, [], {}, {"format": "swn_d2 audit"}, {"format": "swn_d2 audit", "version": 2}]
)
def test_no_audit(content):
    with pytest.raises(UserError, match=r"audit\.json is no audit of version 1"):
        check_audit(content, DATA)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", [1]])
@pytest.mark.parametrize(
    "keys, what",
    [
        (("annotations", 1, "suspicions", "wrong class"), "of a wrong class, annotation 101"),
        (("annotations", 4, "suspicions", "duplicate"), "of a duplicate, annotation 104"),
        (("annotations", 2, "likeliest", "probability"), "annotation 102"),
        (("missing", 0, "suspicion"), "of a missing object, picture 0"),
    ],
)
def test_no_probability(keys, what, value):
    content = document(make_audit())
    change(content, keys, value)
    message = rf"has {re.escape(repr(value))} as the .*{what}; make it a number from 0 to 1"
    with pytest.raises(UserError, match=message):
        check_audit(content, DATA)


def test_probabilities_may_be_whole_numbers():
    content = document(make_audit())
    for value in (0, 1):
        change(content, ("annotations", 1, "suspicions", "wrong class"), value)
        check_audit(content, DATA)


@pytest.mark.parametrize(
    "keys, value, number",
    [
        (("annotations", 0), None, 1),
        (("annotations", 5), None, 1),  # a crowd region
        (("annotations", 0, "id"), 7, 2),
        (("annotations", 0, "id"), "100", 2),
        (("annotations",), [], 6),
    ],
)
def test_other_annotations(keys, value, number):
    content = document(make_audit())
    change(content, keys, value)
    with pytest.raises(UserError, match=f"of other annotations: {number} ids"):
        check_audit(content, DATA)


@pytest.mark.parametrize(
    "keys, value",
    [
        *(((key,), value) for key in ("annotations", "missing", "expected") for value in (None, 3)),
        (("annotations", 0), 3),
        (("annotations", 0, "id"), [1]),
        (("annotations", 0, "kind"), "wrong"),
        (("annotations", 0, "kind"), None),
        (("annotations", 5, "category_id"), None),
        (("annotations", 0, "suspicions"), None),
        (("annotations", 0, "suspicions", "duplicate"), None),
        (("annotations", 0, "likeliest"), None),
        (("annotations", 0, "likeliest", "category_id"), 99),
        (("annotations", 0, "likeliest", "category_id"), [1]),
        (("annotations", 0, "likeliest", "bbox"), [1, 2, 3]),
        (("annotations", 0, "likeliest", "bbox", 2), "wide"),
        (("annotations", 0, "likeliest", "bbox", 2), float("inf")),
        (("annotations", 0, "likeliest", "bbox", 2), 10**400),
        (("missing", 0, "bbox"), None),
        (("missing", 0, "category_id"), 0),
        (("missing", 0, "image_id"), 99),
        (("expected", "duplicate", "value"), float("nan")),
        (("expected", "duplicate", "low"), None),
    ],
)
def test_damaged(keys, value):
    content = document(make_audit())
    change(content, keys, value)
    with pytest.raises(UserError, match=r"audit\.json is damaged, or was changed too much"):
        check_audit(content, DATA)


@pytest.fixture
def ingredients(tmp_path):
    """Of a run: its config, its annotations and what it started from."""
    for name in ("model.pth", "start.pth", "annotations.json"):
        (tmp_path / name).write_text(name)
    cfg = tiny_config("MODEL.WEIGHTS", str(tmp_path / "model.pth"))
    data = replace(DATA, file=tmp_path / "annotations.json")
    return cfg, data, str(tmp_path / "start.pth")


HOW = {"quick": True, "before_training": False}


def test_what_an_audit_is_made_of(ingredients, tmp_path):
    before = made_of(*ingredients, **HOW)
    assert json.loads(json.dumps(before)) == before
    digests = [before[key] for key in ("annotations", "weights", "start_weights", "config")]
    assert len(set(digests)) == 4 and all(re.fullmatch("[0-9a-f]{64}", d) for d in digests)
    cfg, data, start = ingredients

    def differs(cfg=cfg, data=data, start=start, **how):
        now = made_of(cfg, data, start, **{**HOW, **how})
        assert list(now) == list(before)
        return [key for key in now if now[key] != before[key]]

    assert differs() == []
    assert differs(quick=False) == ["quick"]
    assert differs(before_training=True) == ["before_training"]
    assert differs(start="") == ["start_weights"]
    assert made_of(cfg, data, str(tmp_path / "none.pth"), **HOW)["start_weights"] == ""
    with pytest.raises(UserError, match="a pipe or a device"):  # which may never end
        differs(start="/dev/null")
    assert differs(start="catalog://nothing") == [
        "start_weights"
    ]  # whoever loads it has a sentence
    for section, key, value in (
        ("INPUT", "FORMAT", "RGB"),
        ("MODEL", "PIXEL_STD", [2.0, 2.0, 2.0]),
        ("TEST", "DETECTIONS_PER_IMAGE", 7),
    ):
        other = cfg.clone()
        other[section][key] = value
        assert differs(cfg=other) == ["config"]
    assert before["swn_d2"] == swn_d2.__version__
    # Where a file is, and on what it runs, decides nothing.
    (tmp_path / "copy.pth").write_text("model.pth")
    other = cfg.clone()
    other.MODEL.WEIGHTS, other.MODEL.DEVICE = str(tmp_path / "copy.pth"), "cuda"
    other.OUTPUT_DIR, other.SOLVER.BASE_LR = "elsewhere", 1.0
    assert differs(cfg=other) == []
    for name, key in (
        ("model.pth", "weights"),
        ("start.pth", "start_weights"),
        ("annotations.json", "annotations"),
    ):
        (tmp_path / name).write_text("other")
        assert differs() == [key]
        (tmp_path / name).write_text(name)


def test_an_audit_is_found(tmp_path):
    files = [tmp_path / name for name in ("audit.json", "audit.csv")]
    now = {"quick": True}
    assert find_audit(files, DATA, now) is None
    content = document(make_audit())
    files[0].write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"audit\.json exists already, but not the rest"):
        find_audit(files, DATA, now)
    files[1].touch()
    assert find_audit(files, DATA, now) == content
    with pytest.raises(
        UserError, match="of something else, which differs in --quick or --no-quick, the weights; "
    ):
        find_audit(files, DATA, {"quick": False, "weights": "x"})
    change(content, ("missing", 0, "suspicion"), 2)
    files[0].write_text(json.dumps(content))
    with pytest.raises(UserError, match="make it a number from 0 to 1"):
        find_audit(files, DATA, now)
    for other in (dict(content, made_of=None), [], {}):
        files[0].write_text(json.dumps(other))
        with pytest.raises(UserError, match="does not say what it is made of"):
            find_audit(files, DATA, now)
