"""The table of a matrix, in Markdown and CSV."""

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import UserError
from ..files import write_text
from ..shell import duration
from .known import Known, fingerprints, take_stock, versions_text
from .matrix import CHECKPOINT, Matrix
from .plot import plot_rows
from .summary import Difference, Summary, paired_difference

__all__ = ["collect", "summarize", "write_results"]

#: (row, seed) -> what :func:`swn_d2.experiments.records.write_result` wrote.
Results = Mapping[tuple[str, int], Mapping[str, Any]]


def collect(matrix: Matrix, known: Known | None = None) -> Results:
    """The results that are there, in the output folder or among the runs known of elsewhere.

    Raises:
        UserError: the output folder holds other runs than the matrix says.
    """
    results, _ = take_stock(matrix, known)
    # Not by what a result calls its row: that may have another name by now.
    return {(run.row, run.seed): results[run.name] for run in matrix.runs if run.name in results}


def summarize(matrix: Matrix, results: Results, row: str, metric: str) -> Summary:
    """A row of the matrix, or its checkpoint, in one metric."""
    values = _values(results, row, metric)
    if row in (matrix.baseline, CHECKPOINT):
        return Summary(row, metric, values, None)
    baseline = _values(results, matrix.baseline, metric)
    return Summary(row, metric, values, paired_difference(values, baseline))


def write_results(matrix: Matrix, results: Results, command: str) -> str:
    """Write results.md, results.csv, runs.csv and results.png into the matrix's output folder.

    Args:
        command: that makes them again.

    Returns:
        The content of results.md.

    Raises:
        UserError: there are no results yet, or they lack a metric.
    """
    if not results:
        raise UserError(f"{matrix.output} has no results yet.")
    for (row, seed), result in results.items():
        for metric in matrix.metrics:
            if metric not in result["metrics"]:
                given = ", ".join(result["metrics"])
                raise UserError(f"{row}, seed {seed} has no metric {metric}, but {given}.")
    summaries = [
        [summarize(matrix, results, row, metric) for metric in matrix.metrics]
        for row in matrix.rows
    ]
    text = _markdown(matrix, results, summaries, command)
    write_text(matrix.output / "results.md", text)
    write_text(matrix.output / "results.csv", _rows_csv(summaries))
    write_text(matrix.output / "runs.csv", _runs_csv(matrix, results))
    plot_rows([of_row[0] for of_row in summaries], matrix.baseline, matrix.output / "results.png")
    return text


def _values(results: Results, row: str, metric: str) -> dict[int, float]:
    return {
        seed: result["metrics"][metric]
        for (of_row, seed), result in results.items()
        if of_row == row and result["metrics"].get(metric) is not None
    }


def _markdown(matrix, results, summaries, command) -> str:
    head, rule = ["row", "seeds"], ["---", "--:"]
    for metric in matrix.metrics:
        head += [metric, f"difference to {matrix.baseline}"]
        rule += ["--:", "--:"]
    lines = [f"# {matrix.title}", "", _table_line(head), _table_line(rule)]
    for of_row in summaries:
        seeds = sum(1 for row, _ in results if row == of_row[0].row)
        cells = [of_row[0].row, f"{seeds}" + ("" if seeds == len(matrix.seeds) else " (not all)")]
        for summary in of_row:
            cells += [_mean(summary), _difference(summary.difference)]
        lines.append(_table_line(cells))
    seeds = ", ".join(map(str, matrix.seeds))
    lines += [
        "",
        f"In percent: mean ± standard deviation over the seeds {seeds}, and the mean difference to "
        f"`{matrix.baseline}`,",
        "paired by seed, with its 95 % interval (Student's t; none for a single seed). One in "
        "twenty such",
        "intervals misses the true difference by chance.",
    ]
    lines += _notes(matrix, results)
    lines += [
        "",
        f"![{matrix.metrics[0]} of every row](results.png)",
        "",
        "Made by",
        "",
        "```bash",
        command,
        "```",
        "",
        *_circumstances(results),
    ]
    return "\n".join(lines) + "\n"


