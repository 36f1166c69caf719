"""tools/audit.py, on real detectors that have learned nothing and on evidence that says much."""

import importlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from sklearn.metrics import roc_auc_score

from swn_d2.audit import appearance, localiser, wrong_classes
from swn_d2.audit import audit as audit_module
from swn_d2.audit.annotations import Annotations
from swn_d2.audit.evidence import build_judge, gather_evidence
from swn_d2.audit.shares import share_of
from swn_d2.data import register_coco
from swn_d2.engine import SafeCheckpointer
from swn_d2.modeling.roi_heads import SWNROIHeads
from tests.tiny import DETECTORS, NUM_CLASSES, tiny_config, tiny_model

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
tool = importlib.import_module("audit")

NUM_PICTURES, PER_PICTURE = 6, 10
HEIGHT, WIDTH = 64, 96


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures of noise, with an annotation file for them."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(NUM_PICTURES):
        noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH})
        for j in range(PER_PICTURE):
            x, y, w, h = (*rng.uniform(0, 30, 2), *rng.uniform(10, 30, 2))
            annotations.append(
                {
                    "id": 7 + len(annotations),
                    "image_id": i + 1,
                    "category_id": 10 * (1 + int(rng.integers(NUM_CLASSES))),
                    "bbox": [float(v) for v in (x, y, w, h)],
                    "area": float(w * h),
                    "iscrowd": int(j == 9),
                }
            )
    categories = [{"id": 10 * (k + 1), "name": f"kind {k}"} for k in range(NUM_CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module", autouse=True)
def small():
    """Smaller views than a photograph takes, and fewer objects than a person has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(appearance, "_SIDE", 64)
        patch.setattr(appearance, "_SIDE_TO_A_DETECTOR", 64)
        patch.setattr(wrong_classes, "_FEWEST_CLEAR", 10)
        yield


@pytest.fixture(autouse=True)
def forget():
    """Names are registered for a whole process."""
    yield
    for name in [name for name in DatasetCatalog if name.startswith("audited")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def make_run(folder, detector="faster_rcnn", *opts, stock=False):
    cfg = tiny_config(
        *("INPUT.MIN_SIZE_TEST", 64),
        *("TEST.DETECTIONS_PER_IMAGE", 5),
        *("DATASETS.TRAIN", ("audited",)),
        *opts,
        detector=detector,
        stock=stock,
    )
    SafeCheckpointer(tiny_model(cfg), str(folder)).save("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def run_tool(monkeypatch, run, data, *options, quick="--quick"):
    """Without localisers, which take their time, unless ``quick`` is another option, or None."""
    registered = ["--register-coco", "audited", str(data / "train.json"), str(data)]
    arguments = [str(run), *filter(None, [quick]), *registered, *map(str, options)]
    monkeypatch.setattr(sys, "argv", ["audit.py", *arguments])
    tool.main()


@pytest.fixture
def knowing(monkeypatch):
    """Class scores as of a detector that has learned its classes; the rest is what the real one
    says."""
    gather = audit_module.gather_evidence

    def gather_and_know(judge, annotations, **kwargs):
        evidence = gather(judge, annotations, **kwargs)
        rng = np.random.default_rng(1)
        log_probs = rng.normal(size=evidence.log_probs.shape).astype(np.float32)
        log_probs[np.arange(len(log_probs)), annotations.classes] += 5
        log_probs[0] = [-5, -5, -5]
        log_probs[0, (annotations.classes[0] + 1) % NUM_CLASSES] = 0
        return audit_module.Evidence(**{**vars(evidence), "log_probs": log_probs})

    monkeypatch.setattr(audit_module, "gather_evidence", gather_and_know)


@pytest.fixture
def few_crops(monkeypatch):
    """Localisers that see little, and learn little."""
    monkeypatch.setattr(localiser, "_SIDE", 64)
    monkeypatch.setattr(localiser, "_MOST_CROPS", 32)


@pytest.fixture
def nan_heads(monkeypatch):
    """Heads that rate boxes with NaN."""
    rate = SWNROIHeads.rate_boxes
    monkeypatch.setattr(
        SWNROIHeads, "rate_boxes", lambda *args: [np.nan * result for result in rate(*args)]
    )


@pytest.mark.parametrize(
    "detector, stock",
    [*((name, False) for name in DETECTORS), ("cascade_mask_rcnn", True), ("retinanet", True)],
)
def test_every_detector(detector, stock, data, tmp_path, monkeypatch, knowing, capsys):
    run = make_run(tmp_path, detector, stock=stock)
    before = (data / "train.json").read_bytes()
    run_tool(monkeypatch, run, data, "--write", tmp_path / "new.json")
    content = json.loads((run / "audit.json").read_text())
    given = json.loads(before)["annotations"]
    assert [row["id"] for row in content["annotations"]] == [a["id"] for a in given]
    assert content["run"] == tmp_path.name
    most = max(
        content["annotations"],
        key=lambda row: row["suspicions"]["wrong class"] if row["kind"] else 0,
    )
    assert most["id"] == given[0]["id"]
    new = json.loads((tmp_path / "new.json").read_text())["annotations"]
    weights = {"wrong class": "label_weight", "misplaced box": "box_weight"}
    weights["duplicate"] = "sample_weight"
    for a, row in zip(new, content["annotations"], strict=True):
        for kind, key in weights.items():
            expected = 1 - row.get("suspicions", {}).get(kind, 0)
            assert a.get(key, 1) == pytest.approx(expected, abs=1e-4)
    assert any("label_weight" in a for a in new)
    assert len((run / "audit.csv").read_text().splitlines()) > len(given)
    page = (run / "audit.html").read_text()
    assert "How many to expect" in page and 'src="http' not in page and "<image" in page
    assert "Expected to be wrong" in capsys.readouterr().out
    assert (data / "train.json").read_bytes() == before


def test_it_says_the_same_twice(data, tmp_path, monkeypatch, knowing):
    run = make_run(tmp_path)
    options = ["--write", run / "new.json"]
    run_tool(monkeypatch, run, data, *options)
    first = (run / "audit.json").read_bytes()
    run_tool(monkeypatch, run, data, "--overwrite", *options)
    assert (run / "audit.json").read_bytes() == first


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_what_localisers_change(detector, data, tmp_path, monkeypatch, knowing, few_crops, capsys):
    run = make_run(tmp_path, detector)
    run_tool(monkeypatch, run, data, "--output", tmp_path / "plain")
    capsys.readouterr()
    for name in ("first", "second"):
        run_tool(monkeypatch, run, data, "--output", tmp_path / name, quick=None)
    said = capsys.readouterr().out.splitlines()
    for k in (1, 2):
        assert said.count(f"Localiser {k} of 2 learns what objects are, and where.") == 2
    assert said.count("Localisers judge the annotations.") == 2
    assert said.count("The detector looks at the pictures.") == 2
    assert said.count("A backbone looks at the objects.") == 2
    plain, first, second = (
        json.loads((tmp_path / name / "audit.json").read_text())
        for name in ("plain", "first", "second")
    )
    assert first == second
    assert list(first["expected"]) == list(plain["expected"])
    suspicions = [
        [row["suspicions"] for row in audit["annotations"] if row["kind"]]
        for audit in (plain, first)
    ]
    for kind, is_same in (("wrong class", False), ("duplicate", True), ("misplaced box", False)):
        before, after = ([row[kind] for row in rows] for rows in suspicions)
        assert (before == after) == is_same
    assert "the detector moves" in (tmp_path / "plain" / "audit.html").read_text()
    assert "to a localiser" in (tmp_path / "first" / "audit.html").read_text()


def fails(monkeypatch, run, data, *options, match):
    with pytest.raises(SystemExit, match=match):
        run_tool(monkeypatch, run, data, *options)


def test_a_detector_that_has_learned_nothing(data, tmp_path, monkeypatch):
    fails(monkeypatch, make_run(tmp_path), data, match="not learned enough|too few")
    assert not list(tmp_path.glob("audit.*"))


def test_nothing_is_overwritten(data, tmp_path, monkeypatch):
    run = make_run(tmp_path)
    (run / "audit.csv").write_text("mine")
    fails(monkeypatch, run, data, match=r"audit\.csv exists already")
    assert (run / "audit.csv").read_text() == "mine"
    (run / "audit.csv").unlink()
    (run / "new.json").write_text("mine")
    options = ["--write", run / "new.json"]
    fails(monkeypatch, run, data, *options, match=r"new\.json exists already")
    (run / "new.json").write_text("{}")
    options = ["--write", run / "new.json", "--overwrite"]
    fails(monkeypatch, run, data, *options, match="is not what an audit has written")
    options = ["--write", data / "train.json", "--overwrite"]
    fails(monkeypatch, run, data, *options, match=r"train\.json is the input, too")
    fails(monkeypatch, run, data, "--write", run / "audit.csv", match="named for two outputs")


def test_another_audit_at_the_same_time(data, tmp_path, monkeypatch):
    run = make_run(tmp_path)
    with tool.alone_in(run):
        fails(monkeypatch, run, data, match="another audit is being made in")
    assert not list(run.glob("audit.*"))


def test_what_is_decided_while_it_runs_is_not_lost(audited, data, monkeypatch):
    run, copy = audited
    for picture in data.glob("*.png"):
        shutil.copy(picture, copy)
    judge = tool.judge

    def judge_and_decide(*args):
        lines = (run / "audit.csv").read_text().splitlines()
        lines[1] += "keep"
        (run / "audit.csv").write_text("\n".join(lines))
        return judge(*args)

    monkeypatch.setattr(tool, "judge", judge_and_decide)
    fails(monkeypatch, run, copy, "--overwrite", match=r"has decisions \(1\)")
    assert ",keep" in (run / "audit.csv").read_text() and (run / "audit.html").exists()


def test_a_full_disk_leaves_the_earlier_audit(audited, data, monkeypatch):
    run, copy = audited
    for picture in data.glob("*.png"):
        shutil.copy(picture, copy)
    before = {name: text for name, text in files_in(run).items() if name != "audit.html"}
    write = Path.write_bytes

    def write_until_it_is_full(file, content):
        if "audit.json" in file.name:
            raise OSError(28, "No space left on device")
        return write(file, content)

    monkeypatch.setattr(Path, "write_bytes", write_until_it_is_full)
    fails(monkeypatch, run, copy, "--overwrite", match=r"cannot write .*audit\.json: No space left")
    assert files_in(run) == before


def test_names_of_pictures_that_are_not_in_utf_8(data, tmp_path, monkeypatch, knowing):
    """As an old archive may have them."""
    copy, name = tmp_path / "data", "caf\udce9.png"
    shutil.copytree(data, copy)
    content = json.loads((copy / "train.json").read_text())
    content["images"][0]["file_name"] = name
    (copy / "train.json").write_text(json.dumps(content))
    os.rename(copy / "0.png", copy / name)
    run_tool(monkeypatch, make_run(tmp_path), copy)
    assert r"caf\udce9.png" in (tmp_path / "audit.csv").read_text(encoding="utf-8")
    assert r"caf\udce9.png" in (tmp_path / "audit.html").read_text(encoding="utf-8")


def test_classes_in_another_order(data, tmp_path, monkeypatch):
    run = make_run(tmp_path)
    noted = {"format": "swn_d2 registered", "version": 1, "imports": [], "data_sets": {}}
    noted["learned"] = ["kind 1", "kind 0", "kind 2"]
    (run / "registered.json").write_text(json.dumps(noted))
    fails(monkeypatch, run, data, match="categories kind 0, kind 1, kind 2, .* has learned kind 1,")


@pytest.fixture
def audited(data, tmp_path, monkeypatch, knowing):
    """A run that has been audited, and its data, whose pictures are gone since."""
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    run = make_run(tmp_path)
    run_tool(monkeypatch, run, copy)
    for picture in copy.glob("*.png"):
        picture.unlink()
    return run, copy


def files_in(folder):
    return {file.name: file.read_bytes() for file in folder.glob("audit.*")}


def test_what_is_decided_later(audited, tmp_path, monkeypatch, capsys):
    run, data = audited
    before = files_in(run)
    new = tmp_path / "new.json"
    run_tool(monkeypatch, run, data, "--write", new)
    assert files_in(run) == before
    first, *others = capsys.readouterr().out.splitlines()
    assert re.search(r"audit\.json is an audit of the same annotations, .* taken as it is", first)
    expected = json.loads(before["audit.json"])["expected"]
    for (kind, estimate), line in zip(expected.items(), others[1:5], strict=True):
        is_known = estimate["value"] or not estimate["high"]
        number = f"{estimate['value']:.0f}" if is_known else "can't be told"
        assert line.startswith(f"  {kind}: {number}")
    assert others[-1] == f"{run / 'audit.html'}: open it in a browser."
    written = new.read_bytes()
    weights = {a["id"]: a.get("label_weight", 1) for a in json.loads(written)["annotations"]}
    rows = json.loads(before["audit.json"])["annotations"]
    suspicions = {row["id"]: row["suspicions"]["wrong class"] for row in rows if row["kind"]}
    assert any(suspicions.values())
    for id_, suspicion in suspicions.items():
        assert weights[id_] == pytest.approx(1 - suspicion, abs=1e-4)
    # Once more, the same and another one.
    run_tool(monkeypatch, run, data, "--write", new)
    assert f"{new} is there already, just as it would be written" in capsys.readouterr().out
    options = ["--write", new, "--relabel"]
    fails(monkeypatch, run, data, *options, match=r"new\.json exists already; remove it")
    assert new.read_bytes() == written and files_in(run) == before


def test_a_list_that_a_person_has_looked_at(audited, tmp_path, monkeypatch, capsys):
    run, data = audited
    file = run / "audit.csv"
    as_it_was = file.read_text()
    header, first, *others = as_it_was.splitlines()
    assert header.endswith(",decision") and first.startswith("7,1,") and first.endswith(",")
    file.write_text("\n".join([header, first + "keep", *others]))
    new = tmp_path / "new.json"
    # Who only writes need not say again whether it was quick.
    run_tool(monkeypatch, run, data, "--write", new, "--relabel", quick=None)
    assert f"Decisions about its list, in {file}: 1." in capsys.readouterr().out
    given = json.loads((data / "train.json").read_text())["annotations"]
    assert json.loads(new.read_text())["annotations"][0] == given[0]
    # It is not lost.
    fails(
        monkeypatch, run, data, "--overwrite", match=r"audit\.csv has decisions \(1\), which a new"
    )
    (run / "audit.json").unlink()
    fails(monkeypatch, run, data, match="but not the rest of an audit")
    assert file.read_text() != as_it_was


def test_expected_errors_that_are_dropped(audited, tmp_path, monkeypatch, capsys):
    run, data = audited
    content = json.loads((run / "audit.json").read_text())
    for kind, value in (("wrong class", 2), ("misplaced box", 1), ("missing object", 9)):
        content["expected"][kind]["value"] = value
    (run / "audit.json").write_text(json.dumps(content))
    run_tool(monkeypatch, run, data, "--write", tmp_path / "dropped.json", "--drop-expected")
    dropped = json.loads((tmp_path / "dropped.json").read_text())["annotations"]
    keys = ("label_weight", "box_weight", "sample_weight")
    assert sum(a.get(key) == 0 for a in dropped for key in keys) == 3
    for kind in ("wrong class", "misplaced box"):
        content["expected"][kind].update(value=0, low=0, high=0)
    (run / "audit.json").write_text(json.dumps(content))
    run_tool(monkeypatch, run, data, "--write", tmp_path / "none.json", "--drop-expected")
    content["expected"]["wrong class"]["high"] = 9
    content["expected"]["duplicate"]["value"] = 1
    (run / "audit.json").write_text(json.dumps(content))
    run_tool(monkeypatch, run, data, "--write", tmp_path / "one.json", "--drop-expected")
    assert "None is dropped for 'wrong class', of which it can't be" in capsys.readouterr().out
    for a in json.loads((tmp_path / "one.json").read_text())["annotations"]:
        assert a.get("label_weight", 1) == 1
    content["expected"]["duplicate"]["value"] = 0
    (run / "audit.json").write_text(json.dumps(content))
    options = ["--write", tmp_path / "other.json", "--drop-expected"]
    fails(monkeypatch, run, data, *options, match="can't be told .* with --drop-share")
    content["annotations"][0]["suspicions"]["duplicate"] = 2
    (run / "audit.json").write_text(json.dumps(content))
    options = ["--write", tmp_path / "other.json"]
    fails(monkeypatch, run, data, *options, match="has 2 as .* annotation 7; make it a number")
    assert not (tmp_path / "other.json").exists()


def test_what_a_person_has_corrected_is_not_replaced(audited, tmp_path, monkeypatch):
    run, data = audited
    options = ["--write", tmp_path / "new.json", "--relabel"]
    run_tool(monkeypatch, run, data, *options)
    content = json.loads((tmp_path / "new.json").read_text())
    tool.check_written_here(tmp_path / "new.json")  # as it was written, it may be
    content["annotations"][0]["bbox"] = [1, 2, 30, 40]
    (tmp_path / "new.json").write_text(json.dumps(content))
    fails(monkeypatch, run, data, *options, "--overwrite", match="or was changed since")
    assert json.loads((tmp_path / "new.json").read_text()) == content


def test_ids_that_occur_twice(data, tmp_path, monkeypatch):
    """A file whose name has "minival" in it may have them in a training."""
    run, file = make_run(tmp_path), data / "minival.json"
    content = json.loads((data / "train.json").read_text())
    content["annotations"].append(content["annotations"][0])
    file.write_text(json.dumps(content))
    register_coco("audited_minival", str(file), str(data))
    options = ["--dataset", "audited_minival"]
    fails(monkeypatch, run, data, *options, match="1 ids of annotations occur more than once")


def test_the_config_of_a_run_stands_for_the_run(audited, monkeypatch, capsys):
    run, data = audited
    run_tool(monkeypatch, run / "config.yaml", data)
    assert f"{run}/audit.json is an audit of the same" in capsys.readouterr().out


def test_an_audit_that_is_interrupted(audited, data, tmp_path, monkeypatch, capsys):
    run, copy = audited
    before = files_in(run)
    for picture in data.glob("*.png"):
        shutil.copy(picture, copy)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as while_it_runs:
        while_it_runs.setattr(tool, "to_csv", stop)
        with pytest.raises(KeyboardInterrupt):
            run_tool(while_it_runs, run, copy, "--overwrite")
    assert files_in(run) == before
    with monkeypatch.context() as while_it_runs:
        while_it_runs.setattr(tool, "write_page", stop)
        with pytest.raises(KeyboardInterrupt):
            run_tool(while_it_runs, run, copy, "--overwrite")
    # What it found is there.
    capsys.readouterr()
    run_tool(monkeypatch, run, copy, "--write", tmp_path / "cleaned.json")
    said = capsys.readouterr().out
    assert "taken as it is" in said and "audit.html is not there; --overwrite makes it" in said
    (run / "audit.csv").unlink()
    fails(monkeypatch, run, copy, match="but not the rest of an audit")


def test_an_audit_of_something_else(audited, tmp_path, monkeypatch):
    run, data = audited
    before = files_in(run)
    differs = "exists already, and is an audit of something else, which differs in"
    fails(monkeypatch, run, data, "--no-quick", match=f"{differs} --quick or --no-quick;")
    model = torch.load(run / "model_final.pth")
    torch.save({**model, "more": 1}, tmp_path / "other.pth")
    options = ["--weights", tmp_path / "other.pth"]
    fails(monkeypatch, run, data, *options, match=f"{differs} the weights;")
    content = json.loads((data / "train.json").read_text())
    content["annotations"][0]["bbox"][0] += 1
    (data / "train.json").write_text(json.dumps(content))
    options = ["--write", tmp_path / "new.json"]
    fails(
        monkeypatch, run, data, *options, match=f"{differs} the annotations; replace .* --overwrite"
    )
    assert files_in(run) == before and not (tmp_path / "new.json").exists()
    # It is made anew, and not taken: it looks for the pictures.
    fails(monkeypatch, run, data, "--overwrite", match="6 of 6 files .* do not exist")
    assert files_in(run) == before


def test_where_nothing_can_be_written(data, tmp_path, monkeypatch):
    run = make_run(tmp_path)
    no_folder = data / "train.json"
    for options in (["--output", no_folder], ["--write", no_folder / "new.json"]):
        fails(monkeypatch, run, data, *options, match=r"cannot write .*train\.json is not a folder")
    assert not list(tmp_path.glob("audit.*"))


def test_what_can_not_be_audited(data, tmp_path, monkeypatch):
    run = make_run(tmp_path)
    fails(monkeypatch, run / "none", data, match="there is no")
    fails(monkeypatch, run, data, "--dataset", "other", match="no data set named other")
    fails(monkeypatch, run, data, "--relabel", match="--write FILE")
    options = ["--write", "x.json", "--drop-share", "2"]
    fails(monkeypatch, run, data, *options, match="from 0 to 1")
    fails(monkeypatch, run, data, "--weights", "none.pth", match="none.pth")


def test_data_that_have_changed(data, tmp_path, monkeypatch):
    run = make_run(tmp_path)
    content = json.loads((data / "train.json").read_text())
    content["categories"].append({"id": 99, "name": "new"})
    (tmp_path / "train.json").write_text(json.dumps(content))
    for picture in data.glob("*.png"):
        (tmp_path / picture.name).write_bytes(picture.read_bytes())
    fails(monkeypatch, run, tmp_path, match="4 categories, but the detector 3")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda c: c.update(info="mine"), '"info" is not an object'),
        (
            lambda c: c["categories"].append({"id": "b", "name": "new"}),
            "with numbers and with texts",
        ),
        (
            lambda c: c.update(annotations=c["annotations"][:9]),
            "9 annotations in 1 pictures, too few",
        ),
    ],
)
def test_what_is_seen_before_a_picture_is(data, tmp_path, monkeypatch, spoil, message):
    content = json.loads((data / "train.json").read_text())
    spoil(content)
    (tmp_path / "train.json").write_text(json.dumps(content))  # and no picture
    fails(monkeypatch, make_run(tmp_path), tmp_path, match=message)


def test_a_detector_is_judged_before_localisers_are_trained(data, tmp_path, monkeypatch):
    """They take the longest."""
    trained = []
    monkeypatch.setattr(audit_module, "gather_placements", lambda *args, **_: trained.append(args))
    match = "it has not learned enough to judge"
    fails(monkeypatch, make_run(tmp_path), data, "--no-quick", match=match)
    assert not trained


def test_a_start_at_a_url(tmp_path, monkeypatch, capsys):
    cfg = tiny_config("MODEL.WEIGHTS", "https://example.invalid/backbone.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())

    def unreachable(path):
        raise OSError(f"no way to {path}")

    monkeypatch.setattr(tool.PathManager, "get_local_path", unreachable)
    assert tool.start_weights(str(tmp_path)) == ""
    assert "is not there: the trained backbone looks at" in capsys.readouterr().out
    monkeypatch.setattr(tool.PathManager, "get_local_path", lambda path: __file__)
    assert tool.start_weights(str(tmp_path)) == cfg.MODEL.WEIGHTS


@pytest.mark.parametrize("before", [[], ["--before-training"]])
def test_all_pictures_are_looked_for_first(before, data, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / "data")
    run, last = make_run(tmp_path), tmp_path / "data" / f"{NUM_PICTURES - 1}.png"
    if before:
        options = [*before, "--output", tmp_path / "out", "--weights", run / "model_final.pth"]
        run = run / "config.yaml"
    else:
        options = []
    monkeypatch.setattr(Annotations, "read_picture", None)
    Image.open(last).resize((WIDTH // 2, HEIGHT)).save(last)
    arguments = monkeypatch, run, tmp_path / "data", *options
    fails(*arguments, match=rf"{last.name} is 48x64 pixels, but .* says 96x64")
    last.unlink()
    fails(*arguments, match=rf"1 of 6 files .* do not exist; the first is .*{last.name}")


@pytest.mark.parametrize("pixel_format", ["RGB", "BGR"])
def test_boxes_and_detections_are_of_the_same_pixels(pixel_format, data, tmp_path):
    make_run(tmp_path, "faster_rcnn", "INPUT.FORMAT", pixel_format)
    register_coco("audited", data / "train.json", data)
    cfg = tool.load_run_config(str(tmp_path))
    judge, seen = build_judge(cfg), []
    judge.model.backbone.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    gather_evidence(judge, Annotations.of_dataset("audited"))
    assert len(seen) == 6 * NUM_PICTURES
    for upright, mirrored, *looks in zip(*[iter(seen)] * 6, strict=True):
        assert mirrored[..., :WIDTH].equal(upright[..., :WIDTH].flip(-1))
        assert looks[0].equal(upright) and looks[1].equal(mirrored)
        assert looks[2].shape[-2:] == (3 * HEIGHT // 2, 5 * WIDTH // 3)  # padded to 32 pixels
        assert looks[3][..., : 3 * WIDTH // 2].equal(looks[2][..., : 3 * WIDTH // 2].flip(-1))
    pixels = np.asarray(Image.open(data / "0.png"))
    first = (seen[0][0] * judge.model.pixel_std + judge.model.pixel_mean)[:, :HEIGHT, :WIDTH]
    expected = pixels if pixel_format == "RGB" else pixels[..., ::-1]
    np.testing.assert_allclose(first.permute(1, 2, 0).cpu(), expected, atol=1e-2)


def test_a_wrong_box_of_any_size_can_be_rated(data, tmp_path):
    content = json.loads((data / "train.json").read_text())
    content["annotations"][0]["bbox"] = [10, 10, 1e6, 1e6]
    (tmp_path / "train.json").write_text(json.dumps(content))
    make_run(tmp_path, "faster_rcnn", "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 0)
    register_coco("audited", tmp_path / "train.json", data)
    judge = build_judge(tool.load_run_config(str(tmp_path)))
    evidence = gather_evidence(judge, Annotations.of_dataset("audited"))
    assert np.isfinite(evidence.refined).all() and evidence.placed[0, 0, 2] == 10 + 1e6


def test_nobody_waits_for_masks(data, tmp_path):
    make_run(tmp_path, "mask_rcnn")
    judge = build_judge(tool.load_run_config(str(tmp_path)))
    found = judge(np.asarray(Image.open(data / "0.png")))["instances"]
    assert len(found) and not found.has("pred_masks")


def test_a_detector_that_has_diverged(data, tmp_path, monkeypatch, nan_heads):
    fails(monkeypatch, make_run(tmp_path), data, match="not finite .* diverged")


def config_of_a_training_to_be(folder, *opts):
    """With a backbone to start from, whose weights are random."""
    cfg = tiny_config("DATASETS.TRAIN", ("audited",), *opts)
    model = tiny_model(cfg)
    weights = {
        key: 1.01 * value if value.is_floating_point() else value
        for key, value in model.state_dict().items()
        if key.startswith("backbone.bottom_up.")
    }
    torch.save({"model": weights}, folder / "backbone.pth")
    cfg.MODEL.WEIGHTS = str(folder / "backbone.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "config.yaml"


def coloured_squares(folder):
    """Squares in three colours, of which one in ten is annotated as the next one: the annotations,
    and which of them these are."""
    rng = np.random.default_rng(0)
    colours = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200)])
    images, annotations, wrong = [], [], []
    for i in range(120):
        pixels = rng.integers(90, 160, size=(HEIGHT, WIDTH, 3)).astype(np.uint8)
        images.append({"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT})
        for left in (8, 56):
            true = int(rng.integers(NUM_CLASSES))
            pixels[16:48, left : left + 32] = colours[true] + rng.integers(-30, 30, (32, 32, 3))
            wrong.append(rng.random() < 0.1)
            annotated = (true + 1) % NUM_CLASSES
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": 1 + (annotated if wrong[-1] else true),
                    "bbox": [left, 16, 32, 32],
                    "area": 1024,
                    "iscrowd": 0,
                }
            )
        Image.fromarray(pixels).save(folder / f"{i}.png")
    categories = [{"id": k + 1, "name": f"kind {k}"} for k in range(NUM_CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content))
    return annotations, wrong


def test_before_training(tmp_path, monkeypatch, capsys):
    annotations, wrong = coloured_squares(tmp_path)
    # No detector is asked, so it may be one of other classes.
    config = config_of_a_training_to_be(tmp_path, "MODEL.ROI_HEADS.NUM_CLASSES", 80)
    output = tmp_path / "audit"
    options = ["--before-training", "--output", output, "--write", output / "new.json", "--relabel"]
    run_tool(monkeypatch, config, tmp_path, *options)
    audit = json.loads((output / "audit.json").read_text())
    suspicion = np.array([row["suspicion"] for row in audit["annotations"]])
    assert roc_auc_score(wrong, suspicion) > 0.97
    assert set(audit["expected"]) == {"wrong class", "duplicate"} and audit["missing"] == []
    # Of the clearest tenth, some disagree.
    number = len(annotations)
    shares = [share_of(k, number // 10).value for k in range(number // 10)]
    assert min(abs(audit["expected"]["wrong class"]["value"] - number * s) for s in shares) < 0.1
    page = (output / "audit.html").read_text()
    assert "Boxes were not judged (--quick). Missing objects take a trained detector." in page
    assert "Badly placed boxes" not in page
    for k in range(NUM_CLASSES):  # what is annotated as the next class
        row = page.split(f'<th scope="row">kind {(k + 1) % NUM_CLASSES}</th>')[1].split("</tr>")[0]
        assert re.search(rf"<td>kind {k} \d+</td>", row)
    relabelled = json.loads((output / "new.json").read_text())["annotations"]
    is_suspicious = suspicion > 0.5
    changed = [
        a["category_id"] != b["category_id"] for a, b in zip(annotations, relabelled, strict=True)
    ]
    assert 10 < sum(changed) <= sum(is_suspicious) and is_suspicious[changed].all()
    dropped = output / "dropped.json"  # by the same audit
    options = ["--before-training", "--output", output, "--write", dropped, "--drop-expected"]
    run_tool(monkeypatch, config, tmp_path, *options)
    weights = [a.get("label_weight") for a in json.loads(dropped.read_text())["annotations"]]
    assert weights.count(0) == round(audit["expected"]["wrong class"]["value"])
    for old, new in zip(annotations, relabelled, strict=True):
        assert 0.3 < new.pop("label_weight", 1) <= 1  # as likely as it is right
        assert old == {**new, "category_id": old["category_id"]}
    assert "wrong class" in capsys.readouterr().out


def test_where_it_can_not_be_told_how_many_are_wrong(tmp_path, monkeypatch, capsys):
    annotations, wrong = coloured_squares(tmp_path)
    monkeypatch.setattr(wrong_classes, "_LARGEST_SHARE", 0)
    options = ["--before-training", "--output", tmp_path / "audit"]
    run_tool(monkeypatch, config_of_a_training_to_be(tmp_path), tmp_path, *options)
    assert "  wrong class: can't be told\n" in capsys.readouterr().out
    audit = json.loads((tmp_path / "audit" / "audit.json").read_text())
    number = len(annotations)
    assert audit["expected"]["wrong class"] == {"value": 0, "low": 0, "high": number}
    assert roc_auc_score(wrong, [row["suspicion"] for row in audit["annotations"]]) > 0.9
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert "How many have a wrong class can&#x27;t be told" in page and "with --weights" in page


def test_boxes_before_training(tmp_path, monkeypatch, few_crops, capsys):
    coloured_squares(tmp_path)
    config, output = config_of_a_training_to_be(tmp_path), tmp_path / "audit"
    options = ["--before-training", "--no-quick", "--output", output]
    run_tool(monkeypatch, config, tmp_path, *options, "--write", output / "new.json", "--relabel")
    audit = json.loads((output / "audit.json").read_text())
    assert list(audit["expected"]) == ["wrong class", "misplaced box", "duplicate"]
    assert any(row["suspicions"]["misplaced box"] for row in audit["annotations"])
    quick = ["--before-training", "--output", tmp_path / "quick"]
    run_tool(monkeypatch, config, tmp_path, *quick)
    other = json.loads((tmp_path / "quick" / "audit.json").read_text())["annotations"]
    for now, then in zip(audit["annotations"], other, strict=True):
        assert now["suspicions"]["wrong class"] != then["suspicions"]["wrong class"]
    page = (output / "audit.html").read_text()
    assert "Badly placed boxes" in page and "a localiser" in page
    assert "Missing objects take a trained detector" in page
    assert "misplaced box" in capsys.readouterr().out


def test_what_can_not_be_audited_before_training(data, tmp_path, monkeypatch):
    config = config_of_a_training_to_be(tmp_path)
    before = ["--before-training", "--output", tmp_path / "audit"]
    fails(monkeypatch, config, data, "--before-training", match="--output FOLDER")
    fails(monkeypatch, tmp_path, data, *before, match="takes the config of the training to be")
    fails(monkeypatch, config, data, *before, "--weights", "none.pth", match=r"no file none\.pth")
    torch.save({"model": {"head": torch.zeros(1)}}, tmp_path / "head.pth")
    options = [*before, "--weights", tmp_path / "head.pth"]
    fails(monkeypatch, config, data, *options, match="does not fit this model")
    cfg = tiny_config("DATASETS.TRAIN", ("audited",))
    (tmp_path / "empty.yaml").write_text(cfg.dump())
    fails(monkeypatch, tmp_path / "empty.yaml", data, *before, match=r"MODEL\.WEIGHTS is empty")
    assert not (tmp_path / "audit").exists()


def test_the_weights_that_a_training_started_from(data, tmp_path, monkeypatch, knowing, capsys):
    config_of_a_training_to_be(tmp_path)
    weights = tmp_path / "backbone.pth"
    run = make_run(tmp_path, "faster_rcnn", "MODEL.WEIGHTS", str(weights))
    viewers, have_learned = [], []
    gather = audit_module.gather_appearance

    def note(model, *args, **kwargs):
        viewers.append(model.state_dict())
        have_learned.append(kwargs["has_learned"])
        return gather(model, *args, **kwargs)

    monkeypatch.setattr(audit_module, "gather_appearance", note)
    run_tool(monkeypatch, run, data)
    weights.rename(tmp_path / "elsewhere.pth")
    fails(monkeypatch, run, data, match="differs in the weights that the training started from;")
    run_tool(monkeypatch, run, data, "--overwrite")
    assert "is not there: the trained backbone looks at the objects" in capsys.readouterr().out
    start = torch.load(tmp_path / "elsewhere.pth")["model"]
    trained = torch.load(run / "model_final.pth")["model"]
    for viewer, of in zip(viewers, (start, trained), strict=True):
        assert all(viewer[key].equal(of[key]) for key in start)
    assert any(not start[key].equal(trained[key]) for key in start)
    assert have_learned == [False, True]


def test_several_data_sets(data, tmp_path, monkeypatch):
    run = make_run(tmp_path, "faster_rcnn", "DATASETS.TRAIN", ("audited", "audited2"))
    fails(monkeypatch, run, data, match="2 data sets .* --dataset")
