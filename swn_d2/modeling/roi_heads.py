"""ROI heads whose losses are weighted per region."""

import logging
from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from ..errors import UserError
from ..weighting import SampleLosses, SampleStatistics, SampleWeighter, with_mask_losses
from .build import build_weighter, check_regions, same_random_numbers_after, warn_of_l1
from .fast_rcnn import SWNFastRCNNOutputLayers
from .iou_head import IoUHead
from .mask_head import has_sample_losses, sample_mask_losses
from .objects import object_weights
from .weighted_losses import weighted_losses

__all__ = ["SWNCascadeROIHeads", "SWNROIHeads"]

_NO_IOU_HEAD = (
    "SWNCascadeROIHeads has no IoU head; set MODEL.IOU_HEAD.ENABLED to False and MODEL.NMS.METHOD "
    "to another method than iou_guided."
)


class _Samples:
    """What heads derived from StandardROIHeads need for the statistics of their regions.

    One network weights boxes and masks (Sec. 3.4), so both branches run before the weighter.
    """

    mask_on: bool
    num_classes: int

    @property
    def weights_masks(self) -> bool:
        return self.mask_on and has_sample_losses(self.mask_head)

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]):
        if self.training and self.weights_masks:
            return {}  # _forward_box has its loss
        return super()._forward_mask(features, instances)

    def _with_masks(
        self,
        losses: SampleLosses,
        statistics: SampleStatistics,
        features: dict[str, Tensor],
        proposals: list[Instances],
    ) -> tuple[SampleLosses, SampleStatistics]:
        """The samples of ``proposals`` with their mask losses, if they are to be weighted."""
        if not self.weights_masks:
            return losses, statistics
        positives, _ = select_foreground_proposals(proposals, self.num_classes)
        pooled = self.mask_pooler(
            [features[name] for name in self.mask_in_features],
            [of_image.proposal_boxes for of_image in positives],
        )
        return with_mask_losses(
            losses, statistics, sample_mask_losses(self.mask_head, pooled, positives)
        )


