"""examples/torchvision_detection.py, where there is no Detectron2, on DigitScenes."""

import importlib.util
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swn_d2.analysis.report import write_report
from swn_d2.analysis.run_folder import RunFolder
from swn_d2.data import make_digit_scenes
from swn_d2.errors import UserError
from swn_d2.recording import SNAPSHOTS, read_recording
from tests.without_detectron2 import run_without_detectron2

FILE = Path(__file__).parents[2] / "examples" / "torchvision_detection.py"
_spec = importlib.util.spec_from_file_location("torchvision_detection", FILE)
example = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(example)

ITERATIONS = 2  # one line of metrics.json, and one record


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digit_scenes"
    make_digit_scenes(folder, num_train=4, num_val=1, image_size=(64, 64))
    return folder


@pytest.fixture(scope="module")
def files(scenes):
    """Arguments: the data, and sizes that are small."""
    arguments = ["--short-side", "64", "--batch-size", "1", "--iterations", str(ITERATIONS)]
    for name in ("train", "val"):
        annotations = scenes / "annotations" / f"instances_{name}.json"
        arguments += [f"--{name}", str(annotations), str(scenes / name)]
    return arguments


@pytest.fixture(scope="module")
def runs(files, tmp_path_factory):
    """A folder with a run of each detector, and a baseline."""
    folder = tmp_path_factory.mktemp("runs")
    commands = [
        [*files, "--detector", detector, "--output", str(folder / detector)]
        for detector in example.DETECTORS
    ]
    commands.append([*files, "--weighter", "Uniform", "--output", str(folder / "baseline")])
    run_without_detectron2(f"""
import importlib.util
spec = importlib.util.spec_from_file_location("example", {str(FILE)!r})
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
example.LOG_PERIOD = {ITERATIONS}
for command in {commands!r}:
    example.main(command)
""")
    return folder


@pytest.mark.parametrize("run", [*example.DETECTORS, "baseline"])
def test_a_run_leaves_what_the_report_reads(run, runs):
    folder = RunFolder(runs / run)
    (record,) = folder.recording
    assert record.iteration == ITERATIONS - 1 and record.num_negatives > record.num_positives > 0
    assert ("box_learned" in record.positives) == (run != "baseline")
    assert {"cls_loss", "box_loss", "iou", "prob", "gt_class"} < set(record.positives)
    assert ("mask_loss" in record.positives) == (run == "mask_rcnn")
    assert record.crops and all(crop.image.endswith(".jpg") for crop in record.crops)
    losses, evaluation = folder.metrics
    assert losses["total_loss"] > 0 and ("weights/box_mean" in losses) == (run != "baseline")
    assert 0 <= evaluation["bbox/AP"] <= 100 and ("segm/AP" in evaluation) == (run == "mask_rcnn")
    assert len(list((runs / run / SNAPSHOTS).glob("*.pth"))) == (
        0 if run == "baseline" else ITERATIONS
    )


def test_the_report_opens_on_the_folders(runs, tmp_path):
    write_report([RunFolder(runs / "faster_rcnn")], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "loss_classifier" in page
    for name in ("losses", "figure-samples", "figure-iou_shares"):
        (section,) = re.findall(rf'<section id="{name}">.*?</section>', page, re.DOTALL)
        assert "<svg" in section, name


def test_a_picture_shows_what_the_detector_saw(runs, scenes):
    """The crop of an object, against the file."""
    (record,) = read_recording(runs / "faster_rcnn" / "samples.jsonl")
    truth = json.loads((scenes / "annotations" / "instances_train.json").read_text())
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    for crop in record.crops:

        def mean(picture, x1, y1, x2, y2):
            return np.asarray(picture).astype(float)[int(y1) : int(y2), int(x1) : int(x2)].mean()

        seen = mean(Image.open(io.BytesIO(crop.jpeg)), *crop.gt_box)
        original = Image.open(scenes / "train" / crop.image)
        boxes = [a["bbox"] for a in truth["annotations"] if names[a["image_id"]] == crop.image]
        assert min(abs(mean(original, x, y, x + w, y + h) - seen) for x, y, w, h in boxes) < 6


def test_weights_to_start_from(runs, files, tmp_path, capsys):
    weights = str(runs / "faster_rcnn" / "model.pth")
    model = example.build_detector("faster_rcnn", 11, 64)
    example.load_weights(model, weights)
    trained = torch.load(weights, weights_only=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[name])
    arguments = [*files, "--detector", "fcos", "--weights", weights, "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match="is not of this detector: it differs in .*--detector"):
        example.main(arguments)


def test_a_run_is_not_overwritten(runs, files):
    before = (runs / "fcos" / "metrics.json").read_text()
    with pytest.raises(
        SystemExit, match=r"has a run already \(metrics\.json\); give another --output"
    ):
        example.main([*files, "--output", str(runs / "fcos")])
    assert (runs / "fcos" / "metrics.json").read_text() == before


def test_weights_alone_are_not_overwritten(files, tmp_path):
    (tmp_path / "model.pth").write_bytes(b"mine")
    with pytest.raises(SystemExit, match=r"\(model\.pth\); give another --output"):
        example.main([*files, "--output", str(tmp_path)])
    assert (tmp_path / "model.pth").read_bytes() == b"mine"


def edited(source, target, **changes):
    content = json.loads(source.read_text())
    target.write_text(json.dumps({**content, **changes}))
    return str(target)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"missing": True}, "reading the annotations .*none.json failed: FileNotFoundError"),
        ({"images": [], "annotations": []}, "has no images or no categories"),
        ({"categories": [{"id": 1, "name": "one"}]}, "different categories"),
        ({"batch-size": "5"}, "--batch-size is 5, but .* has 4 images"),
    ],
)
def test_bad_data(change, message, files, scenes, tmp_path):
    arguments = [*files, "--output", str(tmp_path / "run")]
    annotations = scenes / "annotations" / "instances_train.json"
    if "batch-size" in change:
        arguments += ["--batch-size", change["batch-size"]]
    elif "missing" in change:
        arguments += ["--train", str(tmp_path / "none.json"), str(scenes / "train")]
    else:
        file = edited(annotations, tmp_path / "edited.json", **change)
        arguments += ["--train", file, str(scenes / "train")]
    with pytest.raises(SystemExit, match=message):
        example.main(arguments)
    assert not (tmp_path / "run").exists()


