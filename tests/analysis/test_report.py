"""The report on real, short trainings, on folders with gaps, and in a real browser."""

import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from swn_d2.analysis import curves, report
from swn_d2.analysis.figures import FIGURES
from swn_d2.analysis.report import write_report
from swn_d2.analysis.run_folder import RunFolder, open_runs
from swn_d2.data import make_digit_scenes, register_coco
from swn_d2.engine import SWNTrainer
from swn_d2.engine.best import read_best
from swn_d2.engine.start import EVALUATION_CONFIG, EVALUATION_METRICS, note_evaluation
from swn_d2.errors import UserError
from swn_d2.recording import RECORDING
from tests.analysis.samples import run_folder
from tests.browser import Browser, find_browser
from tests.tiny import tiny_config

ITERATIONS = 24
VOID = {"meta", "link", "br", "wbr", "img"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders of a baseline and of a training with SWN."""
    root = tmp_path_factory.mktemp("runs")
    make_digit_scenes(root / "digits", num_train=8, num_val=4, image_size=(96, 64))
    for split in ("train", "val"):
        annotations = root / "digits" / "annotations" / f"instances_{split}.json"
        register_coco(f"report_{split}", str(annotations), str(root / "digits" / split))
    folders = []
    for name, weighter in (("base", "Uniform"), ("learned", "SWN")):
        folder = root / name
        folder.mkdir()
        cfg = tiny_config(
            *("OUTPUT_DIR", str(folder)),
            *("DATASETS.TRAIN", ("report_train",)),
            *("DATASETS.TEST", ("report_val",)),
            *("MODEL.ROI_HEADS.NUM_CLASSES", 10),
            *("MODEL.SAMPLE_WEIGHTER.NAME", weighter),
            *("INPUT.MIN_SIZE_TRAIN", (64,)),
            *("INPUT.MIN_SIZE_TEST", 64),
            *("DATALOADER.NUM_WORKERS", 0),
            *("SOLVER.IMS_PER_BATCH", 2),
            *("SOLVER.MAX_ITER", ITERATIONS),
            *("SOLVER.STEPS", ()),
            *("TEST.EVAL_PERIOD", ITERATIONS // 2),
            *("RECORDING.PERIOD", 4),
        )
        (folder / "config.yaml").write_text(cfg.dump())
        torch.manual_seed(0)
        trainer = SWNTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    """The report on both."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_report(open_runs(trained), file)
    return file


@pytest.fixture
def one_figure(monkeypatch):
    """Draw only one of the figures, to save time where they do not matter."""
    monkeypatch.setattr(report, "FIGURES", {"weights": FIGURES["weights"]})


class Reader(HTMLParser):
    """Texts, tables and whatever a page must not have."""

    def __init__(self, file):
        super().__init__()
        self.open, self.ids, self.references, self.faults = [], [], [], []
        self.texts, self.cells = [], {}
        self.svgs = 0
        self.feed(file.read_text())
        self.close()
        self.faults += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        self._note(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.row = []
        if tag in ("th", "td"):
            self.row.append("")

    def handle_startendtag(self, tag, attributes):
        self._note(tag, attributes)

    def _note(self, tag, attributes):
        self.svgs += tag == "svg"
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
                self.references.append(value)
            self._note_style(value or "")
        if tag == "script":
            self.faults.append("a script")

    def _note_style(self, text):
        self.references += re.findall(r"url\(\s*['\"]?([^)'\"]*)", text)
        if "@import" in text:
            self.faults.append("@import")

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")
        if tag == "tr":
            self.cells.setdefault(self.row[0], self.row[1:])

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self._note_style(data)
            return
        self.texts.append(data)
        if {"th", "td"} & set(self.open):
            self.row[-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def read(runs, folder):
    """The report on runs, as it was written and read again."""
    write_report(runs, folder / "report.html")
    return Reader(folder / "report.html")


def copy_of(folder, name, tmp_path):
    return shutil.copytree(folder, tmp_path / name)


def last_value(folder, key):
    rows = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return [row[key] for row in rows if key in row][-1]


def test_the_page_needs_nothing_but_itself(page):
    reader = Reader(page)
    assert reader.faults == []
    outside = [r for r in reader.references if not r.startswith(("#", "data:"))]
    assert outside == []
    inside = {r[1:] for r in reader.references if r.startswith("#")}
    assert len(reader.ids) == len(set(reader.ids))
    assert inside and inside <= set(reader.ids)
    # "AP" has 1 panel for each of 3 metrics, and every loss and the label and box weight 1.
    losses = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    assert losses | {"loss_swn_box", "bbox/AP75", "box", "label"} <= set(reader.texts)
    assert "total_loss" not in reader.texts
    assert reader.svgs == 3 + len(losses) + 2 + 2 + len(FIGURES)


def test_without_a_gap_there_is_no_note_of_one(page):
    assert 'class="missing"' not in page.read_text()


def test_both_runs_are_side_by_side(page, trained):
    reader = Reader(page)
    aps = [last_value(folder, "bbox/AP50") for folder in trained]
    row = reader.cells["AP50IoU 0.50"]
    assert row[0] == f"{aps[0]:.1f}"
    assert row[1].split()[0] == f"{aps[1]:.1f}"
    assert float(row[1].split()[1].replace("−", "-")) == pytest.approx(aps[1] - aps[0], abs=0.051)
    assert reader.cells["MODEL.SAMPLE_WEIGHTER.NAME"] == ["Uniform", "SWN"]
    assert "MODEL.META_ARCHITECTURE" not in reader.cells  # the same in both
    assert reader.cells["torch"] == [torch.__version__] * 2
    assert reader.cells["Processes"] == ["1 on the CPU"] * 2
    assert "cores of" in reader.cells["Machine"][0]
    assert float(reader.cells["Iterations per second, median"][1]) > 0
    for info in FIGURES.values():
        assert info.title in reader.texts and info.caption in reader.texts
    assert reader.text.count(f"{ITERATIONS} iterations of 2 images of report_train.") == 2


def test_one_run(trained, tmp_path, one_figure):
    reader = read([RunFolder(trained[1])], tmp_path)
    assert reader.cells["MODEL.SWN.STRENGTH"] == ["0.5"]
    assert reader.cells["SOLVER.MAX_ITER"] == [str(ITERATIONS)]
    assert not any("FOCALWEIGHTING" in key for key in reader.cells)


def test_an_empty_folder_beside_a_run(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    reader = read(open_runs([trained[1], tmp_path / "empty"]), tmp_path)
    assert reader.faults == []
    for what in ("config.yaml", "metrics.json", "checkpoint", "environment.json"):
        assert re.search(rf"{re.escape(str(tmp_path / 'empty'))}[^.]*{what}", reader.text), what
    assert (
        "recording of samples (samples.jsonl), and so not in the figures from here on: empty."
        in (reader.text)
    )
    assert reader.cells["AP50IoU 0.50"][1].strip() == "–"
    assert reader.svgs >= 3 + 5 + 1 + len(FIGURES)  # those of the run


def test_only_an_empty_folder(tmp_path):
    reader = read([RunFolder(tmp_path)], tmp_path)
    assert reader.faults == [] and reader.svgs == 0
    for sentence in ("No run was evaluated", "No run has logged a loss", "No run has a config"):
        assert sentence in reader.text


def test_a_half_written_run(trained, tmp_path):
    folder = copy_of(trained[0], "half", tmp_path)
    lines = (folder / "metrics.json").read_bytes().splitlines(keepends=True)
    (folder / "metrics.json").write_bytes(lines[0] + lines[1][:30])
    recorded = (folder / RECORDING).read_bytes()
    (folder / RECORDING).write_bytes(recorded[: len(recorded) * 2 // 3])
    (folder / "environment.json").write_text('{"versions": {')
    for name in ("last_checkpoint", "model_final.pth"):
        (folder / name).unlink()
    reader = read([RunFolder(folder)], tmp_path)
    assert reader.faults == []
    assert f"20 of {ITERATIONS} iterations of 2 images" in reader.text
    assert f"{folder} has no checkpoint." in reader.text
    assert f"{folder}/environment.json" in reader.text
    assert "No run was evaluated more than once" in reader.text
    assert "loss_cls" in reader.texts
    assert FIGURES["samples"].caption in reader.texts
    assert "weights of every task are 1" in reader.text  # in the place of the weights' figure
    assert reader.cells["MODEL.SAMPLE_WEIGHTER.NAME"] == ["Uniform"]
    assert "MODEL.SWN.STRENGTH" not in reader.cells


def test_what_another_version_wrote(trained, tmp_path, one_figure):
    folder = copy_of(trained[1], "other", tmp_path)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("EASE_IN:", "EASED_IN:"))
    recorded = (folder / RECORDING).read_text()
    (folder / RECORDING).write_text(recorded.replace('"version":1', '"version":2', 1))
    reader = read([RunFolder(folder)], tmp_path)
    assert "not one of this version" in reader.text and "EASED_IN" in reader.text
    assert "samples.jsonl is of version 2" in reader.text
    assert "loss_swn_box" in reader.texts
    assert reader.cells["AP50IoU 0.50"] == [f"{last_value(folder, 'bbox/AP50'):.1f}"]


def test_a_figure_that_only_some_runs_have_data_for(trained, page, tmp_path, monkeypatch):
    folder = copy_of(trained[0], "not evaluated", tmp_path)
    shutil.rmtree(folder / "inference")
    monkeypatch.setattr(report, "FIGURES", {"missed": FIGURES["missed"]})
    reader = read(open_runs([trained[1], folder]), tmp_path)
    assert f"{folder}/inference" in reader.text
    assert reader.svgs == Reader(page).svgs - len(FIGURES) + 1


def test_a_figure_of_runs_that_cannot_be_in_one(trained, page, tmp_path, monkeypatch):
    folder = copy_of(trained[0], "on others", tmp_path)
    config = (folder / EVALUATION_CONFIG).read_text()
    (folder / EVALUATION_CONFIG).write_text(config.replace("report_val", "report_train"))
    (folder / "inference" / "coco_instances_results.json").write_text("[]")
    monkeypatch.setattr(report, "FIGURES", {"missed": FIGURES["missed"]})
    reader = read(open_runs([trained[1], folder]), tmp_path)
    assert "learned was evaluated on report_val and on others on report_train" in reader.text
    assert reader.svgs == Reader(page).svgs - len(FIGURES) + 2
    assert "images of report_val," in reader.text and "images of report_train," in reader.text


def test_detectron2s_own_classes_have_no_weighter(tmp_path, one_figure):
    run = run_folder(tmp_path, [], "MODEL.ROI_HEADS.NAME", "StandardROIHeads")
    reader = read([run], tmp_path)
    assert "StandardROIHeads, no weights." in reader.text
    assert reader.cells["MODEL.ROI_HEADS.NAME"] == ["StandardROIHeads"]
    assert not any("SWN" in key or "SAMPLE_WEIGHTER" in key for key in reader.cells)


def test_whatever_files_say_is_text(trained, tmp_path, one_figure):
    name = "<b>$a^$ & \"c' --><i>"  # which is no formula, either
    folder = copy_of(trained[1], name, tmp_path)
    with open(folder / "metrics.json", "a") as metrics:
        row = {"iteration": ITERATIONS, "bbox/AP-<u>$x/y": 1.0, "loss_<s>": 1.0}
        metrics.write(json.dumps(row) + "\n")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("report_train", "</td><img src=x>"))
    note = json.loads((folder / "environment.json").read_text())
    note["machine"] = "<script>alert(1)</script>"
    (folder / "environment.json").write_text(json.dumps(note))
    reader = read(open_runs([trained[1], folder]), tmp_path)
    assert reader.faults == [] and "x" not in reader.references
    assert name in reader.texts and "loss_<s>" in reader.texts
    assert reader.cells["AP-<u>$x/y"][1].startswith("1.0")
    assert "AP of each class" in reader.text
    assert reader.cells["DATASETS.TRAIN"][1] == "['</td><img src=x>']"
    assert reader.cells["Machine"][1] == "<script>alert(1)</script>"


def test_speed_and_memory_are_those_that_were_logged(tmp_path):
    seconds = ((19, 1.0), (39, 0.5), (59, 0.5))
    rows = [{"iteration": i, "total_loss": 1.0, "time": time} for i, time in seconds]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "log.txt").write_text("iter: 19  max_mem: 1234M\niter: 39  max_mem: 999M\n")
    cells = read([RunFolder(tmp_path)], tmp_path).cells
    assert cells["Iterations per second, median"] == ["2"]
    assert cells["Training, without evaluations"] == ["40 s"]
    assert cells["GPU memory, peak"] == ["1,234 MiB"]


def test_a_page_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=f"cannot write {tmp_path}: "):
        write_report([RunFolder(tmp_path)], tmp_path)


def test_it_opens_in_a_browser(page, trained, tmp_path, one_figure):
    executable = find_browser()
    if executable is None:
        pytest.skip("no Chromium on the PATH or in the variable CHROMIUM to open the report with")
    names = [
        copy_of(folder, letter * 99, tmp_path) for folder, letter in zip(trained, "ab", strict=True)
    ]
    write_report(open_runs(names), tmp_path / "long.html")
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<!doctype html><title>bad</title><img src="http://127.0.0.1:1/x.png">'
        '<script>console.error("a mistake")</script><div style="width: 2000px">wide</div>'
    )
    width_of_page = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    with Browser(executable, tmp_path / "profile") as browser:
        browser.open(bad, width=390)  # what must not be is seen
        assert "http://127.0.0.1:1/x.png" in browser.requests
        assert any("a mistake" in complaint for complaint in browser.complaints)
        assert browser.evaluate(width_of_page) > 0
        browser.open(tmp_path / "long.html", width=1280)  # a name breaks anywhere
        assert browser.evaluate(width_of_page) == 0
        for width, dark in ((1280, False), (390, True)):
            browser.open(page, width=width, dark=dark)
            assert browser.complaints == []
            assert [r for r in browser.requests if not r.startswith("data:")] == []
            assert browser.evaluate(width_of_page) == 0  # what is too wide scrolls in its box
            assert browser.evaluate("document.querySelectorAll('.scroll').length") > 5
            channel = "parseInt(getComputedStyle(document.body).backgroundColor.slice(4))"
            assert (browser.evaluate(channel) < 128) == dark


# The numbers behind the curves and the table

ROWS = [
    {"iteration": 19, "total_loss": 3.0, "loss_cls": 2.0},
    {"iteration": 29, "bbox/AP": 10.0, "bbox/AP-cat": 1.0},
    {"iteration": 39, "total_loss": 1.0, "segm/AR@100": 5.0},
    {"iteration": 40, "bbox/AP": 20.0, "bbox/APl": math.nan},
]


def test_iterations_are_counted_as_done():
    assert curves.iterations_done(ROWS) == 40 and curves.iterations_done([]) == 0
    x, y = curves.series(ROWS, "bbox/AP")
    assert x.tolist() == [30, 40] and y.tolist() == [10, 20]
    assert [len(values) for values in curves.series(ROWS, "loss_mask")] == [0, 0]


def test_evaluations_are_the_last_of_each_metric():
    found = curves.evaluations(ROWS)
    assert math.isnan(found.pop("bbox/APl")[1])
    assert found == {"bbox/AP": (40, 20.0), "bbox/AP-cat": (30, 1.0), "segm/AR@100": (40, 5.0)}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("bbox/AP50", ("bbox", "AP50")),
        ("a set/segm/AR@100", ("a set/segm", "AR@100")),
        ("bbox/AP-cup/mug", ("bbox", "AP-cup/mug")),
        ("a set/bbox/AP-AP/x", ("a set/bbox", "AP-AP/x")),
        ("bbox/AP-a/AP", ("bbox", "AP-a/AP")),
        ("weights/box_mean", None),
        ("AP", None),
    ],
)
def test_what_is_a_metric(key, expected):
    assert curves.task_and_name(key) == expected


