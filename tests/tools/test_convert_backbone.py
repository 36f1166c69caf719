"""The backbone converter: its files, the config keys that it prints, and their features."""

import importlib
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torchvision.models.resnet import Bottleneck, ResNet

from swn_d2 import UserError, load_config
from swn_d2.engine import SafeCheckpointer
from swn_d2.modeling import TimmBackbone
from tests import processes

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
converter = importlib.import_module("convert_backbone")


def run(*arguments):
    return processes.run(ROOT / "tools" / "convert_backbone.py", *arguments)


def meta_weights(blocks, **kwargs):
    with torch.device("meta"):
        return ResNet(Bottleneck, blocks, **kwargs).state_dict()


def with_normalisation(model):
    """The model with normalisation layers that are not the identity, as after a training."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.0)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def resnext50():
    torch.manual_seed(0)
    return with_normalisation(torchvision.models.resnext50_32x4d(weights=None))


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
    converted = converter.convert_resnext(converter.read_state_dict(str(path)))
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
    resnets = converter.resnext_settings(weights)["MODEL"]["RESNETS"]
    assert (resnets["DEPTH"], resnets["NUM_GROUPS"], resnets["WIDTH_PER_GROUP"]) == (
        depth,
        groups,
        width,
    )
    # All but the classifier's two tensors and a counter in each normalisation layer.
    counters = sum(key.endswith("num_batches_tracked") for key in weights)
    assert len(converter.convert_resnext(weights)) == len(weights) - counters - 2


def test_the_configs_of_the_paper_have_the_printed_keys():
    settings = converter.resnext_settings(meta_weights([3, 4, 23, 3], groups=32, width_per_group=4))
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
        (lambda w: {"a": torch.zeros(1)}, "not the weights of a ResNeXt.* give --timm"),
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
        converter.convert_resnext(change(weights))


def meta_timm(name):
    with torch.device("meta"):
        return timm.create_model(name).state_dict()


def meta_mobilenet():
    with torch.device("meta"):
        return torchvision.models.mobilenet_v2(weights=None).state_dict()


@torch.no_grad()
def test_timm_computes_torchvisions_features(tmp_path):
    torch.manual_seed(0)
    mobilenet = with_normalisation(torchvision.models.mobilenet_v2(weights=None))
    source, destination = tmp_path / "mobilenet_v2.pth", tmp_path / "mobilenetv2_100.pth"
    torch.save(mobilenet.state_dict(), source)
    result = run(source, destination, "--timm", "mobilenetv2_100")
    assert result.returncode == 0, result.stderr

    cfg = load_config(str(ROOT / "configs" / "Base-RCNN-FPN.yaml"))
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(result.stdout)))
    cfg.MODEL.DEVICE = "cpu"
    assert cfg.MODEL.WEIGHTS == str(destination)
    detector = build_model(cfg).eval()
    SafeCheckpointer(detector).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)

    image = torch.randint(0, 256, (3, 96, 64), dtype=torch.uint8)
    images = detector.preprocess_image([{"image": image}])
    features = detector.backbone.bottom_up(images.tensor)

    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((image / 255 - mean[:, None, None]) / std[:, None, None])[None]
    last_of_stride = {3: "res2", 6: "res3", 13: "res4", 17: "res5"}
    for number, layer in enumerate(mobilenet.features[:18]):
        x = layer(x)
        if number in last_of_stride:
            error = (features[last_of_stride[number]] - x).abs().max() / x.abs().max()
            assert error < 1e-5


@pytest.mark.parametrize(
    "base, builder, name",
    [
        ("Base-RCNN-FPN", "build_timm_fpn_backbone", "swin_tiny_patch4_window7_224"),
        ("Base-RetinaNet", "build_timm_retinanet_fpn_backbone", "pvt_v2_b0"),
    ],
)
@torch.no_grad()
def test_timms_weights_are_all_of_a_detectors_backbone(base, builder, name, tmp_path):
    torch.manual_seed(0)
    source = timm.create_model(name).eval()
    path = tmp_path / "backbone.pth"
    converter.write_backbone(converter.convert_timm(source.state_dict(), name), str(path))

    cfg = load_config(str(ROOT / "configs" / f"{base}.yaml"), ["MODEL.DEVICE", "cpu"])
    cfg.merge_from_other_cfg(CfgNode(converter.timm_settings(name)))
    cfg.MODEL.BACKBONE.NAME = builder
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    detector = build_model(cfg).eval()
    before = {key: tensor.clone() for key, tensor in detector.state_dict().items()}
    SafeCheckpointer(detector).resume_or_load(str(path), resume=False)

    image = torch.randn(1, 3, 224, 224)
    features = detector.backbone.bottom_up(image)
    expected = source.forward_intermediates(image, intermediates_only=True)
    for x, feature in zip(expected[-len(features) :], features.values(), strict=True):
        assert torch.allclose(feature, x, atol=1e-5)
    for key, tensor in detector.state_dict().items():
        assert key.startswith("backbone.bottom_up.") or torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("name", ["twins_pcpvt_small", "mobilenetv2_100.ra_in1k"])
def test_finds_timms_names_in_its_features(name):
    weights = meta_timm(name)
    converted = converter.convert_timm(weights, name)
    with torch.device("meta"):
        assert list(converted) == list(TimmBackbone(name).state_dict())
    identities = {id(tensor) for tensor in converted.values()}
    assert len(identities) == len(converted)
    # The names are enough: the order does not matter.
    assert converter.convert_timm(dict(sorted(weights.items())), name) == converted


@pytest.mark.parametrize(
    "name, mean, std",
    [
        ("mobilenetv2_100", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        ("tf_efficientnet_lite0", [127.5] * 3, [127.5] * 3),
    ],
)
def test_the_pixels_are_normalised_as_in_the_training(name, mean, std):
    settings = converter.timm_settings(name)
    assert (settings["MODEL"]["PIXEL_MEAN"], settings["MODEL"]["PIXEL_STD"]) == (mean, std)


@pytest.mark.parametrize(
    "weights, name, message",
    [
        (dict, "mobilenet2_100", "timm .* does not have; the closest are .*mobilenetv2_100"),
        (
            lambda: meta_timm("resnet34"),
            "resnet18",
            r"no counterpart of layer1\.2\.conv1\.weight, of the shape \(64, 64, 3, 3\)",
        ),
        (
            lambda: meta_timm("wide_resnet50_2"),
            "resnet50",
            r"its layer1\.0\.conv1\.weight, of the shape \(64, 64, 1, 1\), has no counterpart; "
            r"the file has layer1\.0\.conv1\.weight, of the shape \(128, 64, 1, 1\)",
        ),
        (
            lambda: meta_timm("resnet18"),
            "mobilenetv2_100",
            r"its conv_stem\.weight, of the shape \(32, 3, 3, 3\), has no counterpart; "
            r"the file has conv1\.weight, of the shape \(64, 3, 7, 7\)",
        ),
        (
            lambda: {k: v for k, v in meta_mobilenet().items() if k.startswith("classifier.")},
            "mobilenetv2_100",
            r"the file has classifier\.1\.weight, of the shape \(1000, 1280\)",
        ),
        (
            lambda: without(meta_mobilenet(), "features.1.conv.0.1.bias"),
            "mobilenetv2_100",
            r"its blocks\.0\.0\.bn1\.bias, .* the file has features\.1\.conv\.0\.1\.running_mean",
        ),
        (
            lambda: dict(sorted(meta_mobilenet().items())[2:]),  # without the classifier
            "mobilenetv2_100",
            r"its bn1\.weight, .* the file has features\.0\.1\.bias",
        ),
        (
            lambda: dict(list(meta_mobilenet().items())[:6]),
            "mobilenetv2_100",
            r"its blocks\.0\.0\.conv_dw\.weight, .* the file has no more in its place",
        ),
        (lambda: {"epoch": 3}, "mobilenetv2_100", "the file has no more"),
    ],
    ids=[
        "no such model",
        "deeper",
        "wider",
        "another",
        "classifier",
        "incomplete",
        "alphabetical",
        "cut off",
        "no tensors",
    ],
)
def test_other_weights_are_refused_for_timm(weights, name, message):
    with pytest.raises(UserError, match=message):
        converter.convert_timm(weights(), name)


def test_says_what_to_install_for_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install .*timm"):
        converter.timm_settings("mobilenetv2_100")


def test_a_file_is_never_overwritten(tmp_path, monkeypatch):
    source, destination = tmp_path / "mobilenetv2_035.pth", tmp_path / "precious.pth"
    torch.save(timm.create_model("mobilenetv2_035").state_dict(), source)
    destination.write_text("precious")
    arguments = [str(source), str(destination), "--timm", "mobilenetv2_035"]
    monkeypatch.setattr(sys, "argv", ["convert_backbone.py", *arguments])
    with pytest.raises(SystemExit, match="error: .*precious.pth exists already"):
        converter.main()
    assert destination.read_text() == "precious"


def test_errors_are_one_sentence_on_the_command_line(tmp_path):
    result = run(tmp_path / "none.pth", tmp_path / "new.pth")
    assert result.returncode == 1
    # Libraries may warn before it.
    message = f"error: cannot read {tmp_path}/none.pth: No such file or directory."
    assert result.stderr.splitlines()[-1] == message
    assert "Traceback" not in result.stderr
