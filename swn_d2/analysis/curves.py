"""Curves over the iterations, from metrics.json: AP, losses, weights, one small panel for each."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from .pooling import WEIGHTS_OF
from .run_folder import RunFolder
from .style import color_of, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "draw_aps",
    "draw_losses",
    "draw_weights",
    "evaluations",
    "iterations_done",
    "series",
    "smooth",
    "task_and_name",
    "weighted_losses",
]

_SIZE = (3.7, 2.4)  # of a panel, in inches
_LOGGED_MEAN = re.compile(r"(?:.*/)?weights/([a-z]+)_(?:[a-z]+_)?mean")
_MOST_POINTS = 500  # of a curve; more could not be seen apart

Row = Mapping[str, Any]


def iterations_done(rows: Sequence[Row]) -> int:
    """How many iterations of training were logged.

    Args:
        rows: :attr:`RunFolder.metrics`.
    """
    return max((row["iteration"] + 1 for row in rows if "total_loss" in row), default=0)


def series(rows: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """A scalar over the training.

    Args:
        rows: :attr:`RunFolder.metrics`.

    Returns:
        (n,) iterations done, and (n,) values.
    """
    # Detectron2 counts from 0, but what it logs after the last iteration has their number.
    last = iterations_done(rows) or np.inf
    points = [(min(row["iteration"] + 1, last), row[key]) for row in rows if key in row]
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    return x, y


def task_and_name(key: str) -> tuple[str, str] | None:
    """Whose metric a key of metrics.json is, and which; None for what is no AP or AR.

    Args:
        key: "bbox/AP50", "test set/bbox/AP", or "bbox/AP-" and a class, which may have a slash.
    """
    match = re.fullmatch(r"(.+?)/(AP-.+|A[PR][^/]*)", key)
    return match and match.groups()


def evaluations(rows: Sequence[Row]) -> dict[str, tuple[int, float]]:
    """The last value of each metric of an evaluation.

    Args:
        rows: :attr:`RunFolder.metrics`.

    Returns:
        Metric, like "bbox/AP", or "test set/bbox/AP" if there are several sets -> iterations done,
        and its value in percent, NaN if it is not defined.
    """
    keys = {key: None for row in rows for key in row if task_and_name(key)}
    last = {}
    for key in keys:
        x, y = series(rows, key)
        last[key] = (int(x[-1]), float(y[-1]))
    return last


def smooth(values: np.ndarray) -> np.ndarray:
    """The running mean over a twentieth of the values, centred; over less at the ends.

    Args:
        values: (n,); fewer than 40 stay as they are.
    """
    half = len(values) // 40
    if not half:
        return values
    window = np.ones(2 * half + 1)
    counts = np.convolve(np.ones(len(values)), window, mode="same")
    return np.convolve(values, window, mode="same") / counts


def draw_aps(runs: Sequence[RunFolder]) -> dict[str, "Figure"]:
    """A panel for AP, AP50 and AP75 of each task.

    Returns:
        Metric -> figure.

    Raises:
        UserError: no run was evaluated more than once.
    """

    def overall(key: str) -> str | None:
        _, name = task_and_name(key) or ("", "")
        return key if name in ("AP", "AP50", "AP75") else None

    metrics = _keys(runs, overall)
    if all(len(series(run.metrics, metric)[0]) < 2 for run in runs for metric in metrics):
        raise UserError(
            "No run was evaluated more than once, so there is no curve; TEST.EVAL_PERIOD evaluates "
            "during training, too."
        )

    def draw(axis: "Axes", run: RunFolder, color: str, metric: str) -> None:
        axis.plot(*series(run.metrics, metric), "o-", color=color, markersize=4)

    return _panels(runs, sorted(metrics), draw, "percent")


def weighted_losses(run: RunFolder) -> set[str]:
    """The losses of a run whose values can't be compared with those of a run that weights
    otherwise: those of samples that it weights, and the regularisers of its weights."""
    keys = {key for row in run.metrics for key in row}
    weighted = {
        match[1]
        for row in run.metrics
        for key, value in row.items()
        # 0 and 0 are the mean and the deviation of no samples.
        if (match := _LOGGED_MEAN.fullmatch(key))
        and (value not in (0, 1) or row.get(f"{key.removesuffix('mean')}std"))
    }
    tasks = [task for task, names in WEIGHTS_OF.items() if weighted & set(names)]
    prefixes = ("loss_swn_", *(f"loss_{task}" for task in tasks))  # loss_box_reg_stage1, ...
    return {key for key in keys if key.startswith(prefixes)}


def draw_losses(runs: Sequence[RunFolder]) -> dict[str, "Figure"]:
    """A panel for each loss but their sum: its running mean and, faint, what was logged.

    Returns:
        Loss -> figure.

    Raises:
        UserError: no run has a loss.
    """
    losses = _keys(runs, lambda key: key if key.startswith("loss_") else None)
    if not losses:
        raise UserError("No run has logged a loss; Detectron2 does so every 20 iterations.")

    def draw(axis: "Axes", run: RunFolder, color: str, loss: str) -> None:
        x, y = _thinned(*series(run.metrics, loss))
        axis.plot(x, y, color=color, alpha=0.3, linewidth=0.8)
        axis.plot(x, smooth(y), color=color, linewidth=1.6)

    return _panels(runs, sorted(losses), draw, "loss")


def draw_weights(runs: Sequence[RunFolder]) -> dict[str, "Figure"]:
    """A panel for the weights of each task: their mean and standard deviation, as the losses are
    multiplied by them, and, dashed, the mean as a network predicted them.

    Returns:
        Samples, like "box" or "stage0/cls_fg" -> figure.

    Raises:
        UserError: no run has weights other than 1.
    """

    def samples(key: str) -> str | None:
        match = re.fullmatch(r"((?:[^/]+/)*)(?:weights|swn)/(\w+)_mean", key)
        return match and match[1] + match[2]

    names = _keys(runs, samples)
    if not names:
        raise UserError(
            "No run has logged weights; where samples are weighted, that is done every 20 "
            "iterations."
        )

    def draw(axis: "Axes", run: RunFolder, color: str, name: str) -> None:
        stage, _, task = name.rpartition("/")
        prefix = stage and stage + "/"
        x, mean = series(run.metrics, f"{prefix}weights/{task}_mean")
        _, std = series(run.metrics, f"{prefix}weights/{task}_std")
        axis.fill_between(x, mean - std, mean + std, color=color, alpha=0.2, linewidth=0)
        axis.plot(x, mean, color=color, linewidth=1.6)
        learned = series(run.metrics, f"{prefix}swn/{task}_mean")
        axis.plot(*learned, color=color, linewidth=1.2, linestyle=(0, (4, 2)))

    return _panels(runs, sorted(names), draw, "weight")


def _keys(runs: Sequence[RunFolder], name: Callable[[str], str | None]) -> set[str]:
    """What ``name`` makes of the keys of all runs' metrics, if it makes something of them."""
    keys = {key for run in runs for row in run.metrics for key in row}
    return {name(key) for key in keys} - {None}


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over neighbours, so that at most ``_MOST_POINTS`` are left."""
    parts = min(len(x), _MOST_POINTS)
    return tuple(
        np.array([part.mean() for part in np.array_split(values, parts)]) if parts else values
        for values in (x, y)
    )


def _panels(
    runs: Sequence[RunFolder],
    names: Sequence[str],
    draw: Callable[["Axes", RunFolder, str, str], None],
    unit: str,
) -> dict[str, "Figure"]:
    """A figure for each name, with what ``draw(axis, run, color, name)`` draws for every run."""
    figures = {}
    for name in names:
        figures[name] = figure = new_figure(*_SIZE)
        axis = figure.subplots()
        for i, run in enumerate(runs):
            draw(axis, run, color_of(i), name)
        axis.set_title(name)
        axis.set_xlabel("iterations")
        axis.set_ylabel(unit)
        axis.margins(x=0.02)
        axis.locator_params(axis="x", nbins=5, integer=True)
        axis.ticklabel_format(useOffset=False)
        plain_axes(axis)
    return figures