def test_smoothing():
    few = np.array([1.0, 5.0, 2.0])
    assert curves.smooth(few) is few and len(curves.smooth(np.zeros(0))) == 0
    values = np.random.default_rng(0).normal(size=120)  # means over 7
    smoothed = curves.smooth(values)
    assert smoothed[60] == pytest.approx(values[57:64].mean())
    assert smoothed[0] == pytest.approx(values[:4].mean())
    assert smoothed[-1] == pytest.approx(values[-4:].mean())


def test_classes_are_sorted_by_what_the_second_run_gains(trained, tmp_path, one_figure):
    folders = [copy_of(trained[0], name, tmp_path) for name in "ab"]
    for folder, aps in zip(folders, ((1, 2, 3), (1, 4, 2)), strict=True):
        with open(folder / "metrics.json", "a") as metrics:
            row = {f"bbox/AP-{name}": ap for name, ap in zip("xyz", aps, strict=True)}
            metrics.write(json.dumps({"iteration": ITERATIONS, **row}) + "\n")
    for runs, order in ((folders, "yxz"), (folders[:1], "zyx")):
        names = [name for name in read(open_runs(runs), tmp_path).cells if name[:3] == "AP-"]
        assert [name for name in names if name[3:] in "xyz"] == [f"AP-{name}" for name in order]
        # What is not defined, here of digits, comes last, and the sentence says what the order is.
    assert "AP of each class, the highest first" in (tmp_path / "report.html").read_text()


