"""tools/new_project.py, and the commands that it prints."""

import os
import shlex
from pathlib import Path

import pytest

from swn_d2.data import make_digit_scenes
from tests import processes

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
