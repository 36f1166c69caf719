"""The tables and the plot."""

import csv

import numpy as np
import pytest
from PIL import Image

from swn_d2 import UserError
from swn_d2.experiments import collect, load_matrix, records, write_results
from swn_d2.experiments.plot import draw_rows
from swn_d2.experiments.summary import Summary, paired_difference

CONTEXT = {"machine": "2 cores", "versions": {"torch": "2"}, "commit": "abc", "jobs": 2}
APS = {("plain", 1): 50.0, ("plain", 2): 52.0, ("lambda 0.1", 1): 51.0, ("lambda 0.1", 2): 55.0}


def finish(matrix, aps):
    """Leave a result for every run that ``aps`` has."""
    for run in matrix.runs:
        if (run.row, run.seed) in aps:
            ap = aps[run.row, run.seed]
            run.folder.mkdir(parents=True)
            records.write_start(run)
            metrics = {"bbox/AP": ap, "bbox/APl": None if ap else 0.0}
            records.write_result(run, metrics, 60.0, CONTEXT)


@pytest.fixture
def matrix(write_matrix):
    return load_matrix(write_matrix())


def read_csv(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_table(matrix):
    finish(matrix, APS)
    text = write_results(matrix, collect(matrix), "python tool.py matrix.yaml")
    assert text == (matrix.output / "results.md").read_text()
    # Differences 1 and 3: mean 2, and half an interval of 12.706.
    assert "| plain | 2 | 51.00 ± 1.41 | – |\n" in text
    assert "| lambda 0.1 | 2 | 53.00 ± 2.83 | +2.00 [−10.71, +14.71] |\n" in text
    assert "```bash\npython tool.py matrix.yaml\n```" in text
    assert "- 4 runs, 4 min in sum, 2 at a time\n- machine: 2 cores\n" in text
    assert "- versions: torch 2\n- commit: abc\n" in text
    assert "Missing" not in text and "detected" not in text and "checkpoint" not in text

    plain, other = read_csv(matrix.output / "results.csv")
    assert (plain["mean"], plain["std"], plain["difference"]) == ("51.0000", "1.4142", "")
    assert (other["row"], other["metric"], other["seeds"]) == ("lambda 0.1", "bbox/AP", "2")
    assert (other["difference"], other["pairs"]) == ("2.0000", "2")
    assert (other["low"], other["high"]) == ("-10.7062", "14.7062")
    runs = read_csv(matrix.output / "runs.csv")
    assert [(run["row"], int(run["seed"])) for run in runs] == [
        (run.row, run.seed) for run in matrix.runs
    ]
    assert [float(run["bbox/AP"]) for run in runs] == [
        APS[run.row, run.seed] for run in matrix.runs
    ]
    assert runs[0]["machine"] == "2 cores" and runs[0]["seconds"] == "60.0000"


def test_missing_seeds_are_gathered(matrix):
    finish(matrix, {("plain", 1): 50.0})
    text = write_results(matrix, collect(matrix), "command")
    assert "Missing: plain, seed 2; lambda 0.1, seeds 1, 2." in text


def test_a_row_that_is_called_otherwise_now(matrix, write_matrix, config_file):
    """Its folder is the same, and so are its runs."""
    finish(matrix, APS)
    rows = {name: {"config": str(config_file)} for name in ("plain", "lambda, 0.1")}
    rows["lambda, 0.1"]["overrides"] = {"MODEL.SWN.LAMBDA_BOX": 0.1}
    renamed = load_matrix(write_matrix(rows=rows))
    text = write_results(renamed, collect(renamed), "command")
    assert "| lambda, 0.1 | 2 | 53.00 ± 2.83 | +2.00" in text and "Missing" not in text
    runs = read_csv(renamed.output / "runs.csv")
    assert [run["row"] for run in runs] == ["plain", "lambda, 0.1"] * 2


def test_what_is_missing_is_said(matrix):
    finish(matrix, {("plain", 1): 50.0, ("plain", 2): 52.0, ("lambda 0.1", 2): 53.5})
    text = write_results(matrix, collect(matrix), "command")
    # The difference to the baseline of the same seed, without an interval.
    assert "| lambda 0.1 | 1 (not all) | 53.50 | +1.50 |" in text
    assert "Missing: lambda 0.1, seed 1." in text
    _, other = read_csv(matrix.output / "results.csv")
    assert (other["std"], other["difference"], other["low"]) == ("", "1.5000", "")


def test_nothing_detected_counts_as_zero_and_is_said(matrix):
    finish(matrix, {**APS, ("lambda 0.1", 2): 0.0})
    text = write_results(matrix, collect(matrix), "command")
    assert "| lambda 0.1 | 2 | 25.50 ± 36.06 | −25.50 [" in text
    assert "Nothing right was detected, which counts as 0: lambda 0.1, seed 2." in text


def test_an_undefined_metric_is_no_number(write_matrix):
    matrix = load_matrix(write_matrix(metrics=["bbox/AP", "bbox/APl"]))
    finish(matrix, APS)
    text = write_results(matrix, collect(matrix), "command")
    assert "| plain | 2 | 51.00 ± 1.41 | – | – | – |" in text
    assert "Not defined" not in text and "Nothing right" not in text  # by the data


def test_a_metric_that_only_some_runs_have(write_matrix):
    matrix = load_matrix(write_matrix(metrics=["bbox/AP", "bbox/APl"]))
    finish(matrix, {**APS, ("lambda 0.1", 2): 0.0})  # whose APl is 0
    text = write_results(matrix, collect(matrix), "command")
    runs = "plain, seed 1; bbox/APl of lambda 0.1, seed 1; bbox/APl of plain, seed 2"
    assert f"Not defined, and in no mean, difference or interval: bbox/APl of {runs}." in text


def test_the_common_checkpoint_is_mentioned(write_matrix, config_file):
    matrix = load_matrix(write_matrix(checkpoint={"config": str(config_file)}))
    finish(matrix, {**APS, ("checkpoint", 1): 40.0, ("checkpoint", 2): 42.0})
    text = write_results(matrix, collect(matrix), "command")
    assert "checkpoint of its seed, of bbox/AP 41.00 ± 1.41" in text
    assert "| checkpoint |" not in text


def test_no_results_or_not_the_metric(write_matrix):
    matrix = load_matrix(write_matrix())
    with pytest.raises(UserError, match="has no results yet"):
        write_results(matrix, collect(matrix), "command")
    finish(matrix, APS)
    matrix = load_matrix(write_matrix(metrics=["voc/AP"]))
    with pytest.raises(UserError, match="plain, seed 1 has no metric voc/AP, but bbox/AP, bbox/"):
        write_results(matrix, collect(matrix), "command")


def test_plot(write_matrix, config_file):
    """Transparent, with a mark on every row that has results, and the collapsed row at its edge."""
    rows = {name: {"config": str(config_file)} for name in ("plain", "good", "collapsed", "none")}
    matrix = load_matrix(write_matrix(rows=rows))
    values = {"plain": 50.0, "good": 52.0, "collapsed": 1.0}
    finish(matrix, {(row, seed): ap + seed for row, ap in values.items() for seed in (1, 2)})
    write_results(matrix, collect(matrix), "command")
    picture = np.asarray(Image.open(matrix.output / "results.png"))
    assert picture.shape[2] == 4 and picture[0, 0, 3] == 0
    orange = (np.abs(picture.astype(int) - [0xE0, 0x75, 0x2D, 0xFF]) < 8).all(axis=2)
    # The rows lie between the legend and the axes' labels; those at the top come first.
    rows_with_marks = np.flatnonzero(orange[100:].any(axis=1))
    groups = 1 + (np.diff(rows_with_marks) > 10).sum()
    assert groups == 3
    # The axis is not stretched to the collapsed row: the marks of the others are far apart.
    middle = orange[100 : rows_with_marks.max() + 100]
    assert middle.any(axis=0).sum() > 0.3 * picture.shape[1]


def test_rows_that_have_not_run_are_not_drawn():
    rows = [
        Summary("plain", "bbox/AP", {1: 50.0}, None),
        Summary("later", "bbox/AP", {}, None),
        Summary("good", "bbox/AP", {1: 51.0}, None),
    ]
    labels = [text.get_text() for text in draw_rows(rows, "plain").axes[0].get_yticklabels()]
    assert labels == ["plain", "good"]
    assert len(draw_rows(rows[1:2], "plain").axes[0].get_yticklabels()) == 1


def drawn(**rows):
    """The two axes of rows' plots: limits, where means are by row, and texts."""
    values = {name: dict(enumerate(of_row)) for name, of_row in rows.items()}
    baseline = values[first := next(iter(values))]
    figure = draw_rows(
        [
            Summary(k, "bbox/AP", v, None if k == first else paired_difference(v, baseline))
            for k, v in values.items()
        ],
        first,
    )
    for axes in figure.axes:
        means = {}
        for container in axes.containers:
            if len(point := container.lines[0].get_xydata()):
                means[list(rows)[int(point[0, 1])]] = point[0, 0]
        yield axes.get_xlim(), means, [text.get_text() for text in axes.texts]


def test_a_plot_of_small_values_shows_every_row_on_an_axis_from_0():
    (limits, means, texts), (_, differences, _) = drawn(none=[2.0, 3.5], half=[1.0, 1.2])
    assert limits[0] == 0 and limits[1] > 3.5  # though the intervals reach below
    assert means == pytest.approx({"none": 2.75, "half": 1.1}) and texts == []
    assert differences == pytest.approx({"half": -1.65})
    assert all(limits[1] <= 100 for limits, *_ in drawn(none=[99.0, 60.0]))


def test_only_a_row_that_collapsed_beyond_the_axes_is_a_number():
    (limits, means, texts), (_, differences, others) = drawn(none=[50.0], good=[52.0], bad=[1.0])
    assert limits[0] > 49 and "bad" not in means and texts == ["◂ 1.0"]
    assert "bad" not in differences and others == ["◂ −49.0"]
    # With intervals that reach as far it is where it belongs.
    (_, means, texts), (_, differences, others) = drawn(none=[40.0, 60.0], bad=[0.0, 2.0])
    assert means["bad"] == 1 and texts == [] and others == ["◂ −49.0"]


def test_the_name_of_a_long_baseline_is_not_cut_off():
    name = "audit before training, relabelled"
    values = {1: 50.0, 2: 51.0}
    figure = draw_rows(
        [
            Summary(name, "bbox/AP", values, None),
            Summary("other", "bbox/AP", values, paired_difference(values, values)),
        ],
        name,
    )
    figure.draw_without_rendering()
    label = figure.axes[1].xaxis.label.get_window_extent()
    assert figure.bbox.x0 <= label.x0 and label.x1 <= figure.bbox.x1
