"""The report: one HTML page on a run, or on several side by side."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from detectron2.config import CfgNode

from .. import __version__
from ..config import flat_config, section_of
from ..engine.checkpoint import BEST
from ..engine.start import EVALUATION_METRICS
from ..errors import UserError
from ..recording import RECORDING
from ..shell import duration
from . import curves
from .figures import FIGURES, FigureInfo
from .page import Page, missing, note, scrolling, table, text
from .run_folder import RunFolder
from .style import color_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]

#: What the metrics are, in the order of the table.
_METRICS = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "objects under 32² pixels",
    "APm": "objects of 32² to 96² pixels",
    "APl": "objects over 96² pixels",
}
_NOTHING = (0, math.nan)  # of a metric that a run does not have
#: Problems of a run that stand in its card; others stand where they matter.
_OF_CARDS = ("cfg", "metrics", "recording", "checkpoint", "best")
#: What tells most of a single run, beside the keys of its weighter.
_TELLING_KEYS = re.compile(
    r"DATASETS\.(TRAIN|TEST)|MODEL\.(META_ARCHITECTURE|WEIGHTS|ROI_HEADS\.NAME)"
    r"|SEED|SOLVER\.(MAX_ITER|IMS_PER_BATCH|BASE_LR|STEPS|GAMMA|WARMUP_ITERS)"
)


def write_report(runs: Sequence[RunFolder], file: str | Path) -> None:
    """Write a page with what the runs' folders hold: AP, curves, figures, configs, versions.

    What a folder lacks, the page says in its place.

    Args:
        runs: at least one; others are compared with the first.
        file: of the page, which needs no other file and no network.

    Raises:
        UserError: the file can't be written.
    """
    page = Page()
    legend = _legend(runs)
    page.section("ap", "Average precision", _ap_table(runs))
    page.section("ap-curves", "AP during training", *_ap_curves(page, runs, legend))
    for name, info in FIGURES.items():
        if not info.from_recording:
            page.section(f"figure-{name}", info.title, *_figure(page, runs, info))
    page.section("losses", "Losses", *_losses(page, runs, legend))
    _add_samples(page, runs, legend)
    page.section("config", "Config", *_config(runs))
    page.section("machine", "Speed, versions, machine", *_machine(runs))

    names = " and ".join(run.name for run in runs)
    head = f'<p class="faint">Training report</p>\n<h1>{text(names)}</h1>\n{_cards(runs)}'
    foot = f'<p class="faint">Written by swn_d2 {text(__version__)}.</p>'
    page.write(Path(file), f"{names}: report", head, foot)


# Cards: a run in a few lines


def _cards(runs: Sequence[RunFolder]) -> str:
    baseline = _headline(runs[0])
    cards = []
    for i, run in enumerate(runs):
        lines = [f"<h2>{text(run.name)}</h2>"] if len(runs) > 1 else []
        headline = _headline(run)
        if headline:
            metric, value = headline
            difference = ""
            if i and baseline and baseline[0] == metric:
                difference = f", {_difference(value, baseline[1])} to {text(runs[0].name)}"
            lines.append(
                f'<p class="big">{_number(value)} <small>{text(metric)}{difference}</small></p>'
            )
        lines += [f"<p>{text(sentence)}</p>" for sentence in (*_summary(run), *_best(run))]
        problems = run.problems
        if not run.has_recording:
            del problems["recording"]  # which is right so for a plain baseline
        lines += [missing(p) for part, p in problems.items() if part in _OF_CARDS]
        cards.append(f'<li style="--run: {color_of(i)}">{"".join(lines)}</li>\n')
    return f'<ul class="runs">\n{"".join(cards)}</ul>'


def _headline(run: RunFolder) -> tuple[str, float] | None:
    values = curves.evaluations(run.metrics)
    metric = next((metric for metric in _ordered(values) if metric.endswith("/AP")), None)
    return metric and (metric, values[metric][1])


def _summary(run: RunFolder) -> Iterator[str]:
    """What was trained, and how far."""
    done = curves.iterations_done(run.metrics)
    cfg = run.cfg
    if cfg is None:
        if done:
            yield f"{done:,} iterations."
        return
    weighter = _weighter(cfg)
    yield f"{_detector(cfg)}, {f'weights by {weighter}' if weighter else 'no weights'}."
    of_all = "" if done >= cfg.SOLVER.MAX_ITER else f" of {cfg.SOLVER.MAX_ITER:,}"
    yield (
        f"{done:,}{of_all} iterations of {cfg.SOLVER.IMS_PER_BATCH} images of "
        f"{', '.join(cfg.DATASETS.TRAIN) or 'no data set'}."
    )


def _best(run: RunFolder) -> Iterator[str]:
    if run.best:
        yield (
            f"Best of its evaluations: {_number(run.best.value)} {run.best.metric} after "
            f"{run.best.iteration + 1:,} iterations, kept as {BEST}."
        )


def _detector(cfg: CfgNode) -> str:
    """The class that Detectron2's own is told apart from swn_d2's by."""
    architecture = cfg.MODEL.META_ARCHITECTURE
    return architecture if "RetinaNet" in architecture else cfg.MODEL.ROI_HEADS.NAME


def _weighter(cfg: CfgNode) -> str:
    """The name of the sample weighter; "" of Detectron2's own classes, which have none."""
    return cfg.MODEL.SAMPLE_WEIGHTER.NAME if _detector(cfg).startswith("SWN") else ""


