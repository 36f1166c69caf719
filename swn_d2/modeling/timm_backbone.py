"""Backbones from timm, as the bottom-up half of Detectron2's feature pyramids.

The paper's method does not look at the backbone, so any model of timm that has features at the
strides of a pyramid will do: MobileNets, EfficientNets, ConvNeXts, Swin, PVT and hundreds more.
"""

import contextlib
import difflib
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from ..errors import UserError

__all__ = [
    "TimmBackbone",
    "build_timm_fpn_backbone",
    "build_timm_retinanet_fpn_backbone",
    "check_timm_config",
    "check_timm_model",
    "create_timm_features",
]

#: The names that Detectron2's ResNets have for features of these strides.
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
NORMS = ("FrozenBN", "BN", "SyncBN")

_TRIAL_SIZE = (96, 160)  # pixels; multiples of 32, and no model's own size


def _timm():
    try:
        import timm
    except ImportError as error:
        raise UserError(
            "backbones of timm need the package timm; install it with: pip install 'swn_d2[timm]'"
        ) from error
    return timm


def check_timm_config(cfg) -> None:
    """Raise a :class:`UserError` for keys that the builders below can't use.

    Nothing is built, so what only a model tells is not found: see :func:`create_timm_features`.
    """
    check_timm_model(cfg.MODEL.TIMM.NAME)
    _check_arguments(cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.TIMM.NORM, cfg.MODEL.BACKBONE.FREEZE_AT)


def check_timm_model(name: str) -> None:
    """Raise a :class:`UserError` if timm is missing or has no model ``name``."""
    timm = _timm()
    if not name:
        raise UserError("MODEL.TIMM.NAME is empty; give the name of a model of timm.")
    # To timm.is_model every tag of a model is good, even one that does not exist.
    if not (timm.is_model_pretrained(name) if "." in name else timm.is_model(name)):
        known = timm.list_models() + timm.list_pretrained()
        similar = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = (
            f"the closest are {', '.join(similar)}." if similar else "timm.list_models() has all."
        )
        raise UserError(
            f"MODEL.TIMM.NAME is {name!r}, which timm {timm.__version__} does not have; {hint}"
        )


