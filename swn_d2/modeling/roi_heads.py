"""ROI heads whose losses are weighted per region."""

import logging

import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..weighting import SampleWeighter, build_sample_weighter
from .box_losses import box_loss_dim
from .fast_rcnn import SWNFastRCNNOutputLayers
from .logging import log_sample_weights

__all__ = ["SWNROIHeads"]


@ROI_HEADS_REGISTRY.register()
class SWNROIHeads(StandardROIHeads):
    """Detectron2's ROI heads with a sample weighter between the box head and its losses.

    With the same seed, the detector starts with the parameters that it has without the weighter,
    and samples the same regions, so that runs with and without it can be compared in pairs.
    Inference is Detectron2's own, untouched. The weighter's parameters are the only ones that a
    checkpoint of :class:`StandardROIHeads` does not have.
    """

    @configurable
    def __init__(self, *, sample_weighter: SampleWeighter, **kwargs):
        """
        Args:
            sample_weighter: gives the weights.
            kwargs: StandardROIHeads' arguments; ``box_predictor`` must be a
                :class:`SWNFastRCNNOutputLayers`.
        """
        super().__init__(**kwargs)
        self.sample_weighter = sample_weighter

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        head = cfg.MODEL.ROI_BOX_HEAD
        if cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON:
            logging.getLogger(__name__).warning(
                "SWNROIHeads weights the classification and box losses; masks and keypoints keep "
                "weight 1."
            )
        if head.BBOX_REG_LOSS_TYPE == "smooth_l1" and head.SMOOTH_L1_BETA == 0:
            warn_of_l1(cfg.MODEL.SAMPLE_WEIGHTER.NAME)
        with _same_random_numbers_after():
            ret["sample_weighter"] = build_sample_weighter(
                cfg, box_loss_dim=box_loss_dim(head.BBOX_REG_LOSS_TYPE), has_mask=False
            )
        return ret

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        with _same_random_numbers_after():
            predictor = SWNFastRCNNOutputLayers(cfg, ret["box_head"].output_shape)
        predictor.load_state_dict(ret["box_predictor"].state_dict())
        ret["box_predictor"] = predictor
        return ret

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]):
        if not self.training:
            return super()._forward_box(features, proposals)
        box_features = self.box_pooler(
            [features[name] for name in self.box_in_features],
            [p.proposal_boxes for p in proposals],
        )
        predictions = self.box_predictor(self.box_head(box_features))
        losses, statistics = self.box_predictor.sample_losses(predictions, proposals)
        weights = self.sample_weighter(statistics)
        log_sample_weights(statistics, weights)
        weighted = losses.weighted(weights)

        if self.train_on_pred_boxes:
            with torch.no_grad():
                boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
            for proposal, box in zip(proposals, boxes, strict=True):
                proposal.proposal_boxes = Boxes(box)
        return {
            "loss_cls": weighted["cls"],
            "loss_box_reg": weighted["box"],
            **weights.regularizers,
        }


def _same_random_numbers_after():
    """A block that leaves the CPU's generator, from which models are initialised, as it was."""
    return torch.random.fork_rng(devices=[])


def warn_of_l1(weighter_name: str) -> None:
    """Warn where the learned weights meet a box loss that does not flatten out near zero."""
    if weighter_name == "SWN":
        logging.getLogger(__name__).warning(
            "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA is 0, Detectron2's default: with plain L1, SWN "
            "gives the best-placed boxes the largest gradients, and training can fail. Set it to "
            "1.0, for SWN and for the baseline that it is compared with."
        )