def _legend(runs: Sequence[RunFolder]) -> str:
    """The runs' colours; nothing where there is only one."""
    if len(runs) == 1:
        return ""
    entries = (
        f'<li style="--run: {color_of(i)}"><span class="swatch"></span>{text(run.name)}</li>'
        for i, run in enumerate(runs)
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'


# The table of AP


def _ap_table(runs: Sequence[RunFolder]) -> str:
    values = [_last_evaluation(run) for run in runs]
    metrics = _ordered({metric: None for of_run in values for metric in of_run})
    if not metrics:
        return missing(
            "No run was evaluated; a training evaluates on DATASETS.TEST when it is complete."
        )
    head = ["Percent"] + [
        f"{text(run.name)}<small>{_when(of_run)}</small>"
        for run, of_run in zip(runs, values, strict=True)
    ]
    classes = [m for m in metrics if curves.task_and_name(m)[1].startswith("AP-")]
    html = (
        f'<p class="how">The last evaluation of each run{_and_differences(runs)}. A dash stands '
        "for what is not defined, such as the AP of objects of a size that the data set does not "
        f"have.{_evaluated_since(runs)}</p>"
        + table(head, _ap_rows([m for m in metrics if m not in classes], values), "AP")
    )
    if classes:
        rows = _ap_rows(_by_gain(classes, values), values)
        order = "the highest first"
        if len(runs) > 1:
            order = f"by the difference of {text(runs[1].name)} to {text(runs[0].name)}"
        html += f"<details><summary>AP of each class, {order}</summary>"
        html += f"{table(head, rows, 'AP of classes')}</details>"
    return html


def _last_evaluation(run: RunFolder) -> dict[str, tuple[int, float]]:
    """As :func:`.curves.evaluations`; where the training has none, that of an evaluation by itself,
    after 0 iterations."""
    by_itself = {metric: (0, value) for metric, value in run.metrics_by_itself.items()}
    return curves.evaluations(run.metrics) or by_itself


def _by_gain(
    metrics: Sequence[str], values: Sequence[Mapping[str, tuple[int, float]]]
) -> list[str]:
    """The metrics of each task, those first in which the second run gains most on the first; of
    one run, the highest first. What is not defined comes last."""
    tasks = list(dict.fromkeys(curves.task_and_name(metric)[0] for metric in metrics))

    def place(metric: str) -> tuple[int, float]:
        first, *others = (of_run.get(metric, _NOTHING)[1] for of_run in values)
        gain = others[0] - first if others else first
        return tasks.index(curves.task_and_name(metric)[0]), math.inf if gain != gain else -gain

    return sorted(metrics, key=place)


def _and_differences(runs: Sequence[RunFolder]) -> str:
    if len(runs) == 1:
        return ""
    return (
        f", and its difference to {text(runs[0].name)} in percentage points. Another seed moves "
        "AP, too: what a difference between two runs is worth, only several seeds can say"
    )


def _evaluated_since(runs: Sequence[RunFolder]) -> str:
    """Of which runs the detections in the folder are not those of the table."""
    return "".join(
        f" What {text(run.name)} finds and misses, below, is of an evaluation by itself, with "
        + text(", ".join(f"{key} {value}" for key, value in run.evaluated_with.items()))
        + f", whose AP is in {EVALUATION_METRICS}."
        for run in runs
        if run.evaluated_with
    )


def _when(values: Mapping[str, tuple[int, float]]) -> str:
    iterations = max((done for done, _ in values.values()), default=None)
    if iterations is None:
        return "not evaluated"
    return f"after {iterations:,} iterations" if iterations else "an evaluation by itself"


def _ap_rows(
    metrics: Sequence[str], values: Sequence[Mapping[str, tuple[int, float]]]
) -> Iterator[list[str]]:
    group = None
    for metric in metrics:
        task, name = curves.task_and_name(metric)
        if task != group:
            group = task
            yield [text(task)]
        cells = []
        for i, of_run in enumerate(values):
            _, value = of_run.get(metric, _NOTHING)
            cell = _number(value)
            if i:
                cell += f" <small>{_difference(value, values[0].get(metric, _NOTHING)[1])}</small>"
            cells.append(cell)
        meaning = _METRICS.get(name)
        yield [text(name) + (f"<small>{meaning}</small>" if meaning else ""), *cells]


def _ordered(metrics: Mapping[str, object]) -> list[str]:
    """Tasks in their own order, and of each the overall metrics first, in that of the table."""
    tasks = list(dict.fromkeys(curves.task_and_name(metric)[0] for metric in metrics))
    order = list(_METRICS)

    def place(metric: str):
        task, name = curves.task_and_name(metric)
        return tasks.index(task), order.index(name) if name in order else len(order), name

    return sorted(metrics, key=place)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"


def _difference(value: float, baseline: float) -> str:
    difference = value - baseline
    return "" if math.isnan(difference) else f"{difference:+.1f}".replace("-", "−")


# Curves and figures


def _ap_curves(page: Page, runs: Sequence[RunFolder], legend: str) -> list[str]:
    try:
        figures = curves.draw_aps(runs)
    except UserError as error:
        return [note(str(error))]
    return [_how("One point for each evaluation."), legend, _panels(page, figures)]


def _losses(page: Page, runs: Sequence[RunFolder], legend: str) -> list[str]:
    """The losses of which runs can be compared, and below them those that differ with the
    weights."""
    try:
        figures = curves.draw_losses(runs)
    except UserError as error:
        return [note(str(error))]
    how = (
        "Running means; faint, the values as they were logged, each a median over 20 iterations. "
        "Losses are those that the detector is trained on. Their sum, total_loss, is left out: the "
        "weights of samples, and regularisers of the weights, are in it."
    )
    apart = set.union(*map(curves.weighted_losses, runs)) if len(runs) > 1 else set()
    together = {name: figure for name, figure in figures.items() if name not in apart}
    html = [_how(how), legend, _panels(page, together)]
    if apart := {name: figure for name, figure in figures.items() if name in apart}:
        html += [
            "<h3>Not to be compared</h3>",
            _how(
                "In these a run has weights or a regulariser. Their course can be seen, but a "
                "lower one does not mean a better detector: it may only mean lower weights."
            ),
            _panels(page, apart),
        ]
    return html


def _add_samples(page: Page, runs: Sequence[RunFolder], legend: str) -> None:
    """Add the sections on samples and weights: of the runs that recorded any."""
    silent = [run for run in runs if not run.has_recording]
    names = " and ".join(run.name for run in silent)
    without = f"Without a recording of samples ({RECORDING})"
    if len(silent) == len(runs):
        shown = "; ".join(info.title for info in FIGURES.values() if info.from_recording)
        page.section(
            "samples",
            "Samples and weights",
            note(
                f"{without}: {names}. Detectron2's own detectors record none; swn_d2's do, where "
                "RECORDING.PERIOD is greater than 0. With MODEL.SAMPLE_WEIGHTER.NAME Uniform they "
                f"train as Detectron2's own, and this page shows, beside the mean weights: {shown}."
            ),
        )
        return
    html = [
        note(
            f"{without}, and so not in the figures from here on: {names}. Detectron2's own "
            "detectors record none."
        )
        for _ in silent[:1]
    ]
    try:
        figures = curves.draw_weights(runs)
        how = (
            "Mean and, shaded, standard deviation of what the losses are multiplied by, in the "
            "batches that were logged; dashed, the mean as a network predicted it. Positives of "
            "each task; for classification, positives (cls_fg) and negatives (cls_bg), and what "
            "multiplies the part of it that asks which class an object has (label)."
        )
        html += [_how(how), legend, _panels(page, figures)]
    except UserError as error:
        html.append(note(str(error)))
    page.section("weights-curves", "Mean weights", *html)
    for name, info in FIGURES.items():
        if info.from_recording:
            page.section(f"figure-{name}", info.title, *_figure(page, runs, info))


def _how(sentences: str) -> str:
    """How to read what follows."""
    return f'<p class="how">{text(sentences)}</p>'


def _panels(page: Page, figures: Mapping[str, "Figure"]) -> str:
    panels = "\n".join(page.svg(figure, f"{name} of each run") for name, figure in figures.items())
    return f'<div class="panels">{panels}</div>'


def _figure(page: Page, runs: Sequence[RunFolder], info: FigureInfo) -> list[str]:
    """A figure, and a sentence for whatever keeps it from being one of all runs."""
    figures, sentences = _drawn(info, runs)
    # What is wrong with a recording stands in the run's card: here, nothing was weighted.
    as_html = note if info.from_recording else missing
    html = [as_html(sentence) for sentence in dict.fromkeys(sentences)]
    if figures:
        svgs = [scrolling(page.svg(figure, info.title), info.title) for figure in figures]
        caption = f"<figcaption>{text(info.caption)}</figcaption>"
        html += ["<figure>", *svgs, caption, "</figure>"]
    return html


def _drawn(info: FigureInfo, runs: Sequence[RunFolder]) -> tuple[list["Figure"], list[str]]:
    """A figure of the runs that have what it needs, or, if they can't be in one, one of each; and
    why."""
    try:
        return [info.draw(runs)], []
    except UserError as error:
        sentences = [str(error)]
    recorded = [run for run in runs if run.has_recording]
    if info.from_recording and len(recorded) < len(runs):
        return _drawn(info, recorded)  # of the others it is known
    if len(runs) == 1:
        return [], sentences
    able, figures = [], []
    for run in runs:
        of_run, reasons = _drawn(info, [run])
        able += [run] * len(of_run)
        figures += of_run
        sentences += reasons
    if 1 < len(able) < len(runs):
        figures, reasons = _drawn(info, able)
        sentences += reasons
    return figures, sentences


# Config, versions, machine


def _config(runs: Sequence[RunFolder]) -> list[str]:
    known = [run for run in runs if run.cfg is not None]
    if not known:
        return [missing("No run has a config that can be read.")]
    configs = [flat_config(run.cfg) for run in known]
    keys = [key for key in configs[0] if key != "OUTPUT_DIR"]
    if len(known) > 1:
        how = "The keys of the config in which the runs differ."
        keys = [key for key in keys if any(c[key] != configs[0][key] for c in configs)]
        if not keys:
            return ["<p>The configs of the runs are the same.</p>"]
    else:
        how = "What was trained, how samples were weighted, and the schedule."
        own = _keys_of(_weighter(known[0].cfg))
        keys = [key for key in keys if _TELLING_KEYS.fullmatch(key) or key.startswith(own)]
    rows = [[_breakable(key), *(f"<code>{text(c[key])}</code>" for c in configs)] for key in keys]
    head = ["Key", *(text(run.name) for run in known)]
    return [f'<p class="how">{how}</p>', table(head, rows, "Config", kind="texts")]


def _keys_of(weighter: str) -> tuple[str, ...]:
    """What the config keys of a sample weighter begin with."""
    if not weighter:
        return ()
    group = "MODEL.SAMPLE_WEIGHTER."
    own = ("SOLVER.SWN.",) if weighter == "SWN" else ()
    return f"{group}NAME", f"{group}CLASS_WEIGHTS", section_of(weighter), *own


def _breakable(key: str) -> str:
    """A config key that a narrow window breaks after its dots and underscores."""
    return "<code>" + re.sub("([._])", r"\1<wbr>", text(key)) + "</code>"


def _machine(runs: Sequence[RunFolder]) -> list[str]:
    facts = [_facts(run) for run in runs]
    names = dict.fromkeys(name for of_run in facts for name in of_run)
    rows = [[text(name), *(text(of_run.get(name, "–")) for of_run in facts)] for name in names]
    head = ["", *(text(run.name) for run in runs)]
    html = [table(head, rows, "Speed, versions and machine", kind="texts")] if rows else []
    return html + [
        missing(run.problems["environment"]) for run in runs if "environment" in run.problems
    ]


def _facts(run: RunFolder) -> dict[str, str]:
    facts = {}
    x, seconds = curves.series(run.metrics, "time")
    if len(x):
        facts["Iterations per second, median"] = f"{1 / np.median(seconds):.3g}"
        # Each line's time stands for the iterations since the line before.
        facts["Training, without evaluations"] = duration(np.diff(x, prepend=0) @ seconds)
    memory = _peak_memory(run)
    if memory:
        facts["GPU memory, peak"] = memory
    environment = run.environment
    for name, version in environment.get("versions", {}).items():
        facts[name] = version
    if environment.get("commit"):
        facts["Commit of swn_d2"] = environment["commit"]
    if environment:
        processes, device = environment.get("processes", 1), environment.get("device", "")
        facts["Machine"] = environment.get("machine", "–")
        facts["Processes"] = f"{processes} on the {'CPU' if device == 'cpu' else 'GPU'}"
    return facts


def _peak_memory(run: RunFolder) -> str:
    """From the log, since it is not in metrics.json; "" on the CPU."""
    try:
        log = (run.path / "log.txt").read_text(errors="replace")
    except OSError:
        return ""
    found = re.findall(r"max_mem: (\d+)M", log)
    return f"{max(map(int, found)):,} MiB" if found else ""
