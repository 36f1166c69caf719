"""tools/audit.py, on real detectors that have learned nothing and on evidence that says much."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from swn_d2.audit import audit as audit_module
from swn_d2.audit.annotations import Annotations
from swn_d2.audit.evidence import build_judge, gather_evidence
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


def run_tool(monkeypatch, run, data, *options):
    registered = ["--register-coco", "audited", str(data / "train.json"), str(data)]
    monkeypatch.setattr(sys, "argv", ["audit.py", str(run), *registered, *map(str, options)])
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
    for a, row in zip(new, content["annotations"], strict=True):
        expected = None if row["kind"] is None else pytest.approx(1 - row["suspicion"], abs=1e-4)
        assert a.get("sample_weight") == expected
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
    fails(monkeypatch, run, data, *options, match="no audit has written it")
    options = ["--write", data / "train.json", "--overwrite"]
    fails(monkeypatch, run, data, *options, match=r"train\.json is the input, too")
    fails(monkeypatch, run, data, "--write", run / "audit.csv", match="named for two outputs")


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


def test_a_picture_that_is_gone(data, tmp_path, monkeypatch):
    (tmp_path / "train.json").write_bytes((data / "train.json").read_bytes())
    fails(monkeypatch, make_run(tmp_path), tmp_path, match=r"cannot read .*0\.png")


def test_a_picture_of_another_size(data, tmp_path, monkeypatch):
    (tmp_path / "train.json").write_bytes((data / "train.json").read_bytes())
    for picture in data.glob("*.png"):
        Image.open(picture).resize((WIDTH // 2, HEIGHT)).save(tmp_path / picture.name)
    fails(monkeypatch, make_run(tmp_path), tmp_path, match="is 48x64 pixels, but .* says 96x64")


@pytest.mark.parametrize("pixel_format", ["RGB", "BGR"])
def test_boxes_and_detections_are_of_the_same_pixels(pixel_format, data, tmp_path):
    make_run(tmp_path, "faster_rcnn", "INPUT.FORMAT", pixel_format)
    register_coco("audited", data / "train.json", data)
    cfg = tool.load_run_config(str(tmp_path))
    judge, seen = build_judge(cfg), []
    judge.model.backbone.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    gather_evidence(judge, Annotations.of_dataset("audited"))
    assert len(seen) == 3 * NUM_PICTURES
    for upright, mirrored, detected in zip(*[iter(seen)] * 3, strict=True):
        assert upright.equal(detected)
        assert mirrored[..., :WIDTH].equal(upright[..., :WIDTH].flip(-1))
    pixels = np.asarray(Image.open(data / "0.png"))
    first = (seen[0][0] * judge.model.pixel_std + judge.model.pixel_mean)[:, :HEIGHT, :WIDTH]
    expected = pixels if pixel_format == "RGB" else pixels[..., ::-1]
    np.testing.assert_allclose(first.permute(1, 2, 0).cpu(), expected, atol=1e-2)


def test_a_detector_that_has_diverged(data, tmp_path, monkeypatch, nan_heads):
    fails(monkeypatch, make_run(tmp_path), data, match="not finite .* diverged")


def test_several_data_sets(data, tmp_path, monkeypatch):
    run = make_run(tmp_path, "faster_rcnn", "DATASETS.TRAIN", ("audited", "audited2"))
    fails(monkeypatch, run, data, match="2 data sets .* --dataset")
