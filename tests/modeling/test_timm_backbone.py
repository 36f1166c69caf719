"""Backbones of timm: small ones of each kind, by themselves and in detectors."""

import sys
from functools import cache

import pytest
import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch.nn.modules.batchnorm import _BatchNorm

from swn_d2.engine import SafeCheckpointer
from swn_d2.errors import UserError
from swn_d2.modeling import TimmBackbone
from swn_d2.modeling.timm_backbone import STRIDES
from tests.tiny import batch, tiny_config, tiny_model, training_losses

SWIN = "swin_tiny_patch4_window7_224"
#: Name -> channels, and the modules that come before the stage of stride 4.
MODELS = {
    "test_resnet": ([32, 48, 192, 96], ("conv1", "bn1")),
    "test_efficientnet": ([24, 32, 48, 64], ("conv_stem", "bn1", "blocks.0")),
    "pvt_v2_b0": ([32, 64, 160, 256], ("patch_embed",)),
    # Channels last, and for pictures of one size until it is told otherwise.
    SWIN: ([96, 192, 384, 768], ("patch_embed",)),
}
WITH_BATCH_NORM = ("test_resnet", "test_efficientnet")

every_model = pytest.mark.parametrize("name", MODELS)


def timm_opts(name, detector="faster_rcnn", **timm_keys):
    """The overrides that put a model of timm into a tiny detector."""
    pyramid = "retinanet_fpn" if detector == "retinanet" else "fpn"
    opts = ["MODEL.BACKBONE.NAME", f"build_timm_{pyramid}_backbone", "MODEL.TIMM.NAME", name]
    # FrozenBN makes an untrained network explode.
    for key, value in {"NORM": "BN", **timm_keys}.items():
        opts += [f"MODEL.TIMM.{key}", value]
    return opts


@cache
def on_meta(name, **kwargs):
    """The backbone without its numbers; not to be changed."""
    with torch.device("meta"):
        return TimmBackbone(name, **kwargs).eval()


