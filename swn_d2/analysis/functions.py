"""What the weighting network has learned: its weights as functions of the statistics."""

import pickle
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import UserError
from ..weighting import SAMPLE_WEIGHTER_REGISTRY, SWN, SampleStatistics, build_sample_weighter
from .pooling import LATE, LOSS_NAMES, able, part, pooled, recording_of, row_title, stage_name
from .run_folder import RunFolder
from .style import TEXT, new_figure, plain_axes, weight_ticks

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure

__all__ = ["draw_functions", "learned_weights", "load_weighters", "sample_range"]

_STATISTICS = {
    "cls_loss": "classification loss",
    "box_loss": "box loss",
    "mask_loss": "mask loss",
    "iou": "IoU",
    "prob": "probability of the true class",
}
_CURVE_POINTS, _SURFACE_POINTS, _DOTS = 100, 60, 300


def load_weighters(run: RunFolder) -> list[tuple[int, dict[str, SWN]]]:
    """A run's weighting networks, as they were during the training.

    Returns:
        (iteration, stage -> weighter) for each snapshot, in the order of the iterations.

    Raises:
        UserError: the run has no learned functions, or a snapshot can't be read.
    """
    if run.cfg is None:
        raise UserError(run.problem("cfg"))
    name = run.cfg.MODEL.SAMPLE_WEIGHTER.NAME
    if name not in SAMPLE_WEIGHTER_REGISTRY or not issubclass(
        SAMPLE_WEIGHTER_REGISTRY.get(name), SWN
    ):
        raise UserError(
            f"{run.name} has no learned functions: its sample weighter is {name}, not SWN."
        )
    if not run.snapshots:
        raise UserError(
            f"{run.name} has no snapshot of a weighting network; a training keeps ten of them "
            "where RECORDING.PERIOD is greater than 0 and the detector is one of swn_d2's."
        )
    snapshots = []
    for iteration, file in run.snapshots:
        try:
            states = torch.load(file, map_location="cpu", weights_only=True)
            weighters = {stage: _build(run.cfg, state) for stage, state in states.items()}
        except (
            *(OSError, EOFError, pickle.UnpicklingError),
            *(RuntimeError, AttributeError, KeyError, TypeError),
        ) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"{file} is no snapshot of the weighting network of {run.name} ({reason[0]}); "
                "delete it."
            ) from error
        snapshots.append((iteration, weighters))
    if not any(weighter.tasks for weighter in snapshots[-1][1].values()):
        raise UserError(
            f"{run.name} has no learned functions: it weights nothing but classes by object, by "
            "more than the statistics of a sample."
        )
    return snapshots


def _build(cfg, state: Mapping[str, torch.Tensor]) -> SWN:
    # What the detector offered shows in the shapes of what was made for it. The network of the
    # classes sees the columns of the box loss even where the other one sees their sum.
    embedding = "network.embeddings.box_loss.0.weight"
    of_classes = f"rightness.{embedding}"
    weighter = build_sample_weighter(
        cfg,
        box_loss_dim=state[of_classes if of_classes in state else embedding].shape[1],
        has_mask="network.embeddings.mask_loss.0.weight" in state,
    )
    weighter.load_state_dict(state)
    return weighter


@torch.no_grad()
def learned_weights(weighter: SWN, task: str, samples: Mapping[str, np.ndarray]) -> np.ndarray:
    """The network's own ``w = exp(-k m)`` of positive samples, before averages of m over groups
    and before weights are made relative.

    Args:
        weighter: with ``task`` among its tasks.
        samples: statistic -> its values, arrays that can be broadcast together. The box loss is
            the sum over its columns, which are taken to be equal.

    Returns:
        The weights, of the shape of the samples.
    """
    arrays = dict(zip(samples, np.broadcast_arrays(*samples.values()), strict=True))
    shape = arrays["iou"].shape
    columns = {name: torch.tensor(a.reshape(-1)).float() for name, a in arrays.items()}
    box_loss, dim = columns.pop("box_loss")[:, None], weighter.network.box_loss_dim
    statistics = SampleStatistics(
        **columns,
        box_loss=(box_loss / dim).expand(-1, dim),
        is_foreground=torch.ones(len(box_loss), dtype=torch.bool),
        normalizers={},
    )
    m = weighter.network(statistics)[task].clamp(-weighter.clamp, weighter.clamp)
    return torch.exp(-weighter.exponent * m).numpy().reshape(shape)


