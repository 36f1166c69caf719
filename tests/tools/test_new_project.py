"""tools/new_project.py, and the commands that it prints."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from swn_d2.data import make_digit_scenes
from tests import processes
from tests.voc import voc_object, write_voc

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "new_project.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The options that register two data sets."""
    folder = tmp_path_factory.mktemp("data") / "some digits"
    make_digit_scenes(folder, num_train=6, num_val=3, image_size=(96, 64))
    return [
        str(text)
        for part in ("train", "val")
        for text in (
            *("--register-coco", f"mine_{part}"),
            *(folder / "annotations" / f"instances_{part}.json", folder / part),
        )
    ]


def test_from_pictures_to_a_report_with_the_commands_that_it_prints(data, tmp_path):
    result = processes.run(TOOL, *data, "-o", "mine.yaml", cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith("mine_train: 6 pictures, most of about 96 x 64 pixels, with ")
    assert "mine.yaml is a config for them. Next:" in lines
    backbone, train, report = (shlex.split(line) for line in lines if "  python" in line)
    tools = os.path.relpath(ROOT / "tools", tmp_path)
    assert backbone == ["python", f"{tools}/get_backbone.py", "mobilenetv2_100"]
    short = ["MODEL.WEIGHTS", "", "MODEL.TIMM.NORM", "BN", "DATALOADER.NUM_WORKERS", "0"]
    short += ["SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2"]
    for command in ([*train, *short], report):
        result = processes.run(tmp_path / command[1], *command[2:], cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "output" / "mine" / "report.html").exists()


def test_it_can_run_again_and_keeps_what_was_changed(data, tmp_path):
    command = [TOOL, *data, "-o", "new/mine.yaml"]
    assert processes.run(*command, cwd=tmp_path).returncode == 0
    assert processes.run(*command, cwd=tmp_path).returncode == 0
    file = tmp_path / "new" / "mine.yaml"
    file.write_text(file.read_text() + "# mine\n")
    result = processes.run(*command, cwd=tmp_path)
    assert result.returncode == 1 and "mine.yaml exists already" in result.stderr
    assert file.read_text().endswith("# mine\n")


@pytest.fixture
def cats(tmp_path):
    """A folder with XML files and the pictures beside them, and with a space in its name."""
    write_voc(tmp_path, {f"p{i}": [voc_object("cat", (20, 30, 120, 130))] for i in range(12)})
    (tmp_path / "Annotations").rename(tmp_path / "my cats")
    for picture in (tmp_path / "JPEGImages").iterdir():
        picture.rename(tmp_path / "my cats" / picture.name)
    return tmp_path


def numbers_of_pictures(result):
    return map(int, re.findall(r"^cats_\w+: (\d+) pictures", result.stdout, re.M))


SPLIT = ("--split", "cats", "my cats", "my cats", "-o", "new/cats.yaml")


def test_one_folder_becomes_two_data_sets(cats):
    before = sorted((cats / "my cats").iterdir())
    (cats / "my cats" / "p0.jpg").write_bytes(b"no picture")
    for _ in range(2):
        result = processes.run(TOOL, *SPLIT, cwd=cats)
        assert result.returncode == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Left out, since they can't be read (1 in all): p0.jpg: cannot id")
    train = next(shlex.split(line) for line in lines if "train_net.py" in line)
    assert train[2:] == [
        *("--config-file", "new/cats.yaml"),
        *("--register-coco", "cats_train", "new/cats_train.json", "my cats"),
        *("--register-coco", "cats_val", "new/cats_val.json", "my cats"),
    ]
    assert sorted((cats / "my cats").iterdir()) == before
    num_train, num_val = numbers_of_pictures(result)
    assert num_train + num_val == 11 and num_train > num_val


def test_the_share_is_that_of_the_training_set(cats):
    result = processes.run(TOOL, *SPLIT, "--share", "0.2", cwd=cats)
    num_train, num_val = numbers_of_pictures(result)
    assert num_train + num_val == 12 and num_train < num_val


def test_what_is_wrong_is_said_of_the_file_that_is_there(cats):
    ids = {"category_id": 1, "bbox": [20, 30, 110, 100], "area": 0}
    content = {
        "images": [
            {"id": i, "file_name": f"p{i}.jpg", "width": 200, "height": 160} for i in range(12)
        ],
        "annotations": [{"id": i, "image_id": i, **ids} for i in range(12)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (cats / "cats.json").write_text(json.dumps(content))
    options = ("--split", "cats", "cats.json", "my cats", "-o", "new/cats.yaml")
    result = processes.run(TOOL, *options, cwd=cats)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith('error: cats.json has an "area" of 0')
    assert not list((cats / "new").iterdir())


def test_what_fails_leaves_nothing_in_the_way(cats):
    (cats / "new").mkdir()
    (cats / "new" / "cats.yaml").write_text("mine")
    result = processes.run(TOOL, *SPLIT, cwd=cats)
    assert result.returncode == 1 and "cats.yaml exists already" in result.stderr
    assert [file.name for file in (cats / "new").iterdir()] == ["cats.yaml"]
    # But what was there before this try is kept.
    (cats / "new" / "cats.yaml").unlink()
    assert processes.run(TOOL, *SPLIT, cwd=cats).returncode == 0
    (cats / "new" / "cats.yaml").write_text("mine")
    assert processes.run(TOOL, *SPLIT, cwd=cats).returncode == 1
    assert len(list((cats / "new").iterdir())) == 3
