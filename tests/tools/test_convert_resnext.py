"""The ResNeXt converter: its file, the config keys that it prints, and their features."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torchvision.models.resnet import Bottleneck, ResNet

from swn_d2 import UserError, load_config
from tests import processes

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
converter = importlib.import_module("convert_resnext")


def run(*arguments):
    return processes.run(ROOT / "tools" / "convert_resnext.py", *arguments)


def meta_weights(blocks, **kwargs):
    with torch.device("meta"):
        return ResNet(Bottleneck, blocks, **kwargs).state_dict()


@pytest.fixture(scope="module")
def resnext50():
    """A ResNeXt-50 whose normalisation layers are not the identity, as after a training."""
    torch.manual_seed(0)
    model = torchvision.models.resnext50_32x4d(weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.0)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.1)
    return model.eval()


@torch.no_grad()
def test_detectron2_computes_the_same_features(resnext50, tmp_path):
    source, destination = tmp_path / "resnext50.pth", tmp_path / "new" / "resnext50.pth"
    torch.save(resnext50.state_dict(), source)
    result = run(source, destination)
    assert result.returncode == 0, result.stderr

    cfg = load_config(str(ROOT / "configs" / "Base-RCNN-FPN.yaml"))
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(result.stdout)))
    cfg.MODEL.DEVICE = "cpu"
    assert cfg.MODEL.WEIGHTS == str(destination)
    detector = build_model(cfg).eval()
    DetectionCheckpointer(detector).load(cfg.MODEL.WEIGHTS)

    image = torch.randint(0, 256, (3, 96, 64), dtype=torch.uint8)
    images = detector.preprocess_image([{"image": image}])
    features = detector.backbone.bottom_up(images.tensor)

    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((image / 255 - mean[:, None, None]) / std[:, None, None])[None]
    x = resnext50.maxpool(resnext50.relu(resnext50.bn1(resnext50.conv1(x))))
    for number in range(1, 5):
        x = getattr(resnext50, f"layer{number}")(x)
        # Relative to the largest value, the two differ by the rounding of the normalised image and
        # of float32 sums; a wrong stride gives 0.05.
        error = (features[f"res{number + 1}"] - x).abs().max() / x.abs().max()
        assert error < 1e-5


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_reads_the_training_checkpoints_of_both_libraries(resnext50, tmp_path, key):
    path = tmp_path / "last.bin"
    torch.save({key: resnext50.state_dict(), "epoch": 3}, path)
    converted = converter.convert(converter.read_state_dict(str(path)))
    assert torch.equal(converted["res5.2.conv3.weight"], resnext50.layer4[2].conv3.weight)


def test_reads_safetensors(resnext50, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = str(tmp_path / "resnext50.safetensors")
    safetensors.save_file(resnext50.state_dict(), path)
    assert set(converter.read_state_dict(path)) == set(resnext50.state_dict())
    Path(path).write_text("no tensors")
    with pytest.raises(UserError, match="not a safetensors file"):
        converter.read_state_dict(path)


def test_says_what_to_install_for_safetensors(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match="pip install safetensors"):
        converter.read_state_dict("resnext50.safetensors")


@pytest.mark.parametrize(
    "blocks, groups, width, depth",
    [((3, 4, 23, 3), 32, 8, 101), ((3, 4, 23, 3), 64, 4, 101), ((3, 8, 36, 3), 32, 4, 152)],
)
def test_reads_the_architecture_off_the_shapes(blocks, groups, width, depth):
    weights = meta_weights(blocks, groups=groups, width_per_group=width)
    resnets = converter.detectron2_settings(weights)["MODEL"]["RESNETS"]
    assert (resnets["DEPTH"], resnets["NUM_GROUPS"], resnets["WIDTH_PER_GROUP"]) == (
        depth,
        groups,
        width,
    )
    # All but the classifier's two tensors and a counter in each normalisation layer.
    counters = sum(key.endswith("num_batches_tracked") for key in weights)
    assert len(converter.convert(weights)) == len(weights) - counters - 2


def test_the_configs_of_the_paper_have_the_printed_keys():
    settings = converter.detectron2_settings(
        meta_weights([3, 4, 23, 3], groups=32, width_per_group=4)
    )
    path = str(ROOT / "configs" / "COCO-Detection" / "faster_rcnn_X_101_32x4d_FPN_1x.yaml")
    cfg = load_config(path)
    unchanged = cfg.clone()
    cfg.merge_from_other_cfg(CfgNode(settings))
    assert cfg == unchanged


def without(weights, key):
    return {k: v for k, v in weights.items() if k != key}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: {"a": torch.zeros(1)}, "not the weights of a ResNeXt"),
        (lambda w: meta_weights([3, 4, 6, 3]), "of a ResNet, not of a ResNeXt"),
        (
            lambda w: meta_weights([3, 4, 2, 3], groups=32, width_per_group=4),
            r"no ResNeXt with \(3, 4, 2, 3\) blocks",
        ),
        (lambda w: {**w, "layer1.0.se.fc1.weight": torch.zeros(1)}, "layer1.0.se.fc1.weight has"),
        (lambda w: {**w, "layer3.1.conv1.weight": torch.zeros(2, 3)}, r"the shape \(2, 3\)"),
        (lambda w: without(w, "layer2.0.bn1.bias"), r"1 tensors .* res3\.0\.conv1\.norm\.bias"),
    ],
    ids=["no ResNet", "no groups", "depth", "attention", "shape", "incomplete"],
)
def test_other_weights_are_refused(change, message):
    weights = meta_weights([3, 4, 6, 3], groups=32, width_per_group=4)
    with pytest.raises(UserError, match=message):
        converter.convert(change(weights))


def test_errors_are_one_sentence_on_the_command_line(tmp_path):
    result = run(tmp_path / "none.pth", tmp_path / "new.pth")
    assert result.returncode == 1
    # Libraries may warn before it.
    message = f"error: cannot read {tmp_path}/none.pth: No such file or directory."
    assert result.stderr.splitlines()[-1] == message
    assert "Traceback" not in result.stderr
