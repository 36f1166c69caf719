"""PISA: prime samples count more (Cao et al., "Prime Sample Attention in Object Detection",
CVPR 2020)."""

import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from ..errors import UserError
from .checks import check
from .objective import preserve_total_loss
from .ranking import rank_within
from .statistics import SampleStatistics, SampleWeights
from .weighters import SAMPLE_WEIGHTER_REGISTRY, SampleWeighter

__all__ = ["PrimeSample", "cluster_boxes", "iou_hlr", "score_hlr"]

_SECTION = "MODEL.SAMPLE_WEIGHTER.PRIMESAMPLE"
# Clustering takes the square of it in memory: an R-CNN samples hundreds, a RetinaNet has 100,000.
_MOST_NEGATIVES = 5000


@SAMPLE_WEIGHTER_REGISTRY.register()
class PrimeSample(SampleWeighter):
    """Importance-based sample reweighting (ISR) of the classification, by the hierarchical local
    rank of each sample, and the classification-aware regression loss (CARL).

    The classification loss of the positives keeps its total, and so does that of the negatives.
    """

    KEYS = {
        "ISR_P_BETA": 0.0,
        "ISR_P_GAMMA": 2.0,
        "ISR_N_BETA": 0.0,
        "ISR_N_GAMMA": 0.5,
        "CARL_BIAS": 0.2,
        "CARL_POWER": 1.0,
        "NMS_THRESHOLD": 0.5,
    }

    def __init__(
        self,
        *,
        isr_p_beta: float = 0.0,
        isr_p_gamma: float = 2.0,
        isr_n_beta: float = 0.0,
        isr_n_gamma: float = 0.5,
        carl_bias: float = 0.2,
        carl_power: float = 1.0,
        nms_threshold: float = 0.5,
    ):
        """
        Args:
            isr_p_beta, isr_p_gamma: beta, from 0 to 1, and gamma, at least 0, of the positives'
                weights ``((1 - beta) u + beta)^gamma``, u being their importance in (0, 1].
            isr_n_beta, isr_n_gamma: those of the negatives, which with a gamma of 0 are neither
                ranked nor weighted.
            carl_bias, carl_power: b, from 0 to 1, and k, at least 0, of the box weights
                ``((1 - b) p + b)^k``, p being the probability of the true class.
            nms_threshold: negatives whose predicted boxes have a larger IoU, from 0 to 1, are of
                one cluster.

        Raises:
            UserError: a value is out of its range.
        """
        super().__init__()
        shares = {
            "ISR_P_BETA": isr_p_beta,
            "ISR_N_BETA": isr_n_beta,
            "CARL_BIAS": carl_bias,
            "NMS_THRESHOLD": nms_threshold,
        }
        for key, value in shares.items():
            check(f"{_SECTION}.{key}", value, 0 <= value <= 1, "between 0 and 1")
        powers = {
            "ISR_P_GAMMA": isr_p_gamma,
            "ISR_N_GAMMA": isr_n_gamma,
            "CARL_POWER": carl_power,
        }
        for key, value in powers.items():
            check(f"{_SECTION}.{key}", value, value >= 0, "at least 0")
        self.isr_p = (isr_p_beta, isr_p_gamma)
        self.isr_n = (isr_n_beta, isr_n_gamma)
        self.carl = (carl_bias, carl_power)
        self.nms_threshold = nms_threshold

    def forward(self, statistics: SampleStatistics) -> SampleWeights:
        """Raises UserError where an image has too many negatives to be clustered."""
        positives, counted = statistics.foreground, statistics.counted_loss("cls")
        cls, box = torch.ones_like(statistics.cls_loss), torch.ones_like(statistics.cls_loss)
        if len(positives) > 0:
            cls = cls.index_copy(0, positives, self._isr_of_positives(statistics, counted))
            probs = statistics.detail("true_prob").float()[positives]
            box = box.index_copy(0, positives, _mean_1(_power(probs, *self.carl)))
        if self.isr_n[1] > 0:
            negatives = (~statistics.is_foreground).nonzero().squeeze(1)
            isr_n = self._isr_of_negatives(statistics, counted, negatives)
            cls = cls.index_copy(0, negatives, isr_n)
        return SampleWeights(cls=cls, box=box)

    def _isr_of_positives(self, statistics: SampleStatistics, counted: Tensor) -> Tensor:
        positives = statistics.foreground
        gt_class = statistics.detail("gt_class")[positives]
        rank = iou_hlr(statistics.iou[positives], statistics.detail("object")[positives], gt_class)
        # Equal ranks have equal importance in every class, that of the largest class.
        importance = 1 - rank / gt_class.bincount().max()
        return _keep_total(_power(importance, *self.isr_p), counted[positives])

    def _isr_of_negatives(
        self, statistics: SampleStatistics, counted: Tensor, negatives: Tensor
    ) -> Tensor:
        scores = statistics.detail("pred_score").float()[negatives]
        boxes = statistics.detail("pred_boxes").float()[negatives]
        image = statistics.detail("image")[negatives]
        rank = score_hlr(boxes, scores, image, self.nms_threshold)
        importance = 1 - rank / len(negatives)
        return _keep_total(_power(importance, *self.isr_n), counted[negatives])