def _check_arguments(out_features: Sequence[str], norm: str, freeze_at: int) -> None:
    # Up to the last: some models of timm keep the layers behind the last feature that is asked
    # for, and DistributedDataParallel refuses parameters without a gradient.
    known = list(STRIDES)
    if not out_features or sorted(out_features) != known[-len(out_features) :]:
        raise UserError(
            f"MODEL.FPN.IN_FEATURES is {list(out_features)}, but it must be one or more of "
            f"{', '.join(known)}, up to the last and without a gap."
        )
    if norm not in NORMS:
        raise UserError(f"MODEL.TIMM.NORM is {norm!r}, but it must be one of: {', '.join(NORMS)}.")
    if not 0 <= freeze_at <= 5:
        raise UserError(f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but it must be from 0 to 5.")


def create_timm_features(
    name: str, out_features: Sequence[str] = tuple(STRIDES), *, pretrained: bool = False
) -> nn.Module:
    """A model of timm that gives a list of features.

    Args:
        name: timm's name, such as ``mobilenetv2_100``, or with a tag of its weights.
        out_features: which are wanted, in the order of their strides: ``res2`` to ``res5``.
        pretrained: whether timm fetches its own weights.

    Raises:
        UserError: there is no such model, or it has no such features, or it takes pictures of one
            size only, or its weights can't be fetched.
    """
    check_timm_model(name)
    timm = _timm()
    with torch.device("meta"):  # the shapes of its features are all that is needed
        trial = _create(timm, name)
        options: dict[str, Any] = {}
        if any(getattr(module, "strict_img_size", False) for module in trial.modules()):
            with contextlib.suppress(TypeError):  # some can't be told to take any size
                trial = _create(timm, name, strict_img_size=False)
                options["strict_img_size"] = False
        try:
            maps = trial.eval()(torch.zeros(1, 3, *_TRIAL_SIZE))
        except (AssertionError, RuntimeError) as error:
            raise UserError(
                f"MODEL.TIMM.NAME is {name!r}, which takes pictures of one size only "
                f"({_in_short(error)}); take a model for pictures of any size."
            ) from error
    axis = 1 if _channels_last(trial) else 2
    strides = [_TRIAL_SIZE[0] / m.shape[axis] if m.dim() == 4 else None for m in maps]
    missing = [feature for feature in out_features if STRIDES[feature] not in strides]
    if missing:
        has = ", ".join(f"{stride:g}" for stride in sorted(set(strides) - {None})) or "no"
        raise UserError(
            f"MODEL.TIMM.NAME is {name!r}, which has features at the strides {has}, but not at "
            f"{', '.join(str(STRIDES[feature]) for feature in missing)} ({', '.join(missing)} of "
            "MODEL.FPN.IN_FEATURES); take a model with a feature pyramid."
        )
    # The deepest of a stride, as in a ResNet.
    indices = [len(strides) - 1 - strides[::-1].index(STRIDES[f]) for f in out_features]
    options["out_indices"] = [trial.feature_info.out_indices[i] for i in indices]
    try:
        return _create(timm, name, pretrained=pretrained, **options)
    except Exception as error:  # a hub's client raises nearly everything
        if not pretrained:
            raise
        raise UserError(
            f"cannot get timm's weights of {name} ({_in_short(error)}); set MODEL.TIMM.PRETRAINED "
            "to False and MODEL.WEIGHTS to a file of tools/convert_backbone.py."
        ) from error


def _create(timm, name: str, **options: Any) -> nn.Module:
    try:
        return timm.create_model(name, features_only=True, **options)
    except (RuntimeError, AttributeError, KeyError, AssertionError) as error:
        if options.get("pretrained"):
            raise
        raise UserError(
            f"MODEL.TIMM.NAME is {name!r}, from which timm can't take features "
            f"({_in_short(error)}); take a model with a feature pyramid."
        ) from error


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


def _channels_last(model: nn.Module) -> bool:
    return str(getattr(model, "output_fmt", "")).endswith("NHWC")


class TimmBackbone(Backbone):
    """A model of timm with Detectron2's names for its features."""

    @configurable
    def __init__(
        self,
        name: str,
        *,
        out_features: Sequence[str] = tuple(STRIDES),
        pretrained: bool = False,
        norm: str = "FrozenBN",
        freeze_at: int = 0,
    ):
        """
        Args:
            name: timm's name of the model.
            out_features: ``res2`` to ``res5``, at strides of 4 to 32, or the last ones of them.
            pretrained: whether timm fetches its own weights, as ImageNet gave them.
            norm: what becomes of its batch normalisations: "FrozenBN", "BN" or "SyncBN".
                Normalisations of another kind stay.
            freeze_at: as Detectron2's ``FREEZE_AT``: 0 freezes nothing, 1 what comes before the
                stage of stride 4, 2 that stage, too, ..., 5 everything. Batch normalisations
                that are frozen become "FrozenBN".

        Raises:
            UserError: see :func:`create_timm_features`; or an argument is out of its range; or
                timm does not tell where the model's stages begin, and ``freeze_at`` needs it.
        """
        super().__init__()
        _check_arguments(out_features, norm, freeze_at)
        names = sorted(out_features)
        self.net = create_timm_features(name, names, pretrained=pretrained)
        self._channels_last = _channels_last(self.net)
        self._out_features = names
        self._out_feature_strides = {feature: STRIDES[feature] for feature in names}
        self._out_feature_channels = dict(zip(names, self.net.feature_info.channels(), strict=True))
        from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d

        for path, module in _modules_until(self.net, freeze_at):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                parent, _, child = path.rpartition(".")
                setattr(self.net.get_submodule(parent), child, freeze_batch_norm_2d(module))
        if norm == "FrozenBN":
            self.net = freeze_batch_norm_2d(self.net)
        elif norm == "SyncBN":
            self.net = convert_sync_batchnorm(self.net)

    @classmethod
    def from_config(cls, cfg, input_shape=None):
        return {
            "name": cfg.MODEL.TIMM.NAME,
            "out_features": cfg.MODEL.FPN.IN_FEATURES,
            "pretrained": cfg.MODEL.TIMM.PRETRAINED,
            "norm": cfg.MODEL.TIMM.NORM,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) pictures -> name of a feature -> (N, C, H / stride, W / stride)."""
        # With channels last a CPU takes a sixth less time for a whole MobileNetV2 Faster R-CNN.
        maps = self.net(image.contiguous(memory_format=torch.channels_last))
        if self._channels_last:
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        return dict(zip(self._out_features, maps, strict=True))


def _modules_until(net: nn.Module, freeze_at: int) -> list[tuple[str, nn.Module]]:
    """What ``FREEZE_AT`` freezes: the modules, with their names, that are registered, and so run,
    before the end of its stage."""
    modules = list(net.named_modules())
    if freeze_at in (0, 5):
        return modules if freeze_at else []
    names = {
        index: _flat(name).removeprefix("model_") + "_"
        for index, (name, module) in enumerate(modules)
        if any(True for _ in module.parameters(recurse=False))
    }
    # Stride -> where the stage that ends with it, or the last part of that stage, begins and ends.
    stages: dict[int, tuple[int, int] | None] = dict.fromkeys(STRIDES.values())
    for info in net.feature_info.info:
        prefix = _flat(info["module"]) + "_"
        inside = [index for index, name in names.items() if name.startswith(prefix)]
        if info["reduction"] in stages:
            stages[info["reduction"]] = (inside[0], inside[-1] + 1) if inside else None
    if None in stages.values() or list(stages.values()) != sorted(stages.values()):
        raise UserError(
            f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but timm does not tell where the stages of "
            "this model (MODEL.TIMM.NAME) begin; set it to 0 or 5."
        )
    return modules[: stages[4][0] if freeze_at == 1 else stages[2**freeze_at][1]]


def _flat(name: str) -> str:
    """timm's wrappers replace some of the dots of a module's name."""
    return name.replace(".", "_")


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """FPN with P2 to P6 on a model of timm: for R-CNNs."""
    return _pyramid(cfg, TimmBackbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_timm_retinanet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """FPN with P3 to P7 on a model of timm: for RetinaNet."""
    bottom_up = TimmBackbone(cfg, input_shape)
    channels = bottom_up.output_shape()["res5"].channels
    return _pyramid(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


def _pyramid(cfg, bottom_up: TimmBackbone, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=sorted(cfg.MODEL.FPN.IN_FEATURES),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
