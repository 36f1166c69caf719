import copy
import json
import math
import os

import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from swn_d2.data import check_datasets, keep_sample_weights, make_digit_scenes, register_coco
from swn_d2.data.noise import JITTERED_BOX, KINDS, MISSING_OBJECT, WRONG_CLASS, add_noise
from swn_d2.errors import UserError

SIZE = 200, 120
CATEGORIES = [30, 7, "12", 5, 90]
ALL = {WRONG_CLASS: 0.3, JITTERED_BOX: 0.4, MISSING_OBJECT: 0.2}


def coco(objects=2000, crowds=100):
    """COCO-format content, 10 annotations an image; without masks, and partly with texts as ids."""
    rng = np.random.default_rng(0)
    annotations = []
    for i in range(objects + crowds):
        width, height = rng.uniform(5, 60, size=2).round(2).tolist()
        x, y = (rng.uniform(0, 1, size=2) * [SIZE[0] - width, SIZE[1] - height]).round(2).tolist()
        annotation = {
            "id": f"n{i}" if i % 3 == 0 else i,
            "image_id": i // 10,
            "category_id": CATEGORIES[i % 5],
            "bbox": [x, y, width, height],
            "area": round(width * height / 2, 2),
            "iscrowd": int(i < crowds),
            "note": "mine",
        }
        annotations.append(annotation)
    return {
        "licenses": [{"id": 1}],
        "info": {"year": 2020},
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": SIZE[0], "height": SIZE[1]}
            for i in range(math.ceil(len(annotations) / 10))
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in CATEGORIES],
    }


@pytest.fixture(scope="module")
def content():
    return coco()


class Folder:
    """A folder with an annotation file and what becomes of it."""

    def __init__(self, path, content):
        self.path = path
        self.source = path / "train.json"
        self.source.write_text(json.dumps(content))

    def add(self, name="noisy", shares=ALL, **kwargs):
        """The noisy annotations and the true ones, by id."""
        add_noise(self.source, self.path / f"{name}.json", shares=shares, **kwargs)
        return self.read(name), self.read(f"{name}.truth")

    def read(self, name):
        return {a["id"]: a for a in json.loads(self.text(name))["annotations"]}

    def text(self, name):
        return (self.path / f"{name}.json").read_text()

    def names(self):
        return sorted(p.name for p in self.path.iterdir())


@pytest.fixture
def folder(tmp_path, content):
    return Folder(tmp_path, content)


def crowds_and_objects(annotations):
    crowds = [a for a in annotations if a["iscrowd"]]
    return crowds, [a for a in annotations if not a["iscrowd"]]


def assert_share(count, total, share):
    # Four standard deviations of a binomial share: the draw is fixed, so this cannot flicker.
    assert abs(count / total - share) < 4 * math.sqrt(share * (1 - share) / total)


def test_same_request_gives_the_same_bytes(folder):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder.add(name, seed=seed, left_out=folder.path / f"{name}.left_out.json")
    for ending in ("", ".truth", ".left_out"):
        assert folder.text(f"a{ending}") == folder.text(f"b{ending}") != folder.text(f"c{ending}")


@pytest.mark.parametrize("kind", KINDS)
def test_more_noise_keeps_the_noise_of_less(folder, kind):
    less, truth = folder.add("less", {kind: 0.2})
    more, _ = folder.add("more", {kind: 0.6})
    noisy = [i for i, a in truth.items() if a.get("noise")]
    assert noisy and all(less.get(i) == more.get(i) for i in noisy)
    assert sum(more.get(i) != less.get(i) for i in truth) > len(noisy)


def test_the_noise_of_an_annotation_depends_on_no_other(folder, content, tmp_path):
    (tmp_path / "other").mkdir()
    changed = copy.deepcopy(content)
    changed["annotations"] = changed["annotations"][::-2]
    changed["categories"].reverse()
    changed["images"].reverse()
    noisy, truth = Folder(tmp_path / "other", changed).add()
    whole, true_whole = folder.add()
    assert len(truth) == 1050
    assert truth == {i: true_whole[i] for i in truth}
    assert noisy == {i: whole[i] for i in truth if i in whole}


def test_the_kinds_are_drawn_independently(folder):
    all_of_them, truth = folder.add("all")
    for kind in (WRONG_CLASS, JITTERED_BOX):
        alone, true_alone = folder.add(kind, {kind: ALL[kind]})
        key = "category_id" if kind == WRONG_CLASS else "bbox"
        for i, annotation in all_of_them.items():
            assert annotation[key] == alone[i][key]
            assert (kind in truth[i].get("noise", [])) == bool(true_alone[i].get("noise"))