def sample_range(values: np.ndarray, *, is_loss: bool) -> np.ndarray:
    """The axis on which values are shown: (2,) its ends.

    Args:
        values: of the samples; a hundredth of them may lie beyond either end.
        is_loss: its axis is logarithmic and at most three orders of magnitude long.
    """
    low, high = np.quantile(values, (0.01, 0.99))
    if is_loss:
        high = max(high, 1e-6)
        return np.array([min(max(low, high / 1000), high / 2), high])
    return np.array([low, high]) if high - low > 0.01 else np.array([0.0, 1.0])


def draw_functions(runs: Sequence[RunFolder]) -> "Figure":
    """Draw the functions that each run's network has learned: for each of its tasks (and stages)
    the curves over one statistic from snapshot to snapshot, and the last one over two.

    Raises:
        UserError: no run has a learned weighter, snapshots of it and a recording with positives.
    """
    blocks = [(run, *block) for run, blocks in able(runs, _blocks) for block in blocks]
    figure = new_figure(10, 5.8 * len(blocks))
    parts = figure.subfigures(len(blocks), 1, squeeze=False, hspace=0.03)[:, 0]
    for subfigure, (run, stage, task, snapshots, samples) in zip(parts, blocks, strict=True):
        subfigure.patch.set_alpha(0)
        title = row_title(
            run.name if len(runs) > 1 else "",
            stage_name(stage),
            f"learned weights of the {LOSS_NAMES[task]} loss",
        )
        subfigure.suptitle(title, x=0, ha="left", color=TEXT, size=11, weight="bold")
        _draw_task(subfigure, task, snapshots, samples)
    return figure


def _blocks(run: RunFolder) -> list[tuple]:
    """For each stage and task of a run what there is to draw: stage, task, (iteration, weighter)
    of each snapshot, and statistic -> (n,) the recorded positives at the end of the training."""
    snapshots, recording = load_weighters(run), recording_of(run)
    blocks = []
    for stage, weighter in snapshots[-1][1].items():
        if not weighter.tasks:  # of a cascade's stage, where classes alone are weighted
            continue
        records = part(recording, stage, LATE)
        samples = {name: pooled(records, name) for name in weighter.network.embeddings}
        if not len(samples["iou"]):
            raise UserError(
                f"the recording of {run.name} has no positives at the end of the training, whose "
                "weights could be shown."
            )
        of_stage = [(iteration, weighters[stage]) for iteration, weighters in snapshots]
        blocks += [(stage, task, of_stage, samples) for task in weighter.tasks]
    return blocks