@ROI_HEADS_REGISTRY.register()
class SWNROIHeads(_Samples, StandardROIHeads):
    """Detectron2's ROI heads with a sample weighter between the heads and their losses: Faster
    R-CNN, and Mask R-CNN where ``MODEL.MASK_ON``. A keypoint loss keeps weight 1, and so does that
    of a mask head which is not Mask R-CNN's.

    Built from a config with the same seed, the detector starts with the parameters that it has
    without the weighter, and samples the same regions, so that runs with and without it can be
    compared in pairs.
    Unless ``MODEL.NMS`` says otherwise, inference is Detectron2's own, untouched. The weighter's
    parameters are the only ones that a checkpoint of :class:`StandardROIHeads` does not have, but
    for those of ``MODEL.IOU_HEAD`` and ``LOG_VARIANCE``.
    """

    @configurable
    def __init__(
        self, *, sample_weighter: SampleWeighter, iou_head: IoUHead | None = None, **kwargs
    ):
        """
        Args:
            sample_weighter: gives the weights.
            iou_head: predicts how well a box is placed, for IoU-guided NMS.
            kwargs: StandardROIHeads' arguments; ``box_predictor`` must be a
                :class:`SWNFastRCNNOutputLayers`.

        Raises:
            UserError: the weighter is not one for these heads, the NMS is IoU-guided, but there
                is no ``iou_head``, or there is a layer for variances that the weighter does not
                train.
        """
        super().__init__(**kwargs)
        check_regions(
            sample_weighter,
            self.box_predictor,
            has_mask=self.weights_masks,
            positive_fraction=self.positive_fraction,
        )
        self.sample_weighter = sample_weighter
        self.iou_head = iou_head
        self._targets: list[Instances] | None = None  # the objects of the batch in training
        if iou_head is None and self._is_iou_guided:
            raise UserError(
                "MODEL.NMS.METHOD is iou_guided, which needs the IoU head; set "
                "MODEL.IOU_HEAD.ENABLED to True, and evaluate a detector trained with it."
            )
        warn_of_l1(sample_weighter, self.box_predictor)
        _warn_of_weight_1(self)

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        ret["sample_weighter"] = _build_weighter(cfg, has_mask=_has_mask_losses(ret))
        if cfg.MODEL.IOU_HEAD.ENABLED:
            with same_random_numbers_after():
                ret["iou_head"] = IoUHead(cfg, input_shape)
        return ret

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictor"] = _with_sample_losses(cfg, ret["box_head"], ret["box_predictor"])
        return ret

    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]):
        # Detectron2 does not hand the objects on to _forward_box.
        self._targets = targets
        return super().label_and_sample_proposals(proposals, targets)

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]):
        if not self.training and not self._is_iou_guided:
            return super()._forward_box(features, proposals)
        pyramid = [features[name] for name in self.box_in_features]

        def pool(boxes: list[Boxes]) -> Tensor:
            return self.box_pooler(pyramid, boxes)

        box_features = pool([p.proposal_boxes for p in proposals])
        predictions = self.box_predictor(self.box_head(box_features))
        if not self.training:
            candidates = self.box_predictor.candidates(predictions, proposals)
            self.iou_head.rate(pool, candidates)
            return self.box_predictor.suppress(candidates)[0]
        targets, self._targets = self._targets, None
        losses, statistics = self.box_predictor.sample_losses(predictions, proposals, targets)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
            for proposal, box in zip(proposals, boxes, strict=True):
                proposal.proposal_boxes = Boxes(box)
        losses, statistics = self._with_masks(losses, statistics, features, proposals)
        result = weighted_losses(self.sample_weighter, losses, statistics)
        if self.iou_head is not None:
            given = object_weights(targets, self.box_predictor.class_weights)
            result.update(self.iou_head.losses(pool, targets, given))
        return result

    def rate_boxes(
        self, features: dict[str, Tensor], boxes: list[Boxes], classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the heads predict for boxes that hold an object, see
        :meth:`SWNFastRCNNOutputLayers.rate`.

        Args:
            features: of the images.
            boxes: of each image, R in all.
            classes: (R,) the class of each one's object.
        """
        pooled = self.box_pooler([features[name] for name in self.box_in_features], boxes)
        return self.box_predictor.rate(
            self.box_predictor(self.box_head(pooled)), Boxes.cat(boxes).tensor, classes
        )

    @property
    def _is_iou_guided(self) -> bool:
        return self.box_predictor.suppression.method == "iou_guided"


@ROI_HEADS_REGISTRY.register()
class SWNCascadeROIHeads(_Samples, CascadeROIHeads):
    """Detectron2's Cascade R-CNN heads with one sample weighter per stage, which sees and weights
    the regions of its stage. (The paper has no cascade.)

    Masks are trained on the regions of the first stage, so that stage's weighter weights them.
    Otherwise as :class:`SWNROIHeads`.
    """

    @configurable
    def __init__(self, *, sample_weighters: Sequence[SampleWeighter], **kwargs):
        """
        Args:
            sample_weighters: one per stage.
            kwargs: CascadeROIHeads' arguments; ``box_predictors`` must be
                :class:`SWNFastRCNNOutputLayers`.

        Raises:
            UserError: there are more or fewer weighters than stages, one is not for its stage, of
                which only the first has masks, the NMS is IoU-guided, or there is a layer for
                variances that the weighters do not train.
        """
        super().__init__(**kwargs)
        if self.box_predictor[-1].suppression.method == "iou_guided":
            raise UserError(_NO_IOU_HEAD)
        num_stages = self.num_cascade_stages
        if len(sample_weighters) != num_stages:
            raise UserError(
                f"there are {len(sample_weighters)} sample_weighters, but {num_stages} stages; "
                "give one for each stage."
            )
        for stage, weighter in enumerate(sample_weighters):
            check_regions(
                weighter,
                self.box_predictor[stage],
                has_mask=self.weights_masks and stage == 0,
                positive_fraction=self.positive_fraction,
            )
        self.sample_weighter = nn.ModuleList(sample_weighters)
        warn_of_l1(self.sample_weighter[0], self.box_predictor[0])
        _warn_of_weight_1(self)

    @classmethod
    def from_config(cls, cfg, input_shape):
        if cfg.MODEL.IOU_HEAD.ENABLED:
            raise UserError(_NO_IOU_HEAD)
        ret = super().from_config(cfg, input_shape)
        ret["sample_weighters"] = [
            _build_weighter(cfg, has_mask=stage == 0 and _has_mask_losses(ret))
            for stage in range(len(ret["box_heads"]))
        ]
        return ret

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictors"] = [
            _with_sample_losses(cfg, head, predictor)
            for head, predictor in zip(ret["box_heads"], ret["box_predictors"], strict=True)
        ]
        return ret

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances], targets=None):
        if not self.training:
            if self.box_predictor[-1].suppression.is_detectron2s:
                return super()._forward_box(features, proposals, targets)
            return self._detect(features, proposals)
        pyramid = [features[name] for name in self.box_in_features]
        image_sizes = [p.image_size for p in proposals]
        result = {}
        for stage, predictor in enumerate(self.box_predictor):
            predictions = self._run_stage(pyramid, proposals, stage)
            with get_event_storage().name_scope(f"stage{stage}"):
                losses, statistics = predictor.sample_losses(predictions, proposals, targets)
            if stage == 0:
                losses, statistics = self._with_masks(losses, statistics, features, proposals)
            with get_event_storage().name_scope(f"stage{stage}"):
                weighted = weighted_losses(self.sample_weighter[stage], losses, statistics)
            for name, loss in weighted.items():
                result[name if name == "loss_mask" else f"{name}_stage{stage}"] = loss
            if stage + 1 < self.num_cascade_stages:  # which refines the boxes of this one
                boxes = predictor.predict_boxes(predictions, proposals)
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
                proposals = self._match_and_label_boxes(proposals, stage + 1, targets)
        return result

    def rate_boxes(
        self, features: dict[str, Tensor], boxes: list[Boxes], classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`SWNROIHeads.rate_boxes`, with the geometric mean of the stages' probabilities,
        and the last stage's boxes."""
        pyramid = [features[name] for name in self.box_in_features]
        sizes = [len(of_image) for of_image in boxes]
        log_probs = []
        for stage, predictor in enumerate(self.box_predictor):
            pooled = self.box_pooler(pyramid, boxes)
            predictions = predictor(self.box_head[stage](pooled))
            of_stage, refined = predictor.rate(predictions, Boxes.cat(boxes).tensor, classes)
            log_probs.append(of_stage)
            boxes = [Boxes(of_image) for of_image in refined.split(sizes)]
        return log_softmax(torch.stack(log_probs).mean(dim=0), dim=1), refined

    def _detect(self, features: dict[str, Tensor], proposals: list[Instances]) -> list[Instances]:
        """Detections with the last stage's boxes and the mean of all stages' probabilities."""
        pyramid = [features[name] for name in self.box_in_features]
        image_sizes = [p.image_size for p in proposals]
        probs = []
        for stage, predictor in enumerate(self.box_predictor):
            predictions = self._run_stage(pyramid, proposals, stage)
            probs.append(predictor.predict_probs(predictions, proposals))
            if stage + 1 < self.num_cascade_stages:
                boxes = predictor.predict_boxes(predictions, proposals)
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
        means = [torch.stack(stages).mean(dim=0) for stages in zip(*probs, strict=True)]
        return predictor.suppress(predictor.candidates(predictions, proposals, means))[0]


def _build_weighter(cfg, *, has_mask: bool) -> SampleWeighter:
    return build_weighter(
        cfg, box_loss_type=cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE, has_mask=has_mask
    )


def _with_sample_losses(cfg, box_head, predictor) -> SWNFastRCNNOutputLayers:
    """Detectron2's ``predictor``, as the class that has the losses of every region."""
    with same_random_numbers_after():
        result = SWNFastRCNNOutputLayers(
            cfg, box_head.output_shape, box2box_transform=predictor.box2box_transform
        )
    # What Detectron2's has not got, such as a layer for the variances, stays.
    result.load_state_dict({**result.state_dict(), **predictor.state_dict()})
    return result


def _has_mask_losses(heads: dict) -> bool:
    """Whether the heads, arguments for a constructor, have masks that can be weighted."""
    return "mask_head" in heads and has_sample_losses(heads["mask_head"])


def _warn_of_weight_1(heads: StandardROIHeads) -> None:
    """Warn of the tasks whose samples can't be weighted."""
    tasks = []
    if heads.mask_on and not heads.weights_masks:
        tasks.append(f"masks of a {type(heads.mask_head).__name__}")
    if heads.keypoint_on:
        tasks.append("keypoints")
    if tasks:
        logging.getLogger(__name__).warning(
            f"The {' and the '.join(tasks)} are not weighted: they keep weight 1."
        )