def _notes(matrix: Matrix, results: Results) -> Iterable[str]:
    first = matrix.metrics[0]
    if any(row == CHECKPOINT for row, _ in results):
        start = summarize(matrix, results, CHECKPOINT, first)
        yield ""
        yield f"Every row starts from a common checkpoint of its seed, of {first} {_mean(start)}."

    def is_defined(metric: str) -> bool:
        return any(result["metrics"][metric] is not None for result in results.values())

    metrics = list(filter(is_defined, matrix.metrics))  # the others are so by the data
    nothing, undefined = [], []
    for (row, seed), result in results.items():
        values = [value for value in result["metrics"].values() if value is not None]
        if values and not any(values):
            nothing.append(f"{row}, seed {seed}")
        if lacking := [metric for metric in metrics if result["metrics"][metric] is None]:
            undefined.append(f"{', '.join(lacking)} of {row}, seed {seed}")
    if nothing:
        yield ""
        yield f"Nothing right was detected, which counts as 0: {'; '.join(nothing)}."
    if undefined:
        yield ""
        yield f"Not defined, and in no mean, difference or interval: {'; '.join(undefined)}."
    missing = []
    for row in dict.fromkeys(run.row for run in matrix.runs):
        seeds = [str(seed) for seed in matrix.seeds if (row, seed) not in results]
        if seeds:
            missing.append(f"{row}, seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}")
    if missing:
        yield ""
        yield f"**Not complete.** Missing: {'; '.join(missing)}."


def _circumstances(results: Results) -> Iterable[str]:
    def different(values: Iterable[str]) -> str:
        return "; or ".join(dict.fromkeys(values))

    seconds = [result["seconds"] for result in results.values()]
    yield (
        f"- {len(seconds)} runs, {duration(sum(seconds))} in sum, "
        + different(f"{result['jobs']} at a time" for result in results.values())
    )
    yield "- machine: " + different(result["machine"] for result in results.values())
    yield "- versions: " + different(
        versions_text(result["versions"]) for result in results.values()
    )
    yield "- commit: " + different(result["commit"] or "unknown" for result in results.values())


def _table_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _mean(summary: Summary) -> str:
    if summary.mean is None:
        return "–"
    return f"{summary.mean:.2f}" + (f" ± {summary.std:.2f}" if summary.std is not None else "")


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    text = _signed(difference.mean)
    if difference.half_width is None:
        return text
    low = _signed(difference.mean - difference.half_width)
    high = _signed(difference.mean + difference.half_width)
    return f"{text} [{low}, {high}]"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _rows_csv(summaries: list[list[Summary]]) -> str:
    lines = []
    for summary in (summary for of_row in summaries for summary in of_row):
        difference = summary.difference
        width = difference and difference.half_width
        lines.append(
            {
                "row": summary.row,
                "metric": summary.metric,
                "seeds": len(summary.values),
                "mean": summary.mean,
                "std": summary.std,
                "difference": difference and difference.mean,
                "low": None if width is None else difference.mean - width,
                "high": None if width is None else difference.mean + width,
                "pairs": difference and difference.pairs,
            }
        )
    return _csv(lines)


def _runs_csv(matrix: Matrix, results: Results) -> str:
    lines = []
    settings = fingerprints(matrix)
    for run in matrix.runs:
        result = results.get((run.row, run.seed))
        if result is None:
            continue
        lines.append(
            {
                "row": run.row,
                "seed": run.seed,
                "config": run.config,
                **{metric: result["metrics"][metric] for metric in matrix.metrics},
                **{
                    key: result[key]
                    for key in ("iterations", "iterations_per_second", "seconds", "jobs")
                },
                **{key: result[key] for key in ("finished", "machine", "commit")},
                "versions": versions_text(result["versions"]),
                "settings": settings[run.name],
            }
        )
    return _csv(lines)


def _csv(lines: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        # Four decimals, as Detectron2 prints them.
        writer.writerow({key: f"{v:.4f}" if isinstance(v, float) else v for key, v in line.items()})
    return text.getvalue()
