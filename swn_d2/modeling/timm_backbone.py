"""Backbones from timm, as the bottom-up half of Detectron2's feature pyramids.

The paper's method does not look at the backbone, so any model of timm that has features at the
strides of a pyramid will do: MobileNets, EfficientNets, ConvNeXts, Swin, PVT and hundreds more.
"""

import contextlib
import difflib
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


def check_timm_model(name: str) -> None:
    """Raise a :class:`UserError` if timm is missing or has no model ``name``."""
    timm = _timm()
    if not name:
        raise UserError("MODEL.TIMM.NAME is empty; give the name of a model of timm.")
    if not timm.is_model(name):
        similar = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"the closest are {', '.join(similar)}." if similar else "timm.list_models() has all."
        raise UserError(
            f"MODEL.TIMM.NAME is {name!r}, which timm {timm.__version__} does not have; {hint}"
        )


def create_timm_features(
    name: str, out_features: tuple[str, ...] = tuple(STRIDES), *, pretrained: bool = False
) -> tuple[nn.Module, list[str]]:
    """A model of timm that gives features, and the name of each of them.

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
                f"MODEL.TIMM.NAME is {name!r}, which takes pictures of one size only; a detector "
                f"needs a backbone for pictures of any size ({' '.join(str(error).split())})."
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
    # The deepest of a stride, as in a ResNet. What lies behind the last one is not built, for
    # DistributedDataParallel refuses parameters without a gradient.
    indices = [len(strides) - 1 - strides[::-1].index(STRIDES[f]) for f in out_features]
    first = trial.feature_info.out_indices[0]
    try:
        model = _create(
            timm, name, pretrained=pretrained, out_indices=[first + i for i in indices], **options
        )
    except Exception as error:  # a hub's client raises nearly everything
        if not pretrained:
            raise
        raise UserError(
            f"cannot get timm's weights of {name} ({' '.join(str(error).split())[:200]}); set "
            "MODEL.TIMM.PRETRAINED to False and MODEL.WEIGHTS to a file of "
            "tools/convert_backbone.py."
        ) from error
    return model, list(out_features)


def _create(timm, name: str, **options: Any) -> nn.Module:
    try:
        return timm.create_model(name, features_only=True, **options)
    except (RuntimeError, AttributeError, KeyError, AssertionError) as error:
        if options.get("pretrained"):
            raise
        raise UserError(
            f"MODEL.TIMM.NAME is {name!r}, from which timm can't take features "
            f"({' '.join(str(error).split())}); take a model with a feature pyramid."
        ) from error


def _channels_last(model: nn.Module) -> bool:
    return str(getattr(model, "output_fmt", "")).endswith("NHWC")


class TimmBackbone(Backbone):
    """A model of timm with Detectron2's names for its features."""

    @configurable
    def __init__(
        self,
        name: str,
        *,
        out_features: tuple[str, ...] = tuple(STRIDES),
        pretrained: bool = False,
        norm: str = "FrozenBN",
        freeze_at: int = 0,
    ):
        """
        Args:
            name: timm's name of the model.
            out_features: ``res2`` to ``res5``, at strides of 4 to 32.
            pretrained: whether timm fetches its own weights, as ImageNet gave them.
            norm: what becomes of its batch normalisations: "FrozenBN", "BN" or "SyncBN".
                Normalisations of another kind stay.
            freeze_at: as Detectron2's ``FREEZE_AT``: 0 freezes nothing, 1 what comes before the
                stage of stride 4, 2 that stage, too, ..., 5 everything.

        Raises:
            UserError: see :func:`create_timm_features`; or an argument is out of its range.
        """
        super().__init__()
        if norm not in NORMS:
            raise UserError(
                f"MODEL.TIMM.NORM is {norm!r}, but it must be one of: {', '.join(NORMS)}."
            )
        if not 0 <= freeze_at <= 5:
            raise UserError(f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but it must be from 0 to 5.")
        unknown = [feature for feature in out_features if feature not in STRIDES]
        if unknown or not out_features:
            raise UserError(
                f"MODEL.FPN.IN_FEATURES is {list(out_features)}, but the features of a backbone of "
                f"timm are {', '.join(STRIDES)}."
            )
        out_features = tuple(sorted(out_features))
        self.net, names = create_timm_features(name, out_features, pretrained=pretrained)
        self._channels_last = _channels_last(self.net)
        self._out_features = names
        self._out_feature_strides = {feature: STRIDES[feature] for feature in names}
        self._out_feature_channels = dict(zip(names, self.net.feature_info.channels(), strict=True))
        from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d

        if norm == "FrozenBN":
            self.net = freeze_batch_norm_2d(self.net)
        elif norm == "SyncBN":
            self.net = convert_sync_batchnorm(self.net)
        frozen = _parameters_until(self.net, freeze_at)
        for module_name, module in list(self.net.named_modules()):
            own = {f"{module_name}.{key}" for key, _ in module.named_parameters(recurse=False)}
            if own and own <= frozen.keys() and isinstance(module, nn.modules.batchnorm._BatchNorm):
                self.net.set_submodule(module_name, freeze_batch_norm_2d(module))
        for parameter in frozen.values():
            parameter.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg, input_shape=None):
        return {
            "name": cfg.MODEL.TIMM.NAME,
            "out_features": tuple(cfg.MODEL.FPN.IN_FEATURES),
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


def _parameters_until(net: nn.Module, freeze_at: int) -> dict[str, nn.Parameter]:
    """The parameters that ``FREEZE_AT`` freezes, by name: those that are registered, and so run,
    before the end of its stage."""
    if freeze_at == 0:
        return {}
    parameters = dict(net.named_parameters())
    spans = {}  # stride -> where the parameters of its stage begin and end
    for info in net.feature_info.info:
        stage = _flat(info["module"]) + "_"
        keys = [_flat(key).removeprefix("model_") for key in parameters]
        inside = [index for index, key in enumerate(keys) if key.startswith(stage)]
        if inside and info["reduction"] >= min(STRIDES.values()):
            spans[info["reduction"]] = inside[0], inside[-1] + 1
    if not spans:
        raise UserError(
            f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but timm does not tell where the stages of "
            "this model (MODEL.TIMM.NAME) begin; set it to 0."
        )
    if freeze_at == 1:
        count = spans[min(spans)][0]
    else:
        count = spans.get(2**freeze_at, (0, len(parameters)))[1]
    return dict(list(parameters.items())[:count])


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