def test_share_of_each_kind(folder, content):
    folder.add()
    _, objects = crowds_and_objects(folder.read("noisy.truth").values())
    assert len(objects) == 2000
    kept = [a["noise"] for a in objects if a["noise"] != [MISSING_OBJECT]]
    assert_share(len(objects) - len(kept), len(objects), 0.2)
    assert_share(sum(WRONG_CLASS in kinds for kinds in kept), len(kept), 0.3)
    assert_share(sum(JITTERED_BOX in kinds for kinds in kept), len(kept), 0.4)
    assert_share(kept.count([WRONG_CLASS, JITTERED_BOX]), len(kept), 0.12)
    assert not any(MISSING_OBJECT in kinds for kinds in kept)


def test_the_shares_0_and_1(folder, content):
    noisy, truth = folder.add("none", dict.fromkeys(KINDS, 0.0))
    assert list(noisy.values()) == content["annotations"]
    assert not any(a.get("noise") for a in truth.values())
    for kind in KINDS:
        _, truth = folder.add(kind, {kind: 1})
        _, objects = crowds_and_objects(truth.values())
        assert all(a["noise"] == [kind] for a in objects)


def test_a_wrong_class_is_any_of_the_others(folder):
    noisy, truth = folder.add(shares={WRONG_CLASS: 1.0})
    _, objects = crowds_and_objects(truth.values())
    moves = [
        (CATEGORIES.index(noisy[a["id"]]["category_id"]) - CATEGORIES.index(a["category_id"])) % 5
        for a in objects
    ]
    assert 0 not in moves
    for move in range(1, 5):
        assert_share(moves.count(move), len(moves), 0.25)
    assert all(noisy[a["id"]]["bbox"] == a["bbox"] for a in objects)


def test_the_sides_of_a_jittered_box(folder):
    noisy, truth = folder.add(shares={JITTERED_BOX: 1.0}, amount=0.45)
    _, objects = crowds_and_objects(truth.values())
    before = np.array([a["bbox"] for a in objects])
    after = np.array([noisy[a["id"]]["bbox"] for a in objects])
    assert (after[:, 2:] > 0).all()
    extents = np.tile(before[:, 2:], 2)
    for boxes in (before, after):
        boxes[:, 2:] += boxes[:, :2]
    assert (after >= 0).all() and (after <= [*SIZE, *SIZE]).all()
    assert (after == [0, 0, *SIZE]).any(axis=0).all()  # each border of the image clips some
    inside = ((after > 0) & (after < [*SIZE, *SIZE])).all(axis=1)
    moves = ((after - before) / extents)[inside]
    assert np.abs(moves).max() <= 0.45 + 0.01 / extents.min()  # rounded to hundredths
    # Uniform in ±0.45 but for what clipping takes; each side on its own.
    assert np.abs(np.quantile(moves, 0.75, axis=0) - 0.225).max() < 0.04
    assert np.abs(np.corrcoef(moves.T) - np.eye(4)).max() < 4 / math.sqrt(len(moves))


def test_the_area_follows_the_box_unless_a_mask_tells_it(tmp_path, content):
    spoilt = copy.deepcopy(content)
    masks = [None, [], [[1, 1, 9, 1, 9, 9]], {"size": [120, 200], "counts": [10, 24000 - 10]}]
    annotations = spoilt["annotations"] = spoilt["annotations"][100:106]
    for annotation, mask in zip(annotations, masks, strict=False):
        annotation["segmentation"] = mask
    del annotations[4]["area"]
    annotations[5]["area"] = None
    noisy, truth = Folder(tmp_path, spoilt).add(shares={JITTERED_BOX: 1.0})
    noisy, truth = list(noisy.values()), list(truth.values())
    for a, b in zip(noisy[:2], truth[:2], strict=True):
        # The area was half the box's.
        assert a["area"] == pytest.approx(a["bbox"][2] * a["bbox"][3] / 2, abs=0.02) != b["area"]
    for a, b in zip(noisy[2:], truth[2:], strict=True):
        assert a["bbox"] != b["bbox"]
        assert {**a, "bbox": 0, "noise": 0} == {**b, "bbox": 0, "noise": 0}