def test_an_evaluation_by_itself_is_told(trained, tmp_path, one_figure):
    folder = copy_of(trained[1], "learned", tmp_path)
    cfg = RunFolder(folder).cfg
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST, cfg.OUTPUT_DIR = 0.25, str(folder)
    (folder / EVALUATION_CONFIG).write_text(cfg.dump())
    note_evaluation(cfg, {"bbox": {"AP": 12.5}})
    text = read([RunFolder(folder)], tmp_path).text
    told = "is of an evaluation by itself, with MODEL.ROI_HEADS.NMS_THRESH_TEST 0.25, whose AP is "
    assert f"{told}in {EVALUATION_METRICS}." in text
    assert "evaluation by itself" not in read([RunFolder(trained[1])], tmp_path).text


def test_the_best_detector_is_named(trained, tmp_path, one_figure):
    best = read_best(trained[0])
    reader = read([RunFolder(trained[0])], tmp_path)
    assert (
        f"Best of its evaluations: {best.value:.1f} bbox/AP after {best.iteration + 1} iterations, "
        "kept as model_best.pth." in reader.text
    )


@pytest.fixture(scope="module")
def plain(trained, tmp_path_factory):
    """The folder of a baseline of Detectron2's own classes, which record nothing."""
    folder = tmp_path_factory.mktemp("plain") / "plain"
    shutil.copytree(trained[0], folder, ignore=shutil.ignore_patterns("samples.jsonl"))
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("SWNROIHeads", "StandardROIHeads"))
    return folder


