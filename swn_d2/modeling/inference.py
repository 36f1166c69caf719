"""What becomes of detections that overlap: the options of ``MODEL.NMS``."""

from collections.abc import Mapping
from dataclasses import dataclass

from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..errors import UserError
from ..weighting.checks import check, check_choice
from .soft_nms import batched_soft_nms, iou_guided_nms, variance_voting

__all__ = ["NO_SUPPRESSION", "Suppression", "corner_variances", "refuse_regions_only"]

#: An NMS threshold that no IoU exceeds. With it Detectron2's inference gives all candidates.
NO_SUPPRESSION = 2.0

# Square pixels: finite as a reciprocal, and far below what a box can be sure of.
_SMALLEST_VARIANCE = 1e-6


@dataclass(frozen=True)
class Suppression:
    """Makes detections of candidates that overlap.

    Attributes:
        method: "hard", Detectron2's NMS; "linear" or "gaussian", Soft-NMS; or "iou_guided".
        sigma, min_score: Soft-NMS's, see :func:`~swn_d2.modeling.soft_nms.batched_soft_nms`.
        voting_sigma: the sigma of variance voting; None for no voting.

    Raises:
        UserError: one of them is out of its range.
    """

    method: str = "hard"
    sigma: float = 0.5
    min_score: float = 0.001
    voting_sigma: float | None = None

    def __post_init__(self):
        check_choice("MODEL.NMS.METHOD", self.method, ("hard", "linear", "gaussian", "iou_guided"))
        check("MODEL.NMS.SIGMA", self.sigma, self.sigma > 0, "greater than 0")
        check("MODEL.NMS.MIN_SCORE", self.min_score, 0 <= self.min_score < 1, "at least 0, below 1")
        check(
            "MODEL.NMS.VOTING_SIGMA",
            self.voting_sigma,
            self.voting_sigma is None or self.voting_sigma > 0,
            "greater than 0",
        )

    @classmethod
    def from_config(cls, cfg) -> "Suppression":
        """What ``cfg.MODEL.NMS`` asks for."""
        nms = cfg.MODEL.NMS
        return cls(
            method=nms.METHOD,
            sigma=nms.SIGMA,
            min_score=nms.MIN_SCORE,
            voting_sigma=nms.VOTING_SIGMA if nms.VARIANCE_VOTING else None,
        )

    @property
    def is_detectron2s(self) -> bool:
        """Whether this is what Detectron2 does anyway."""
        return self.method == "hard" and self.voting_sigma is None

    def __call__(
        self, candidates: Instances, *, iou_threshold: float, max_detections: int
    ) -> tuple[Instances, Tensor]:
        """The detections of one image.

        Args:
            candidates: N of them, with ``pred_boxes``, ``scores``, ``pred_classes``; for
                "iou_guided" also ``predicted_iou`` (N,), and for voting ``variances`` (N, 4).
            iou_threshold: from where on candidates of a class overlap too much.
            max_detections: how many are kept at most; negative for all.

        Returns:
            The detections, highest score first, with the first three fields, and the indices of
            the candidates that they are.
        """
        boxes, scores, classes = (
            candidates.pred_boxes.tensor,
            candidates.scores,
            candidates.pred_classes,
        )
        if self.method == "hard":
            keep = batched_nms(boxes, scores, classes, iou_threshold)
            keep = keep[: max_detections if max_detections >= 0 else None]
            scores = scores[keep]
        elif self.method == "iou_guided":
            keep, scores = iou_guided_nms(
                boxes,
                scores,
                candidates.predicted_iou,
                classes,
                iou_threshold=iou_threshold,
                max_detections=max_detections,
            )
        else:
            keep, scores = batched_soft_nms(
                boxes,
                scores,
                classes,
                method=self.method,
                iou_threshold=iou_threshold,
                sigma=self.sigma,
                min_score=self.min_score,
                max_detections=max_detections,
            )
        kept_boxes = boxes[keep]
        if self.voting_sigma is not None:
            kept_boxes = variance_voting(
                boxes, candidates.variances, classes, keep, sigma=self.voting_sigma
            )
        detections = Instances(candidates.image_size)
        detections.pred_boxes = Boxes(kept_boxes)
        detections.scores = scores
        detections.pred_classes = classes[keep]
        return detections, keep


def corner_variances(
    log_variance: Tensor, boxes: Tensor, decoded: Tensor, *, weights: tuple[float, ...]
) -> Tensor:
    """The variances of the corners of predicted boxes, from those of their deltas.

    The left edge is x + w_a dx / W_x - w / 2, w being exp(dw / W_w) times the width w_a of the
    box that the deltas apply to. Its derivatives by dx and dw are w_a / W_x and -w / (2 W_w); the
    right edge's differ in the sign only. So to first order, with independent deltas, both have
    the variance (w_a / W_x)^2 var(dx) + (w / (2 W_w))^2 var(dw). Likewise for top and bottom.

    Args:
        log_variance: (N, 4) log sigma^2 of dx, dy, dw, dh.
        boxes: (N, 4) what the deltas apply to, XYXY in pixels.
        decoded: (N, 4) the predicted boxes, not clipped.
        weights: W, those of the detector's Box2BoxTransform.

    Returns:
        (N, 4) the variances of x0, y0, x1, y1, in square pixels.
    """
    variance = log_variance.float().exp()
    of_centre = (boxes[:, 2:] - boxes[:, :2]) / boxes.new_tensor(weights[:2])
    of_size = (decoded[:, 2:] - decoded[:, :2]) / (2 * boxes.new_tensor(weights[2:]))
    of_edges = of_centre.square() * variance[:, :2] + of_size.square() * variance[:, 2:]
    return of_edges.clamp(min=_SMALLEST_VARIANCE).repeat(1, 2)


def refuse_regions_only(options: Mapping[str, bool]) -> None:
    """Raise a UserError for options, key -> whether it is on, for the regions of an R-CNN."""
    for key, is_on in options.items():
        if is_on:
            raise UserError(f"{key} is for the regions of an R-CNN; SWNRetinaNet has none.")
