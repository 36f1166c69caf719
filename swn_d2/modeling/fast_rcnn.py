"""The Fast R-CNN output layers that also tell the loss and the statistics of every region."""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling.roi_heads.fast_rcnn import (
    FastRCNNOutputLayers,
    _log_classification_stats,
)
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..weighting import SampleLosses, SampleStatistics, softmax_classification
from .inference import Suppression, corner_variances
from .objects import class_weights_tensor
from .samples import gather_samples

__all__ = ["SWNFastRCNNOutputLayers"]


class _Predictions(tuple):
    """Detectron2's pair of scores and deltas, with what else the layers predict."""

    log_variance: Tensor


class SWNFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Detectron2's layers and parameters; the losses are also had per region, and detections
    that overlap can be suppressed in other ways than Detectron2's.

    Softmax classification only: a federated or sigmoid loss has no single true class to take
    the probability of.
    """

    @configurable
    def __init__(
        self,
        input_shape,
        *,
        class_weights: Sequence[float] = (),
        log_variance: bool = False,
        suppression: Suppression | None = None,
        **kwargs,
    ):
        """
        Args:
            class_weights: what regions of each class count, beside what the weighter says.
            log_variance: whether one more layer predicts log sigma^2 of each box coordinate.
            suppression: of detections that overlap; Detectron2's if there is none.
            input_shape, kwargs: FastRCNNOutputLayers' arguments.

        Raises:
            UserError: the loss is sigmoid or federated, the number of ``class_weights`` is wrong,
                or variances are to vote, but not predicted.
        """
        super().__init__(input_shape, **kwargs)
        if getattr(self, "use_sigmoid_ce", False):
            raise UserError(
                "SWNROIHeads needs the softmax classification loss; set "
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE and USE_FED_LOSS to False."
            )

        self.register_buffer(
            "class_weights", class_weights_tensor(class_weights, self.num_classes), persistent=False
        )
        self.suppression = suppression or Suppression()
        self.log_variance = None
        if log_variance:
            self.log_variance = nn.Linear(self.bbox_pred.in_features, self.bbox_pred.out_features)
            nn.init.normal_(self.log_variance.weight, std=1e-4)  # Sec. 3.3 of He et al. 2019
            nn.init.zeros_(self.log_variance.bias)
        elif self.suppression.voting_sigma is not None:
            raise UserError(
                "MODEL.NMS.VARIANCE_VOTING needs the variances of the predicted boxes; set "
                "MODEL.ROI_BOX_HEAD.LOG_VARIANCE to True, and evaluate a detector trained with it."
            )

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        ret["class_weights"] = cfg.MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS
        ret["log_variance"] = cfg.MODEL.ROI_BOX_HEAD.LOG_VARIANCE
        ret["suppression"] = Suppression.from_config(cfg)
        return ret

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As Detectron2's. With ``log_variance``, the pair that is returned has an attribute of
        that name, shaped like the deltas."""
        predictions = super().forward(x)
        if self.log_variance is not None:
            predictions = _Predictions(predictions)
            predictions.log_variance = self.log_variance(x.flatten(start_dim=1))
        return predictions

    def sample_losses(
        self,
        predictions: tuple[Tensor, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[SampleLosses, SampleStatistics]:
        """Losses and statistics of the R regions of a batch, in float32. The losses contain
        Detectron2's ``loss_weight``, so that SWN sees what a sample really contributes.

        Args:
            predictions: what :meth:`forward` returns: (R, K + 1) scores and (R, K * 4) deltas,
                or (R, 4) for class-agnostic regression.
            proposals: the sampled proposals with ``proposal_boxes``, ``gt_classes`` and, where
                the image has ground truth, ``gt_boxes``.
            targets: the objects of each image, for what has to do with single objects: weights
                from the data, and some weighters.
        """
        scores, deltas = (prediction.float() for prediction in predictions)
        if proposals:
            gt_classes = torch.cat([p.gt_classes for p in proposals])
            boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
            # An image without ground truth has only negatives, whose box is never looked at.
            gt_boxes = torch.cat(
                [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
            )
        else:
            gt_classes = torch.zeros(0, dtype=torch.long, device=scores.device)
            boxes = gt_boxes = torch.zeros(0, 4, device=scores.device)
        _log_classification_stats(scores.detach(), gt_classes)

        classification = softmax_classification(scores, gt_classes)
        foreground = classification.foreground
        fg_classes = gt_classes[foreground]

        def likeliest_boxes() -> Tensor:
            likeliest = classification.details["class_probs"]().argmax(dim=1)
            classes = torch.where(classification.is_foreground, gt_classes, likeliest)
            of_classes = self._deltas_of(deltas.detach(), classes)
            return self.box2box_transform.apply_deltas(of_classes, boxes)

        details = {"pred_boxes": likeliest_boxes}
        if self.log_variance is not None:

            def log_variance() -> Tensor:
                predicted = predictions.log_variance.float()
                of_positives = self._deltas_of(predicted[foreground], fg_classes)
                return boxes.new_zeros(boxes.shape).index_copy(0, foreground, of_positives)

            details["log_variance"] = log_variance
        return gather_samples(
            self,
            classification,
            images=lambda: torch.cat(
                [torch.full_like(p.gt_classes, i) for i, p in enumerate(proposals)]
            ),
            fg_deltas=self._deltas_of(deltas[foreground], fg_classes),
            fg_boxes=boxes[foreground],
            fg_gt_boxes=gt_boxes[foreground],
            normalizer=max(len(gt_classes), 1),  # as in Detectron2, for both losses
            targets=targets,
            class_weights=self.class_weights,
            details=details,
            cls_loss_weight=self.loss_weight.get("loss_cls", 1.0),
            box_loss_weight=self.loss_weight.get("loss_box_reg", 1.0),
        )

    def rate(
        self, predictions: tuple[Tensor, Tensor], boxes: Tensor, classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is predicted for boxes that hold an object.

        Args:
            predictions: what :meth:`forward` returns for them.
            boxes: (R, 4) XYXY in pixels.
            classes: (R,) the class of each one's object.

        Returns:
            (R, K) logarithms of the probabilities among the classes of objects, and (R, 4) where
            the object of that class is, XYXY in pixels.
        """
        scores, deltas = (prediction.float() for prediction in predictions)
        refined = self.box2box_transform.apply_deltas(self._deltas_of(deltas, classes), boxes)
        return F.log_softmax(scores[:, : self.num_classes], dim=1), refined

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """As Detectron2's, and its own where nothing else is asked for."""
        if self.suppression.is_detectron2s:
            return super().inference(predictions, proposals)
        return self.suppress(self.candidates(predictions, proposals))

    def candidates(
        self,
        predictions: tuple[Tensor, Tensor],
        proposals: list[Instances],
        probs: Sequence[Tensor] | None = None,
    ) -> list[Instances]:
        """For each image all detections above the score threshold, before any is suppressed.

        Args:
            predictions, proposals: as for Detectron2's ``inference``.
            probs: for each image (R, K + 1) probabilities, if not those of ``predictions``.

        Returns:
            ``pred_boxes``, ``scores``, ``pred_classes``, ``region``, the index of the proposal,
            and with ``log_variance`` the ``variances`` (N, 4) of the boxes in square pixels.
        """
        boxes = self.predict_boxes(predictions, proposals)
        probs = self.predict_probs(predictions, proposals) if probs is None else probs
        _, deltas = predictions
        start, result = 0, []
        for of_image, image_boxes, image_probs in zip(proposals, boxes, probs, strict=True):
            clipped = Boxes(image_boxes.reshape(-1, 4))
            clipped.clip(of_image.image_size)
            per_class = clipped.tensor.view(len(of_image), image_boxes.shape[1] // 4, 4)
            finite = image_boxes.isfinite().all(dim=1) & image_probs.isfinite().all(dim=1)
            scores = image_probs[:, :-1]
            passes = (scores > self.test_score_thresh) & finite[:, None]
            region, category = passes.nonzero(as_tuple=True)
            box_of = category if per_class.shape[1] > 1 else torch.zeros_like(category)
            found = Instances(of_image.image_size)
            found.pred_boxes = Boxes(per_class[region, box_of])
            found.scores = scores[region, category]
            found.pred_classes = category
            found.region = region
            if self.log_variance is not None:
                rows, anchors = start + found.region, of_image.proposal_boxes.tensor[found.region]
                found.variances = corner_variances(
                    self._deltas_of(predictions.log_variance[rows], found.pred_classes),
                    anchors,
                    self.box2box_transform.apply_deltas(
                        self._deltas_of(deltas[rows], found.pred_classes), anchors
                    ),
                    weights=self.box2box_transform.weights,
                )
            start += len(of_image)
            result.append(found)
        return result

    def suppress(self, candidates: list[Instances]) -> tuple[list[Instances], list[Tensor]]:
        """The detections among the :meth:`candidates` of each image, and their regions."""
        detections, regions = [], []
        for of_image in candidates:
            kept, indices = self.suppression(
                of_image,
                iou_threshold=self.test_nms_thresh,
                max_detections=self.test_topk_per_image,
            )
            detections.append(kept)
            regions.append(of_image.region[indices])
        return detections, regions

    def _deltas_of(self, deltas: Tensor, classes: Tensor) -> Tensor:
        """(R, 4) of the (R, K * 4) deltas those of each region's class."""
        if deltas.shape[1] == 4:  # class-agnostic regression
            return deltas
        of_class = deltas.view(len(deltas), self.num_classes, 4)
        return of_class[torch.arange(len(deltas), device=deltas.device), classes]