def test_categories_of_other_names(files, scenes, tmp_path):
    annotations = scenes / "annotations" / "instances_train.json"
    categories = json.loads(annotations.read_text())["categories"]
    names = [category["name"] for category in reversed(categories)]
    swapped = [{**c, "name": name} for c, name in zip(categories, names, strict=True)]
    file = edited(annotations, tmp_path / "edited.json", categories=swapped)
    arguments = [*files, "--output", str(tmp_path / "run"), "--train", file, str(scenes / "train")]
    with pytest.raises(SystemExit, match="different categories"):
        example.main(arguments)


def test_what_an_evaluation_needs_and_a_turned_picture(scenes, tmp_path):
    annotations = scenes / "annotations" / "instances_train.json"
    content = json.loads(annotations.read_text())
    few = [
        {k: v for k, v in a.items() if k not in ("area", "iscrowd")} for a in content["annotations"]
    ]
    file = edited(annotations, tmp_path / "edited.json", annotations=few)
    folder = shutil.copytree(scenes / "train", tmp_path / "images")
    upright = Image.open(folder / "000001.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6  # stored as if the camera had been turned
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "000001.jpg", exif=turned)
    data = example.CocoFolder(file, str(folder), masks=False)
    image, _ = data[0]
    expected = np.asarray(upright.convert("RGB"), float).transpose(2, 0, 1) / 255
    assert np.abs(image.numpy() - expected).mean() < 0.05  # of a JPEG of a JPEG
    for annotation in data.coco.anns.values():
        assert annotation["area"] == annotation["bbox"][2] * annotation["bbox"][3]
        assert annotation["iscrowd"] == 0


def deep_picture(folder, name):
    Image.fromarray(np.full((64, 64), 40_000, np.uint16)).save(folder / name, format="PNG")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder, name: (folder / name).unlink(), "reading image 1 in .*FileNotFoundError"),
        (lambda folder, name: (folder / name).write_text("x"), "reading image 1 in .*cannot ident"),
        (deep_picture, "000001.jpg has more than 8 bits a channel; convert it to 8"),
    ],
)
def test_bad_pictures(spoil, message, scenes, tmp_path):
    """Also one that is read in the midst of a training."""
    folder = shutil.copytree(scenes / "train", tmp_path / "images")
    spoil(folder, "000001.jpg")
    annotations = str(scenes / "annotations" / "instances_train.json")
    data = example.CocoFolder(annotations, str(folder), masks=False)
    data[1]
    with pytest.raises(UserError, match=message):
        data[0]


def test_an_annotation_of_a_category_that_there_is_not(scenes, tmp_path):
    annotations = scenes / "annotations" / "instances_train.json"
    objects = json.loads(annotations.read_text())["annotations"]
    file = edited(
        annotations, tmp_path / "edited.json", annotations=[{**objects[0], "category_id": 99}]
    )
    data = example.CocoFolder(file, str(scenes / "train"), masks=False)
    with pytest.raises(UserError, match="or its annotations, failed: KeyError: 99"):
        data[0]


def test_a_device_that_there_is_not(files, tmp_path):
    with pytest.raises(SystemExit, match="moving the detector to the device none failed"):
        example.main([*files, "--device", "none", "--output", str(tmp_path / "run")])


def test_values_out_of_range(files, capsys):
    with pytest.raises(SystemExit):
        example.main([*files, "--lr", "0"])
    assert "--lr must be greater than 0" in capsys.readouterr().err


def test_a_loss_that_is_not_finite(files, tmp_path):
    with pytest.raises(SystemExit, match="the loss is .* in iteration .*; lower --lr"):
        example.main([*files, "--lr", "1e9", "--output", str(tmp_path / "run")])