def _draw_task(
    figure: "SubFigure",
    task: str,
    snapshots: Sequence[tuple[int, SWN]],
    samples: Mapping[str, np.ndarray],
) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    loss = f"{task}_loss"
    ranges = {
        name: sample_range(samples[name], is_loss=name == loss) for name in (loss, "iou", "prob")
    }
    scale = "log" if ranges[loss][1] > 10 * ranges[loss][0] else "linear"
    scales = {loss: scale, "iou": "linear", "prob": "linear"}
    medians = {name: np.median(values) for name, values in samples.items()}
    grid = figure.add_gridspec(2, 6, height_ratios=(1, 1.15))

    # Of about the same lightness, for white and black; the colour-blind see blue and orange.
    early_to_late = LinearSegmentedColormap.from_list("", ["#3f8fd0", "#8a8f98", "#e0752d"])
    first, end = snapshots[0][0], snapshots[-1][0]
    iterations = Normalize(min(first, end - 1), end)  # of one snapshot, too
    curve_axes = []
    for i, name in enumerate(ranges):
        axis = figure.add_subplot(grid[0, 2 * i : 2 * i + 2], sharey=(curve_axes or [None])[0])
        curve_axes.append(axis)
        x = _spaced(ranges[name], _CURVE_POINTS, scales[name])
        for iteration, weighter in snapshots:
            w = learned_weights(weighter, task, {**medians, name: x})
            is_last = iteration == end
            color = early_to_late(iterations(iteration))
            axis.plot(x, np.log2(w), color=color, linewidth=2.4 if is_last else 1.2)
        axis.axhline(0, color=TEXT, linewidth=1, linestyle="--", zorder=1)
        plain_axes(axis, grid="both")
        _label(axis.xaxis, name, scales[name])
        if i:
            axis.tick_params(labelleft=False)
    curve_axes[0].set_ylabel("weight, others at their medians")
    weight_ticks(curve_axes[0])
    bar = figure.colorbar(ScalarMappable(iterations, early_to_late), ax=curve_axes, aspect=12)
    _plain_bar(bar, "iteration")

    last = snapshots[-1][1]
    x = _spaced(ranges[loss], _SURFACE_POINTS, scales[loss])
    surfaces = {}
    for name in ("iou", "prob"):
        y = _spaced(ranges[name], _SURFACE_POINTS, scales[name])
        w = learned_weights(last, task, {**medians, loss: x[None, :], name: y[:, None]})
        surfaces[name] = y, np.log2(w)
    limit = max(0.5, *(np.abs(w).max() for _, w in surfaces.values()))
    dots = np.random.default_rng(0).permutation(len(samples[loss]))[:_DOTS]
    surface_axes = []
    for i, (name, (y, w)) in enumerate(surfaces.items()):
        axis = figure.add_subplot(grid[1, 3 * i : 3 * i + 3])
        surface_axes.append(axis)
        colors = {"cmap": "PuOr_r", "vmin": -limit, "vmax": limit}
        mesh = axis.pcolormesh(x, y, w, shading="gouraud", rasterized=True, **colors)
        # Only what lies within is drawn: an SVG would carry the rest.
        inside = [
            (ranges[k][0] <= samples[k][dots]) & (samples[k][dots] <= ranges[k][1])
            for k in (loss, name)
        ]
        shown = dots[inside[0] & inside[1]]
        axis.scatter(
            samples[loss][shown],
            samples[name][shown],
            s=7,
            color="#22222290",
            edgecolor="#ffffff90",
            linewidth=0.4,
        )
        plain_axes(axis)
        axis.grid(False)
        _label(axis.xaxis, loss, scales[loss])
        _label(axis.yaxis, name, scales[name])
    bar = figure.colorbar(mesh, ax=surface_axes, aspect=14)
    _plain_bar(bar, f"weight at iteration {end:,}")
    weight_ticks(bar.ax)


def _spaced(ends: np.ndarray, num: int, scale: str) -> np.ndarray:
    return np.geomspace(*ends, num) if scale == "log" else np.linspace(*ends, num)


def _label(axis: "Axis", name: str, scale: str) -> None:
    from matplotlib.ticker import (
        FuncFormatter,
        LogLocator,
        MaxNLocator,
        NullFormatter,
        ScalarFormatter,
    )

    axis.set_label_text(_STATISTICS[name])
    if scale == "linear":
        axis.set_major_locator(MaxNLocator(5))
        # A factor at the end of the axis: labels such as 0.00015 would run into each other.
        short = ScalarFormatter(useOffset=False, useMathText=False)
        short.set_powerlimits((-3, 4))
        axis.set_major_formatter(short)
        axis.offsetText.set(color=TEXT, size=9)
        return
    axis.axes.set_xscale("log")
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 3) if high < 300 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _plain_bar(bar, label: str) -> None:
    bar.set_label(label, color=TEXT, size=9)
    bar.ax.tick_params(colors=TEXT, labelsize=9)
    bar.outline.set_visible(False)
