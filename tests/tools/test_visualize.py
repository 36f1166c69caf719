"""tools/visualize.py, on a detector that has learned nothing."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swn_d2.engine import SafeCheckpointer
from tests import processes
from tests.tiny import tiny_config, tiny_model

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
visualize = importlib.import_module("visualize")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with config.yaml and a checkpoint, made where there is a GPU."""
    folder = tmp_path_factory.mktemp("run")
    cfg = tiny_config(
        *("TEST.DETECTIONS_PER_IMAGE", 1),
        *("INPUT.MIN_SIZE_TEST", 64),
        *("DATASETS.TEST", ("not_here",)),
        detector="mask_rcnn",
    )
    SafeCheckpointer(tiny_model(cfg), str(folder)).save("model_final")
    cfg.MODEL.DEVICE = "cuda"
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


PICTURES = ["a.bmp", "a_line.png", "b.jpg", "broken.png"]


@pytest.fixture
def pictures(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    for name in ("b.jpg", "a.bmp"):
        Image.fromarray(noise).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (20_000, 2)).save(tmp_path / "a_line.png")
    return tmp_path


def test_every_picture_that_can_be_read(run, pictures):
    before = {path.name: path.read_bytes() for path in pictures.iterdir()}
    tool = ROOT / "tools" / "visualize.py"
    result = processes.run(tool, run, "*", "--threshold", "0", cwd=pictures)
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and "2 of 4 pictures" in errors[2]
    assert "a_line.png is so long and thin" in errors[0] and "broken.png" in errors[1]
    assert "Traceback" not in result.stderr
    assert "warning: the classes have numbers for names" in result.stderr

    lines = result.stdout.splitlines()
    outputs = {"a.bmp": "a.png", "b.jpg": "b.jpg"}
    for line, (name, output) in zip(lines, outputs.items(), strict=True):
        file = run / "predictions" / output
        assert re.fullmatch(rf"{name}: 1 object, \d+\.\d\d s -> {re.escape(str(file))}", line)
        picture = Image.open(file)
        assert picture.size == (864, 576) and picture.format == file.suffix[1:].upper().replace(
            "JPG", "JPEG"
        )
    assert sorted(p.name for p in (run / "predictions").iterdir()) == ["a.png", "b.jpg"]
    assert {path.name: path.read_bytes() for path in pictures.iterdir()} == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["none.jpg"], "found no picture for none.jpg"),
        (["b.jpg", "--output", "."], "b.jpg would be overwritten"),
        (["b.jpg", "--threshold", "50"], "--threshold is 50.0"),
        (["b.jpg", "--weights", "none.pth"], "none.pth"),
        (["b.jpg", "--opts", "MODEL.WIEGHTS", "x"], "Did you mean MODEL.WEIGHTS"),
        (["b.jpg", "--register-coco", "mine", "none.json", "."], "no annotation file none.json"),
    ],
)
def test_mistakes_are_one_line(run, pictures, monkeypatch, arguments, message):
    monkeypatch.chdir(pictures)
    monkeypatch.setattr(sys, "argv", ["visualize.py", str(run), *arguments])
    with pytest.raises(SystemExit) as error:
        visualize.main()
    assert str(error.value).startswith("error: ") and message in str(error.value)
    assert sorted(p.name for p in pictures.iterdir()) == PICTURES