def test_a_box_of_which_nothing_would_be_left_stays(tmp_path, content):
    spoilt = copy.deepcopy(content)
    annotations = spoilt["annotations"] = spoilt["annotations"][100:150]
    for i, annotation in enumerate(annotations):
        # No area; or so far outside that half of the moves would take it out of the image.
        annotation["bbox"] = [5, 5, 0, 20] if i < 10 else [-99.99, 5, 100, 20]
    noisy, truth = Folder(tmp_path, spoilt).add(shares={JITTERED_BOX: 1.0})
    assert all(a["noise"] == [] for a in list(truth.values())[:10])
    assert 5 < sum(a["noise"] == [JITTERED_BOX] for a in truth.values()) < 35
    for i, annotation in truth.items():
        assert (noisy[i]["bbox"] == annotation["bbox"]) == (annotation["noise"] == [])
        assert noisy[i]["bbox"][2] > 0 or annotation["bbox"][2] == 0


def test_crowd_regions_are_never_touched(folder, content):
    noisy, truth = folder.add(shares=dict.fromkeys(KINDS, 1.0))
    crowds, _ = crowds_and_objects(content["annotations"])
    assert len(crowds) == 100 and list(noisy.values()) == crowds
    assert crowds_and_objects(truth.values())[0] == crowds


def test_the_truth_is_the_original_and_tells_the_noise(folder, content):
    noisy, _ = folder.add()
    truth = json.loads(folder.text("noisy.truth"))
    for annotation in truth["annotations"]:
        true_class, box = annotation["category_id"], annotation["bbox"]
        found = noisy.get(annotation["id"])
        if annotation["iscrowd"]:
            assert "noise" not in annotation
            continue
        differs = {
            MISSING_OBJECT: found is None,
            WRONG_CLASS: found and found["category_id"] != true_class,
            JITTERED_BOX: found and found["bbox"] != box,
        }
        assert set(annotation.pop("noise")) == {kind for kind, is_so in differs.items() if is_so}
    assert truth == content


def test_the_noisy_file_tells_no_annotation_from_another(folder, content):
    added = add_noise(folder.source, folder.path / "noisy.json", shares=ALL, amount=0.1, seed=4)
    noisy = json.loads(folder.text("noisy"))
    truth = folder.read("noisy.truth").values()
    assert {*map(tuple, noisy["annotations"])} == {tuple(content["annotations"][0])}
    assert len(noisy["annotations"]) == 2100 - added.num_changed[MISSING_OBJECT]
    changed = {kind: sum(kind in a.get("noise", []) for a in truth) for kind in KINDS}
    assert (added.num_objects, added.num_changed) == (2000, changed)
    assert noisy.pop("info") == {
        "year": 2020,
        "noise": {
            WRONG_CLASS: {"share": 0.3, "changed": changed[WRONG_CLASS]},
            JITTERED_BOX: {"share": 0.4, "changed": changed[JITTERED_BOX], "amount": 0.1},
            MISSING_OBJECT: {"share": 0.2, "changed": changed[MISSING_OBJECT]},
            "objects": 2000,
            "seed": 4,
        },
    }
    assert {**noisy, "info": 0, "annotations": 0} == {**content, "info": 0, "annotations": 0}


def test_a_record_of_what_was_asked_for_only(tmp_path, content):
    for info in ({}, {"info": None}):
        plain = {**{k: v for k, v in content.items() if k != "info"}, **info}
        folder = Folder(tmp_path, plain)
        folder.add(f"noisy{len(info)}", {MISSING_OBJECT: 0.0})
        noisy = json.loads(folder.text(f"noisy{len(info)}"))
        record = {MISSING_OBJECT: {"share": 0.0, "changed": 0}, "objects": 2000, "seed": 0}
        assert noisy["info"] == {"noise": record}


def test_noisy_objects_are_left_out_by_their_weight(tmp_path, content):
    weighted = copy.deepcopy(content)
    for annotation in weighted["annotations"][::2]:
        annotation["sample_weight"] = 0.5
    folder = Folder(tmp_path, weighted)
    noisy, truth = folder.add(left_out=tmp_path / "left_out.json")
    expected = {
        i: {**a, "sample_weight": 0.0} if truth[i].get("noise") else a for i, a in noisy.items()
    }
    assert folder.read("left_out") == expected
    left_out, noisy = json.loads(folder.text("left_out")), json.loads(folder.text("noisy"))
    assert left_out["info"] == noisy["info"]


