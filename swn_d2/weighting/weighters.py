"""The sample weighters' registry, their common base, and the plain one.

A weighter is the choice of ``s_i`` in Eq. 2 of the paper. Another way of weighting is one more
module in this folder with one registered class, and a config that names it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from fvcore.common.registry import Registry
from torch import nn

from ..errors import UserError
from .controls import add_control
from .statistics import SampleStatistics, SampleWeights

__all__ = ["SAMPLE_WEIGHTER_REGISTRY", "SampleWeighter", "Uniform", "build_sample_weighter"]

SAMPLE_WEIGHTER_REGISTRY = Registry("SAMPLE_WEIGHTER")
SAMPLE_WEIGHTER_REGISTRY.__doc__ = """
Classes derived from :class:`SampleWeighter`. ``MODEL.SAMPLE_WEIGHTER.NAME`` chooses one.
"""


class SampleWeighter(nn.Module):
    """Maps the statistics of a batch's samples to their weights.

    Its parameters, if it has any, are trained by the weighter's own optimiser
    (``SOLVER.SWN``), the detector's by the detector's.

    Attributes:
        KEYS: config key -> its default. The keys stand in ``MODEL.SAMPLE_WEIGHTER.<CLASS NAME>``,
            all in capitals, and reach the constructor as keyword arguments in lower case.
        for_dense_detectors: whether the weighter makes sense where every anchor is a sample.
        uses_log_variance: whether it trains what the detector predicts as ``log_variance``.
        learns_by_weights: whether its parameters are trained through the weights that it gives,
            not through regularisers alone.
    """

    KEYS: ClassVar[Mapping[str, Any]] = {}
    for_dense_detectors: ClassVar[bool] = True
    uses_log_variance: ClassVar[bool] = False
    learns_by_weights: ClassVar[bool] = False

    @classmethod
    def from_config(cls, cfg, *, box_loss_dim: int, has_mask: bool) -> dict[str, Any]:
        """The constructor's arguments, from a config and from what the detector offers.

        Args:
            cfg: a Detectron2 config.
            box_loss_dim: columns of the detector's unreduced box loss.
            has_mask: whether the detector has a mask loss.
        """
        return {
            key.lower(): cfg.MODEL.SAMPLE_WEIGHTER[cls.__name__.upper()][key] for key in cls.KEYS
        }

    def check_detector(self, *, is_dense: bool, box_loss_dim: int, has_mask: bool) -> None:
        """Raise a UserError if it can't weight the samples of such a detector.

        Args:
            is_dense: whether every anchor or location is a sample.
            box_loss_dim, has_mask: as for :meth:`from_config`.
        """
        if is_dense and not self.for_dense_detectors:
            raise UserError(
                f"the sample weighter {type(self).__name__} weights the regions of an R-CNN, not "
                "every anchor of a dense detector; choose another one "
                "(MODEL.SAMPLE_WEIGHTER.NAME)."
            )

    def forward(self, statistics: SampleStatistics) -> SampleWeights:
        raise NotImplementedError


@SAMPLE_WEIGHTER_REGISTRY.register()
class Uniform(SampleWeighter):
    """Every weight is 1: the detector as it is without this package."""

    def forward(self, statistics: SampleStatistics) -> SampleWeights:
        return SampleWeights()


def build_sample_weighter(cfg, *, box_loss_dim: int, has_mask: bool) -> SampleWeighter:
    """The weighter that ``cfg.MODEL.SAMPLE_WEIGHTER.NAME`` names, under the control that
    ``CONTROL`` there names.

    Args: as for :meth:`SampleWeighter.from_config`.

    Raises:
        UserError: the name is not registered, there is no such control, or the weighter refuses
            its settings.
    """
    name = cfg.MODEL.SAMPLE_WEIGHTER.NAME
    if name not in SAMPLE_WEIGHTER_REGISTRY:
        known = ", ".join(sorted(key for key, _ in SAMPLE_WEIGHTER_REGISTRY))
        raise UserError(
            f"MODEL.SAMPLE_WEIGHTER.NAME is {name!r}, but it must be one of: {known}; or name the "
            "file that registers it with --import FILE.py."
        )
    weighter = SAMPLE_WEIGHTER_REGISTRY.get(name)
    arguments = weighter.from_config(cfg, box_loss_dim=box_loss_dim, has_mask=has_mask)
    return add_control(weighter(**arguments), cfg.MODEL.SAMPLE_WEIGHTER.CONTROL)