@pytest.fixture
def two_figures(monkeypatch):
    """One of an evaluation, and one of a recording."""
    names = ("confusions", "iou_shares")
    monkeypatch.setattr(report, "FIGURES", {name: FIGURES[name] for name in names})


def test_a_plain_baseline_has_a_page_without_complaints(plain, tmp_path, two_figures):
    reader = read([RunFolder(plain)], tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert 'class="missing"' not in text and text.count('class="note"') == 1
    assert "Without a recording of samples (samples.jsonl): plain. Detectron2's own" in reader.text
    assert FIGURES["confusions"].caption in reader.texts
    assert FIGURES["iou_shares"].caption not in reader.texts
    assert FIGURES["iou_shares"].title in reader.text  # what there would be


def test_a_plain_baseline_beside_another_run(plain, trained, tmp_path, two_figures):
    reader = read(open_runs([plain, trained[1]]), tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert 'class="missing"' not in text and text.count('class="note"') == 1
    assert "and so not in the figures from here on: plain." in reader.text
    for name in ("confusions", "iou_shares"):
        assert FIGURES[name].caption in reader.texts
    # What only looks comparable is apart.
    together, apart = reader.text.split("Not to be compared")
    assert "loss_rpn_cls" in together and "loss_box_reg" not in together
    assert "loss_box_reg" in apart and "loss_swn_box" in apart and "loss_cls" not in apart


def drawn(figure):
    """The curves of a panel as lists of points."""
    return [line.get_xydata().tolist() for line in figure.axes[0].get_lines()]


class Logged:
    """A run of which only this was logged."""

    name = "run"

    def __init__(self, *rows):
        self.metrics = rows


def test_curves_are_what_was_logged():
    scalars = ("weights/box_mean", 2.0), ("weights/box_std", 0.5), ("swn/box_mean", 3.0)
    rows = [
        {
            **{"iteration": i, "total_loss": 9.0, "loss_cls": float(i)},
            **{f"stage1/{key}": v for key, v in scalars},
        }
        for i in (19, 39)
    ]
    panels = curves.draw_losses([Logged(*rows), Logged(rows[1])])
    assert list(panels) == ["loss_cls"]
    first, _, second, _ = drawn(panels["loss_cls"])
    assert first == [[20, 19], [40, 39]] and second == [[40, 39]]
    panels = curves.draw_weights([Logged(*rows)])
    assert list(panels) == ["stage1/box"]
    assert drawn(panels["stage1/box"]) == [[[20, 2], [40, 2]], [[20, 3], [40, 3]]]
    band = panels["stage1/box"].axes[0].collections[0].get_paths()[0].vertices
    assert set(band[:, 1]) == {1.5, 2.5}
    assert not panels["stage1/box"].axes[0].yaxis.get_major_formatter().get_useOffset()
    panels = curves.draw_aps([Logged(*ROWS, {"iteration": 50, "bbox/AP-a/AP": 1.0}), Logged()])
    assert list(panels) == ["bbox/AP"]
    assert drawn(panels["bbox/AP"])[0] == [[30, 10], [40, 20]]


def test_which_losses_cannot_be_compared():
    losses = ("loss_cls_stage0", "loss_box_reg_stage0", "loss_mask", "loss_rpn_cls", "loss_swn_box")
    row = {"iteration": 19, "total_loss": 1.0, **dict.fromkeys(losses, 1.0)}
    assert curves.weighted_losses(Logged(row)) == {"loss_swn_box"}
    row |= {"stage0/weights/cls_fg_mean": 2.0, "weights/mask_mean": 1.0, "weights/mask_std": 0.1}
    row |= {"weights/box_mean": 1.0, "weights/box_std": 0.0}  # which is no weighting
    assert curves.weighted_losses(Logged(row)) == {"loss_swn_box", "loss_cls_stage0", "loss_mask"}
    row = {"loss_cls": 1.0, "loss_box_reg": 1.0}
    row |= {"weights/label_mean": 1.0, "weights/label_std": 0.3}
    row |= {"weights/box_mean": 0.0, "weights/box_std": 0.0}  # of no samples
    assert curves.weighted_losses(Logged(row)) == {"loss_cls"}


def test_a_long_curve_is_thinned_to_means():
    rows = [{"iteration": i, "total_loss": 9.0, "loss_cls": float(i % 2)} for i in range(1000)]
    panel = curves.draw_losses([Logged(*rows)])["loss_cls"]
    points = np.array(drawn(panel)[0])
    assert len(points) == 500 and (points[:, 1] == 0.5).all()
    assert points[0, 0] == 1.5 and points[-1, 0] == 999.5


def test_a_run_that_was_only_evaluated_by_itself(trained, tmp_path, one_figure):
    folder = copy_of(trained[1], "evaluated", tmp_path)
    (folder / "metrics.json").unlink()
    (folder / EVALUATION_CONFIG).write_text(RunFolder(folder).cfg.dump())
    cfg = RunFolder(folder).cfg.clone()
    cfg.OUTPUT_DIR = str(folder)
    note_evaluation(cfg, {"bbox": {"AP": 12.5, "AP50": float("nan")}})
    page = read([RunFolder(folder)], tmp_path)
    assert "an evaluation by itself" in page.text and "No run was evaluated; " not in page.text
    assert page.cells["APmean over IoU 0.50 to 0.95"] == ["12.5"]
    assert page.cells["AP50IoU 0.50"] == ["–"]
