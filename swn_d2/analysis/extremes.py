"""Figure 1 of the paper: the training samples that lie farthest out."""

import contextlib
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import UserError
from ..recording import REASONS, Crop, Record, first_weight
from .pooling import able, pooled, recording_of, row_title, stage_name
from .run_folder import RunFolder
from .style import TEXT, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_extremes", "extreme_crops", "shown_weight", "since_eased_in"]

_WEIGHT_NAMES = {
    "cls_weight": "weight",
    "label_weight": "weight of the label",
    "box_weight": "box weight",
    "mask_weight": "mask weight",
}


def shown_weight(records: Sequence[Record]) -> str | None:
    """:func:`~swn_d2.recording.first_weight` of the positives of all records."""
    return first_weight({column: pooled(records, column) for column in _WEIGHT_NAMES})


def extreme_crops(
    records: Sequence[Record], num_crops: int = 4
) -> dict[str, list[tuple[Record, Crop]]]:
    """For each of the :data:`REASONS` the crops that lie farthest out, those first.

    A classification loss is large, or a weight small, by its rank among all recorded positives:
    losses are spread over many more orders of magnitude than weights, which would not matter
    beside them in a quotient. Of the objects of one class in an image, which nothing tells apart
    from one iteration to another, one is shown.

    Args:
        records: of the iterations that count.
        num_crops: at most, for each reason.
    """
    weight = shown_weight(records)
    losses = np.sort(pooled(records, "cls_loss"))
    weights = np.sort(pooled(records, weight)) if weight else np.zeros(0)

    def hardness(stats) -> float:
        """From -1, the smallest loss with the largest weight, to 1."""
        lightness = -_rank(weights, stats.get(weight, 1.0)) if weight else 0.0
        return _rank(losses, stats["cls_loss"]) + lightness

    # What is equal in ranks, being beyond all that is recorded, is told apart by the loss.
    keys = {
        "hard_but_light": lambda stats: (-hardness(stats), -stats["cls_loss"]),
        "easy_but_heavy": lambda stats: (hardness(stats), stats["cls_loss"]),
        "mismatch": lambda stats: -abs(stats["score"] - stats["iou"]),
    }
    chosen = {}
    for reason in REASONS:
        found = [(r, crop) for r in records for crop in r.crops if crop.reason == reason]
        found.sort(key=lambda pair, key=keys[reason]: key(pair[1].stats))
        first: dict[tuple[str, int], tuple[Record, Crop]] = {}
        for record, crop in found:
            first.setdefault((crop.image, crop.gt_class), (record, crop))
        chosen[reason] = list(first.values())[:num_crops]
    return chosen


def since_eased_in(run: RunFolder) -> list[Record]:
    """The records from where the run's weights are in full force.

    With SWN these are the ones after ``MODEL.SWN.EASE_IN``, or the last tenth of the training if
    that has no end before; without it, those of the second half.

    Raises:
        UserError: the run has no recording, or has not come so far.
    """
    everything, cfg = recording_of(run), run.cfg
    last = everything[-1].iteration
    if cfg is None or cfg.MODEL.SAMPLE_WEIGHTER.NAME != "SWN":
        start = (last + 1) / 2
    else:
        start = min(cfg.MODEL.SWN.EASE_IN[1], 0.9) * cfg.SOLVER.MAX_ITER
    records = [record for record in everything if record.iteration >= start]
    if not records:
        raise UserError(
            f"the weights of {run.name} are eased in at iteration {start:.0f}, and its recording "
            f"ends at {last}; train it to the end."
        )
    return records


def _pictured(run: RunFolder) -> list[Record]:
    records = since_eased_in(run)
    if not any(record.crops for record in records):
        raise UserError(
            f"the recording of {run.name} has no picture of a sample after its weights are eased "
            "in: no image that was recorded had an object."
        )
    return records