def iou_hlr(iou: Tensor, objects: Tensor, gt_class: Tensor) -> Tensor:
    """(F,) hierarchical local rank of the positives, within their class: first come the best
    sample of each object, sorted by IoU, then the second-best of each, and so on; NaN is last.

    Args:
        iou: (F,) IoU of the predicted box with its object.
        objects: (F,) long, which object that is.
        gt_class: (F,) long, the object's class.
    """
    return rank_within(gt_class, rank_within(objects, -iou), -iou)


def score_hlr(boxes: Tensor, scores: Tensor, image: Tensor, threshold: float) -> Tensor:
    """(N,) hierarchical local rank of the negatives: as :func:`iou_hlr`, of all classes together,
    with scores for IoUs and clusters for objects.

    Args:
        boxes: (N, 4) predicted boxes, XYXY.
        scores: (N,) largest foreground probabilities.
        image: (N,) long, the image of each.
        threshold: of the clusters, see :func:`cluster_boxes`.

    Raises:
        UserError: an image has too many.
    """
    cluster = torch.empty_like(image)
    for one in image.unique():
        of_image = (image == one).nonzero().squeeze(1)
        if len(of_image) > _MOST_NEGATIVES:
            raise UserError(
                f"PrimeSample can't cluster the {len(of_image)} negatives of an image; set "
                f"{_SECTION}.ISR_N_GAMMA to 0.0, which leaves negatives as they are."
            )
        # A cluster has the index of its best box in the batch, so no two images share one.
        cluster[of_image] = of_image[cluster_boxes(boxes[of_image], scores[of_image], threshold)]
    return rank_within(torch.zeros_like(image), rank_within(cluster, -scores), -scores)


def cluster_boxes(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """(N,) long, for each of N boxes the index of the one that non-maximum suppression keeps in
    its place: the best of those that it keeps with an IoU above ``threshold``.

    Args:
        boxes: (N, 4) XYXY.
        scores: (N,) by which boxes are sorted.
        threshold: of the suppression.
    """
    kept = nms(boxes, scores, threshold)  # the best box first
    overlaps = box_iou(boxes[kept], boxes) > threshold
    result = kept[overlaps.int().argmax(dim=0)]  # the first of the kept that overlaps
    result[kept] = kept  # a box without an area does not even overlap itself
    return result


def _power(values: Tensor, bias: float, exponent: float) -> Tensor:
    """``((1 - bias) x + bias)^exponent`` of values in [0, 1], never quite 0, where a power below 1
    has an infinite gradient."""
    return ((1 - bias) * values + bias).clamp(min=1e-6).pow(exponent)


def _mean_1(weights: Tensor) -> Tensor:
    return weights / weights.mean()


def _keep_total(weights: Tensor, losses: Tensor) -> Tensor:
    """``weights`` (N,), scaled so that the total of ``losses`` (N,) stays what it is."""
    everyone = torch.ones_like(losses, dtype=torch.bool)
    return weights * preserve_total_loss(weights, losses, everyone)
