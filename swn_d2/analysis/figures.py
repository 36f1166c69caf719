"""Every figure of a run, or of several that are compared, by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .confusions import draw_confusions
from .extremes import draw_extremes
from .functions import draw_functions
from .iou_shares import draw_iou_shares
from .missed import draw_missed
from .precision_recall import draw_precision_recall
from .run_folder import RunFolder
from .weights import draw_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "FigureInfo"]


@dataclass(frozen=True)
class FigureInfo:
    """A figure.

    Attributes:
        title: what it shows, in a few words.
        caption: how to read it.
        draw: draws it; raises a UserError with one sentence if no run has what it needs.
        from_recording: whether it shows the samples that a training recorded, and not what an
            evaluation detected.
    """

    title: str
    caption: str
    draw: Callable[[Sequence[RunFolder]], "Figure"]
    from_recording: bool = True


#: Name -> figure, in the order in which they are shown.
FIGURES: dict[str, FigureInfo] = {
    "precision_recall": FigureInfo(
        "Precision and recall",
        "At an IoU of 0.5, as COCO's evaluation has it: the precision at a recall is the highest "
        "there or at a higher recall, and 0 beyond what was found with any score. The area under a "
        "curve is the AP50. Several runs: the class in which the second gains most on the first "
        "comes first; one run: the class with the highest AP50.",
        draw_precision_recall,
        from_recording=False,
    ),
    "confusions": FigureInfo(
        "What is taken for what",
        "By COCO's rule without classes: in the order of their scores, each detection takes the "
        "object that it overlaps most of those that are left. A second detection of an object "
        "counts as one of nothing. Percentages, and in a matrix the colours, are shares of the "
        "objects of a class.",
        draw_confusions,
        from_recording=False,
    ),
    "missed": FigureInfo(
        "What each run finds and misses",
        "As Figure 4 of the paper: the same images for every run, with the detections that have a "
        "score of 0.5 or more. An object is missed if no such detection of its class has an IoU of "
        "0.5 or more with it; a detection that finds no object, since there is none of its class "
        "or another detection has it, is a false positive. Labels are drawn where they fit.",
        draw_missed,
        from_recording=False,
    ),
    "samples": FigureInfo(
        "Training samples that lie farthest out",
        "As Figure 1 of the paper. Large and small are meant by rank among the positives that "
        "were recorded after the weights had been eased in (without SWN: in the second half of "
        "the training); of an image, one object of each class is shown. The loss is the "
        "classification loss without its weight; the weight is that of classification, or of the "
        "label in it, or of the box, the first of these that is not 1 throughout.",
        draw_extremes,
    ),
    "iou_shares": FigureInfo(
        "Which boxes the loss comes from",
        "As Figure 5 of the paper: of the total weighted loss of the positives, the share of those "
        "whose predicted box has a certain IoU with its object; the bars of a run add up to 100 %. "
        "Where a bar ends above the line on it, the weights favour boxes of that IoU.",
        draw_iou_shares,
    ),
    "functions": FigureInfo(
        "The learned functions",
        "The weight that the network gives a positive. Above: over one statistic, the others at "
        "their medians, from early (blue) to late (orange) in the training. Below: over two "
        "statistics, at the end; the dots are recorded samples, far from which the colours are a "
        "guess. These are the network's own weights: the detector sees them eased in and, with "
        "MODEL.SWN.RELATIVE, scaled so that the total loss stays what it is without them.",
        draw_functions,
    ),
    "weights": FigureInfo(
        "The weights over time",
        "What the losses of the samples are multiplied by: the median and the middle 50 and 90 % "
        "of the recorded samples, and on the right their distribution at the end of the training. "
        "Losses whose weights are all 1 are left out; weights below 1/64 are drawn there.",
        draw_weights,
    ),
}