def test_all_files_can_be_trained_on(tmp_path, clean_catalog, cfg):
    root = make_digit_scenes(tmp_path / "scenes", num_train=5, num_val=1)
    source = root / "annotations" / "instances_train.json"
    files = [tmp_path / f"{name}.json" for name in ("noisy", "truth", "left_out")]
    add_noise(source, files[0], shares=ALL, truth=files[1], left_out=files[2])
    for file in files:
        register_coco(file.stem, str(file), str(root / "train"))
    cfg.MODEL.ROI_HEADS.NAME = "SWNROIHeads"  # looks at a sample_weight
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.DATASETS.TRAIN = [file.stem for file in files]
    check_datasets(cfg)
    keep_sample_weights(cfg.DATASETS.TRAIN)
    weights = {
        name: [a.get("sample_weight") for r in DatasetCatalog.get(name) for a in r["annotations"]]
        for name in cfg.DATASETS.TRAIN
    }
    assert {*weights["noisy"], *weights["truth"]} == {None}
    assert set(weights["left_out"]) == {None, 0.0}
    assert len(weights["left_out"]) == len(weights["noisy"]) < len(weights["truth"])


REQUESTS = {
    "no kind": ({"shares": {}}, "No noise is asked for; give the share of wrong classes"),
    "other kind": ({"shares": {"blur": 0.1}}, "There is no noise 'blur'; the kinds are wrong"),
    "large": ({"shares": {WRONG_CLASS: 1.1}}, r'of noise "wrong class" must be in \[0, 1\], not 1'),
    "negative": ({"shares": {JITTERED_BOX: -0.1}}, r'"jittered box" must be in .*, not -0\.1'),
    "NaN": ({"shares": {MISSING_OBJECT: math.nan}}, '"missing object" must be in .*, not nan'),
    "no amount": ({"amount": 0.0}, r"amount of jitter must be in \(0, 0.5\), not 0.0"),
    "large amount": ({"amount": 0.5}, r"amount of jitter must be in \(0, 0.5\), not 0.5"),
    "NaN amount": ({"amount": math.nan}, "amount of jitter must be in .*, not nan"),
    "seed": ({"seed": -1}, "The seed must not be negative, but is -1"),
    "input": ({"truth": "train.json"}, "train.json is the input, too; give the output another"),
    "input again": ({"left_out": "x/../train.json"}, "train.json is the input, too"),
    "twice": ({"truth": "noisy.json"}, "noisy.json is named for two outputs"),
    "twice truth": ({"left_out": "noisy.truth.json"}, "noisy.truth.json is named for two outputs"),
    "long name": ({"truth": "x" * 300}, "cannot write x*: File name too long"),
    "no folder": ({"truth": "train.json/x/truth.json"}, "cannot write .*: Not a directory"),
}


@pytest.mark.parametrize("arguments, message", REQUESTS.values(), ids=REQUESTS)
def test_bad_requests(folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder.path)
    with pytest.raises(UserError, match=message):
        add_noise("train.json", "noisy.json", **{"shares": ALL, **arguments})
    assert folder.names() == ["train.json"]


def change(section, **values):
    return lambda content: content[section][0].update(values)


CONTENTS = {
    "no section": (lambda c: c.pop("annotations"), 'not in COCO format: it has no "annotations"'),
    "no box": (lambda c: c["annotations"][0].pop("bbox"), 'have no "bbox"; the first is id n0'),
    "id twice": (change("annotations", id=1), 'more than once in "annotations"; the first is 1'),
    "image": (change("annotations", image_id=-1), 'an image_id that is not in "images"'),
    "class": (change("annotations", category_id=1), 'a category_id that is not in "categories"'),
    "box": (change("annotations", bbox=[1, 2, 3]), "a bbox that is not four finite numbers"),
    "type": (
        change("annotations", image_id=[]),
        'have a "image_id" that is not a number or a text',
    ),
    "size": (change("images", width=-1), "image 0 has width -1 and height 120"),
    "info": (lambda c: c.update(info="mine"), 'not in COCO format: "info" is not an object'),
    "noisy": (lambda c: c["info"].update(noise={}), 'train.json has a "noise" in "info" or in'),
    "truth": (change("annotations", noise=[]), "give the file that it was made from"),
    "empty": (lambda c: c.update(annotations=[]), "no annotation to train on: of 0, 0 are crowd"),
    "crowds": (
        lambda c: [a.update(iscrowd=1) for a in c["annotations"]],
        "has no annotation to train on: of 20, 20 are crowd regions",
    ),
    "one category": (
        lambda c: (
            c.update(categories=c["categories"][:1]),
            [a.update(category_id=CATEGORIES[0]) for a in c["annotations"]],
        ),
        "has a single category, so that no class can be wrong; leave out the wrong classes",
    ),
}


