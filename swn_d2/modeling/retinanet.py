"""RetinaNet with a weight for every anchor."""

import sys
from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.meta_arch.retinanet import permute_to_N_HWA_K
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from ..weighting import SampleWeighter
from .box_losses import box_loss_dim
from .build import build_weighter, warn_of_l1
from .dense import DenseSamples
from .inference import NO_SUPPRESSION, Suppression, refuse_regions_only
from .objects import class_weights_tensor
from .weighted_losses import weighted_losses

__all__ = ["SWNRetinaNet"]


@META_ARCH_REGISTRY.register()
class SWNRetinaNet(DenseSamples, RetinaNet):
    """Detectron2's RetinaNet with a sample weighter between its head and its losses.

    The samples are the anchors that are not ignored. The losses are divided by Detectron2's
    moving average of the number of positives. The regulariser is a mean over its group, never
    divided like the loss: 1e5 negatives over 1e2 positives would drive every weight to its limit.

    Built from a config with the same seed, the detector starts with the parameters that it has
    without the weighter. Unless ``MODEL.NMS`` says otherwise, inference is Detectron2's own,
    untouched. The weighter's parameters are the only ones that a checkpoint of
    :class:`RetinaNet` does not have.
    """

    @configurable
    def __init__(
        self,
        *,
        sample_weighter: SampleWeighter,
        class_weights: Sequence[float] = (),
        suppression: Suppression | None = None,
        **kwargs,
    ):
        """
        Args:
            sample_weighter: gives the weights.
            class_weights: what anchors of each class count, beside what the weighter says.
            suppression: of detections that overlap; Detectron2's if there is none.
            kwargs: RetinaNet's arguments.

        Raises:
            UserError: the weighter is not for dense detectors, its regulariser is to be divided
                like the loss, or the number of ``class_weights`` is wrong.
        """
        super().__init__(**kwargs)
        sample_weighter.check_detector(
            is_dense=True, box_loss_dim=box_loss_dim(self.box_reg_loss_type), has_mask=False
        )
        self.sample_weighter = sample_weighter
        self.suppression = suppression or Suppression()
        refuse_regions_only(
            {
                "MODEL.NMS.METHOD iou_guided": self.suppression.method == "iou_guided",
                "MODEL.NMS.VARIANCE_VOTING": self.suppression.voting_sigma is not None,
            }
        )
        self.register_buffer(
            "class_weights", class_weights_tensor(class_weights, self.num_classes), persistent=False
        )
        warn_of_l1(sample_weighter, self)

    @classmethod
    def from_config(cls, cfg):
        refuse_regions_only(
            {
                "MODEL.ROI_BOX_HEAD.LOG_VARIANCE": cfg.MODEL.ROI_BOX_HEAD.LOG_VARIANCE,
                "MODEL.IOU_HEAD.ENABLED": cfg.MODEL.IOU_HEAD.ENABLED,
            }
        )
        ret = super().from_config(cfg)
        ret["sample_weighter"] = build_weighter(
            cfg, box_loss_type=cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE, has_mask=False
        )
        ret["class_weights"] = cfg.MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS
        ret["suppression"] = Suppression.from_config(cfg)
        return ret

    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        """Arguments and keys as RetinaNet's, and the weighter's regularisers."""
        losses, statistics = self.sample_losses(
            anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes
        )
        return weighted_losses(self.sample_weighter, losses, statistics)

    def rate_boxes(
        self, features: dict[str, Tensor], boxes: list[Boxes], classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the head predicts for boxes that hold an object: the mean over the anchors that
        training would match with each.

        Args:
            features: of the images.
            boxes: of each image, R in all, XYXY in pixels.
            classes: (R,) the class of each one's object; not looked at, since a RetinaNet predicts
                a single box for each anchor.

        Returns:
            (R, K) logarithms of the probabilities among the classes of objects, and (R, 4) where
            the object is, XYXY in pixels.
        """
        pyramid = [features[name] for name in self.head_in_features]
        anchors = Boxes.cat(self.anchor_generator(pyramid))
        logits, deltas = (
            torch.cat([permute_to_N_HWA_K(level, k) for level in levels], dim=1).float()
            for levels, k in zip(self.head(pyramid), (self.num_classes, 4), strict=True)
        )
        log_probs, refined = [], []
        for image, of_image in enumerate(boxes):
            of_anchors = logsigmoid(logits[image])
            predicted = self.box2box_transform.apply_deltas(deltas[image], anchors.tensor)
            # In parts, since there may be hundreds of boxes and 10^5 anchors.
            for some in of_image.tensor.split(64):
                iou = pairwise_iou(Boxes(some), anchors)
                best = iou.amax(dim=1, keepdim=True)
                # Of a box that no anchor fits well the best ones are trained, too.
                weights = (iou >= best.clamp(max=self.anchor_matcher.thresholds[-2])).float()
                weights = weights / weights.sum(dim=1, keepdim=True)
                log_probs.append(weights @ of_anchors)
                refined.append(weights @ predicted)
        return log_softmax(torch.cat(log_probs), dim=1), torch.cat(refined)

    def inference_single_image(self, *args, **kwargs) -> Instances:
        """As RetinaNet's, and its own where nothing else is asked for."""
        if self.suppression.is_detectron2s:
            return super().inference_single_image(*args, **kwargs)
        threshold, limit = self.test_nms_thresh, self.max_detections_per_image
        # Only the main branch of Detectron2 has a function for what comes before its NMS.
        self.test_nms_thresh, self.max_detections_per_image = NO_SUPPRESSION, sys.maxsize
        try:
            candidates = super().inference_single_image(*args, **kwargs)
        finally:
            self.test_nms_thresh, self.max_detections_per_image = threshold, limit
        return self.suppression(candidates, iou_threshold=threshold, max_detections=limit)[0]

    def _update_normalizer(self, num_positives: int, num_images: int) -> float:
        """Detectron2's moving average of the positives in a batch, brought up to date."""
        get_event_storage().put_scalar("num_pos_anchors", num_positives / num_images)
        if hasattr(self, "_ema_update"):
            return self._ema_update("loss_normalizer", max(num_positives, 1), 100)
        # Until Detectron2 0.5 the average has no function of its own.
        momentum = self.loss_normalizer_momentum
        self.loss_normalizer = momentum * self.loss_normalizer + (1 - momentum) * max(
            num_positives, 1
        )
        return self.loss_normalizer