def draw_extremes(runs: Sequence[RunFolder], num_crops: int = 4) -> "Figure":
    """Draw the extreme crops of each run, with their boxes and numbers.

    Raises:
        UserError: no run has a recording with pictures of where its weights are in force.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    from ..evaluation.drawing import DETECTION, TRUTH

    shown = able(runs, _pictured)
    columns = min(len(shown), 2)
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(columns * num_crops * 1.55, rows * 7.8 + 0.4)
    blocks = figure.subfigures(rows, columns, squeeze=False, wspace=0.04).flat
    for block, (run, records) in zip(blocks, shown, strict=False):
        _draw_run(block, run, records, num_crops, named=len(runs) > 1)
    edge = [withStroke(linewidth=3, foreground="#00000090")]
    figure.legend(
        handles=[
            Line2D([], [], color=DETECTION, path_effects=edge, label="predicted box"),
            Line2D([], [], color=TRUTH, linestyle="--", path_effects=edge, label="ground truth"),
        ],
        loc="outside lower left",
        ncols=2,
        frameon=False,
        labelcolor=TEXT,
        fontsize=9,
    )
    return figure


def _draw_run(block, run: RunFolder, records: list[Record], num_crops: int, named: bool) -> None:
    block.patch.set_alpha(0)
    weight = shown_weight(records)
    of_weight = _WEIGHT_NAMES.get(weight, "")
    titles = {
        "hard_but_light": row_title(
            "large classification loss", of_weight and f"small {of_weight}"
        ),
        "easy_but_heavy": row_title(
            "small classification loss", of_weight and f"large {of_weight}"
        ),
        "mismatch": "score and IoU far apart",
    }
    if named or not weight:
        title = run.name if named else ""
        title = title if weight else f"{title} (every weight is 1)".strip()
        block.suptitle(title, x=0, ha="left", color=TEXT, size=11, weight="bold")
    names = _class_names(run)
    all_axes = block.subplots(len(REASONS), num_crops, squeeze=False)
    for axes, (reason, chosen) in zip(
        all_axes, extreme_crops(records, num_crops).items(), strict=True
    ):
        axes[0].set_title(titles[reason], loc="left", color=TEXT, size=10)
        for axis in axes:
            axis.patch.set_alpha(0)
            axis.set(xticks=[], yticks=[], aspect="equal")
            axis.spines[:].set_visible(False)
        for axis, (record, crop) in zip(axes, chosen, strict=False):
            _draw_crop(axis, crop)
            is_known = crop.gt_class < len(names)
            name = f"“{names[crop.gt_class]}”" if is_known else f"class {crop.gt_class}"
            stats = crop.stats
            lines = [
                row_title(name, stage_name(record.stage)),
                f"iteration {record.iteration:,}",
                f"loss {stats['cls_loss']:.2g}",
                f"{of_weight} {stats.get(weight, 1.0):.2f}" if weight else "weight 1",
                f"IoU {stats['iou']:.2f}, score {stats['score']:.2f}",
            ]
            text = "\n".join(lines)
            axis.set_xlabel(text, color=TEXT, size=8, loc="left")


def _draw_crop(axis: "Axes", crop: Crop) -> None:
    """The picture at the lower left of a square, with both boxes."""
    from ..evaluation.drawing import DETECTION, TRUTH, draw_box

    picture = Image.open(io.BytesIO(crop.jpeg))
    axis.imshow(np.asarray(picture))
    draw_box(axis, crop.gt_box, "", TRUTH, line_style="--")
    draw_box(axis, crop.box, "", DETECTION)
    width, height = picture.size
    side = max(width, height)
    axis.set(xlim=(0, side), ylim=(height, height - side))


def _class_names(run: RunFolder) -> Sequence[str]:
    """None where the data set can't be read: it is not needed for anything else."""
    from .predictions import class_names

    with contextlib.suppress(UserError):
        return class_names(run.cfg) if run.cfg is not None else ()
    return ()


def _rank(ordered: np.ndarray, value: float) -> float:
    """The share of the values that are smaller."""
    return np.searchsorted(ordered, np.float32(value)) / max(len(ordered), 1)