@pytest.mark.parametrize("spoil, message", CONTENTS.values(), ids=CONTENTS)
def test_bad_files(tmp_path, spoil, message):
    content = coco(objects=18, crowds=2)
    spoil(content)
    folder = Folder(tmp_path, content)
    with pytest.raises(UserError, match=message):
        folder.add()
    assert folder.names() == ["train.json"]


def test_a_single_category_is_enough_for_other_noise(tmp_path):
    content = coco(objects=18, crowds=2)
    CONTENTS["one category"][0](content)
    _, truth = Folder(tmp_path, content).add(shares={JITTERED_BOX: 1.0})
    assert sum(a.get("noise") == [JITTERED_BOX] for a in truth.values()) == 18


@pytest.mark.parametrize(
    "text, message",
    [(None, "There is no annotation file"), ("{", "not valid JSON"), ("[]", "not in COCO format")],
)
def test_files_that_are_no_annotations(folder, text, message):
    folder.source.unlink()
    if text is not None:
        folder.source.write_text(text)
    before = folder.names()
    with pytest.raises(UserError, match=message):
        folder.add()
    assert folder.names() == before


def test_a_file_that_cannot_be_read(tmp_path):
    # It is there, but its first byte is no memory of this process.
    with pytest.raises(UserError, match="cannot read /proc/self/mem: Input/output error"):
        add_noise("/proc/self/mem", tmp_path / "noisy.json", shares=ALL)


@pytest.mark.parametrize("name", ["noisy", "noisy.truth", "left_out"])
def test_a_file_is_never_overwritten(folder, name):
    (folder.path / f"{name}.json").write_text("precious")
    with pytest.raises(UserError, match=f"{name}.json exists already; remove it, or give another"):
        folder.add(left_out=folder.path / "left_out.json")
    assert folder.names() == sorted(["train.json", f"{name}.json"])
    assert folder.text(name) == "precious"


@pytest.mark.parametrize("missing", [[], ["noisy"], ["noisy.truth", "left_out"]])
def test_what_is_there_is_kept_and_what_is_missing_is_written(folder, missing):
    folder.add(left_out=folder.path / "left_out.json")
    before = {p.name: (p.read_bytes(), p.stat().st_ino) for p in folder.path.iterdir()}
    for name in missing:
        (folder.path / f"{name}.json").unlink()
    folder.add(left_out=folder.path / "left_out.json")
    after = {p.name: (p.read_bytes(), p.stat().st_ino) for p in folder.path.iterdir()}
    assert [name for name in before if before[name][0] != after[name][0]] == []
    kept = {name for name in before if before[name] == after[name]}
    assert kept >= set(before) - {f"{name}.json" for name in missing}
    assert folder.names() == ["left_out.json", "noisy.json", "noisy.truth.json", "train.json"]


def test_files_of_another_request_are_not_kept(folder):
    folder.add()
    for change in ({"seed": 1}, {"shares": {WRONG_CLASS: 0.3}}):
        with pytest.raises(UserError, match="noisy.json exists already"):
            folder.add(**change)
    (folder.path / "noisy.json").unlink()
    with pytest.raises(UserError, match="noisy.truth.json exists already"):
        folder.add(seed=1)
    assert folder.names() == ["noisy.truth.json", "train.json"]


def test_a_folder_in_the_place_of_a_file(folder):
    (folder.path / "noisy.json").mkdir()
    with pytest.raises(UserError, match="noisy.json exists already"):
        folder.add()


@pytest.mark.parametrize("name", ["noisy.json", "noisy.truth.json", "left_out.json"])
def test_what_cannot_be_written_leaves_nothing(folder, name):
    partial = f"{name}.{os.getpid()}.partial"
    (folder.path / partial).mkdir()  # a folder in the place of the partial file
    with pytest.raises(UserError, match=f"cannot write .*{name}: Is a directory"):
        folder.add(left_out=folder.path / "left_out.json")
    assert folder.names() == sorted(["train.json", partial])


def test_where_the_noisy_file_is_the_others_are_too(folder, monkeypatch):
    order = []
    monkeypatch.setattr("swn_d2.files.write_text", lambda file, text: order.append(file.name))
    add_noise(folder.source, folder.path / "noisy.json", shares=ALL, left_out=folder.path / "l")
    assert sorted(order) == ["l", "noisy.json", "noisy.truth.json"] and order[-1] == "noisy.json"


def test_a_new_folder_is_made(folder):
    add_noise(folder.source, folder.path / "new" / "noisy", shares=ALL)
    assert {p.name for p in (folder.path / "new").iterdir()} == {"noisy", "noisy.truth.json"}