def origins(backbone, feature):
    """The names of the parameters on which a feature depends."""
    names, parameters = zip(*backbone.named_parameters(), strict=True)
    x = backbone(torch.zeros(1, 3, 64, 96, device="meta"))[feature]
    gradients = torch.autograd.grad(x.sum(), parameters, allow_unused=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


def is_of_a_batch_norm(backbone, key):
    return isinstance(backbone.get_submodule(key.rpartition(".")[0]), _BatchNorm)


def frozen(backbone, whole):
    """The names of the parameters of ``whole`` that ``backbone`` does not train."""
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    return {name for name, _ in whole.named_parameters()} - trained


@every_model
@torch.no_grad()
def test_features_of_a_picture_of_any_size(name):
    torch.manual_seed(0)
    backbone = TimmBackbone(name, norm="BN").eval()
    features = backbone(torch.randn(2, 3, 64, 96))
    channels = dict(zip(STRIDES, MODELS[name][0], strict=True))
    assert backbone.output_shape() == {
        feature: ShapeSpec(channels=channels[feature], stride=stride)
        for feature, stride in STRIDES.items()
    }
    assert list(features) == list(STRIDES)
    for feature, x in features.items():
        stride = STRIDES[feature]
        assert x.shape == (2, channels[feature], 64 // stride, 96 // stride)
        assert torch.isfinite(x).all() and x.std() > 0


@every_model
def test_every_feature_is_made_of_some_of_the_parameters_and_the_last_of_all(name):
    backbone = on_meta(name, norm="BN", out_features=("res5", "res4"))
    assert list(backbone.output_shape()) == ["res4", "res5"]
    everything = {name for name, _ in backbone.named_parameters()}
    assert origins(backbone, "res4") < origins(backbone, "res5") == everything


def test_of_a_stride_the_deepest_feature_is_taken():
    backbone = on_meta("densenet121", norm="BN")
    assert [s.channels for s in backbone.output_shape().values()] == [256, 512, 1024, 1024]
    assert "net.features_norm5.weight" in origins(backbone, "res5")


@every_model
@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_a_detector_trains(detector, name):
    model = tiny_model(tiny_config(*timm_opts(name, detector), detector=detector))
    losses = training_losses(model, batch())
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert any(p.grad.abs().max() > 0 for p in model.backbone.bottom_up.parameters())


@pytest.mark.parametrize("freeze_at", [0, 1, 2, 5])
@pytest.mark.parametrize(
    "name, norm",
    [(name, "BN") for name in MODELS] + [(name, "FrozenBN") for name in WITH_BATCH_NORM],
)
def test_freezes_what_a_feature_is_made_of(name, norm, freeze_at):
    whole = on_meta(name, norm="BN")  # whose batch normalisations have parameters
    names = {key for key, _ in whole.named_parameters()}
    stem = tuple(f"net.{module}" for module in MODELS[name][1])
    expected = {
        0: set(),
        1: {key for key in names if key.startswith(stem)},
        2: origins(whole, "res2"),
        5: names,
    }[freeze_at]
    if norm == "FrozenBN":
        expected |= {key for key in names if is_of_a_batch_norm(whole, key)}
    assert frozen(on_meta(name, norm=norm, freeze_at=freeze_at), whole) == expected


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN"])
@pytest.mark.parametrize("freeze_at", [0, 1, 2, 5])
def test_frozen_statistics_stay(freeze_at, norm, name):
    torch.manual_seed(0)
    backbone = TimmBackbone(name, norm=norm, freeze_at=freeze_at).train()
    learning = {path for path, m in backbone.named_modules() if isinstance(m, _BatchNorm)}
    trained = {key.rpartition(".")[0] for key, p in backbone.named_parameters() if p.requires_grad}
    assert learning <= trained
    assert bool(learning) == (norm != "FrozenBN" and freeze_at < 5)
    is_synchronised = {type(backbone.get_submodule(path)).__name__ for path in learning}
    assert all(("Sync" in cls) == (norm == "SyncBN") for cls in is_synchronised)
    if norm == "SyncBN":  # which wants a GPU to run
        return
    before = {key: buffer.clone() for key, buffer in backbone.named_buffers()}
    backbone(torch.randn(2, 3, 64, 96))
    changed = {
        key.rpartition(".")[0]
        for key, buffer in backbone.named_buffers()
        if not torch.equal(buffer, before[key])
    }
    assert changed == learning


def test_stages_that_timm_does_not_tell():
    """The features of a VGG end with layers that have no parameters."""
    for freeze_at in (0, 5):
        backbone = on_meta("vgg11", freeze_at=freeze_at)
        assert {p.requires_grad for p in backbone.parameters()} == {freeze_at == 0}
    with pytest.raises(UserError, match="FREEZE_AT is 2, but timm does not tell .*set it to 0 or"):
        on_meta("vgg11", freeze_at=2)


@every_model
@torch.no_grad()
def test_a_checkpoint_gives_the_same_features(name, tmp_path):
    image = torch.randn(1, 3, 96, 64)
    features = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        backbone = TimmBackbone(name, norm="BN").eval()
        checkpointer = SafeCheckpointer(backbone, str(tmp_path))
        if seed == 0:
            checkpointer.save("backbone")
        else:
            assert not torch.equal(backbone(image)["res5"], features[0]["res5"])
            checkpointer.load(str(tmp_path / "backbone.pth"))
        features.append(backbone(image))
    assert all(torch.equal(features[1][key], x) for key, x in features[0].items())


@pytest.mark.parametrize("name", ["test_efficientnet", "pvt_v2_b0"])
@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_a_seed_gives_the_detector_that_it_gives_without_swn(detector, name):
    after, states = [], []
    for stock in (True, False):
        cfg = tiny_config(*timm_opts(name, detector), detector=detector, stock=stock)
        states.append(tiny_model(cfg, seed=3).state_dict())
        after.append(torch.rand(4))
    stock, swn = states
    assert all(torch.equal(swn[key], value) for key, value in stock.items())
    assert torch.equal(*after)


ARGUMENTS = {
    "unknown": (
        {"name": "mobilenet2_100"},
        f"'mobilenet2_100', which timm {timm.__version__} does not have; the closest are mob",
    ),
    "unlike any": ({"name": "?"}, r"'\?', which timm .* have; timm.list_models\(\) has all"),
    "tag": ({"name": "resnet18.a1_in22k"}, "does not have; the closest are .*resnet18.a1_in1k"),
    "no name": ({"name": ""}, "MODEL.TIMM.NAME is empty; give the name of a model of timm"),
    "one stride": (
        {"name": "test_vit"},
        r"at the strides 16, but not at 4, 8, 32 \(res2, res3, res5 of .*\); take a model with",
    ),
    "one size": (
        {"name": "vit_tiny_patch16_224"},
        r"one size only \(.*\); take a model for pictures of any size\.$",
    ),
    "norm": (
        {"norm": "GN"},
        "MODEL.TIMM.NORM is 'GN', but it must be one of: FrozenBN, BN, SyncBN",
    ),
    "negative": ({"freeze_at": -1}, "FREEZE_AT is -1, but it must be from 0 to 5"),
    "too large": ({"freeze_at": 6}, "FREEZE_AT is 6, but it must be from 0 to 5"),
    "feature": (
        {"out_features": ("res2", "p3")},
        r"IN_FEATURES is \['res2', 'p3'\], but it must be one or more of res2, res3, res4, res5,",
    ),
    "gap": ({"out_features": ("res3", "res5")}, r"\['res3', 'res5'\], but .* without a gap"),
    "not the last": ({"out_features": ("res3", "res4")}, r"\['res3', 'res4'\], but .* to the last"),
    "twice": ({"out_features": ("res5", "res5")}, r"\['res5', 'res5'\], but .* without a gap"),
    "no feature": ({"out_features": ()}, r"IN_FEATURES is \[\], but it must be one or more of"),
}


@pytest.mark.parametrize("arguments, message", ARGUMENTS.values(), ids=ARGUMENTS)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        TimmBackbone(**{"name": "test_resnet", **arguments})


def test_a_model_that_has_no_features(monkeypatch):
    """In some versions of timm."""

    def create_model(*args, **kwargs):
        raise RuntimeError("features_only not implemented for Vision Transformer models.")

    monkeypatch.setattr(timm, "create_model", create_model)
    message = r"timm can't take features \(.*Transformer models\); take a model with a feature pyr"
    with pytest.raises(UserError, match=message):
        TimmBackbone("test_vit")


def test_weights_that_cannot_be_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cfg = tiny_config(*timm_opts("test_resnet", PRETRAINED=True))
    with pytest.raises(UserError) as error:
        build_backbone(cfg)
    message = str(error.value)
    assert message.startswith("cannot get timm's weights of test_resnet (")
    assert message.endswith(
        "); set MODEL.TIMM.PRETRAINED to False and MODEL.WEIGHTS to a file of "
        "tools/convert_backbone.py."
    )
    assert "\n" not in message and len(message) < 400


def test_weights_that_timm_does_not_have():
    with pytest.raises(UserError, match="cannot get timm's weights of mobilenetv2_035 .*; set MOD"):
        TimmBackbone("mobilenetv2_035", pretrained=True)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"need the package timm; install .*'swn_d2\[timm\]'"):
        TimmBackbone("test_resnet")
