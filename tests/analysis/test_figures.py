"""Every figure, drawn of real trainings."""

import os
import warnings
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from swn_d2.analysis.figures import FIGURES
from swn_d2.analysis.run_folder import open_runs
from swn_d2.analysis.style import save, to_svg
from swn_d2.engine import SWNTrainer
from swn_d2.recording import SNAPSHOTS
from swn_d2.weighting import build_sample_weighter
from tests.analysis.samples import random_records, run_folder
from tests.tiny import batch, tiny_config
from tests.weighting.conftest import randomize

FROM_THE_RECORDING = [name for name, info in FIGURES.items() if info.from_recording]


class OnBatches(SWNTrainer):
    """Iteration i trains on batch i."""

    @classmethod
    def build_train_loader(cls, cfg):
        return map(named_batch, range(100))


def named_batch(seed):
    entries = batch(seed)
    for i, entry in enumerate(entries):
        entry["file_name"] = f"{seed}_{i}.jpg"
    return entries


def train(folder, *opts, **kwargs):
    os.makedirs(folder)
    cfg = tiny_config(
        *("OUTPUT_DIR", str(folder)),
        *("SOLVER.MAX_ITER", 6),
        *("SOLVER.STEPS", ()),
        *("SOLVER.WARMUP_ITERS", 0),
        *("SOLVER.SWN.BASE_LR", 0.05),  # so that the weights differ at once
        *("DATASETS.TEST", ()),
        *("RECORDING.PERIOD", 1),
        *opts,
        **kwargs,
    )
    (folder / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    OnBatches(cfg).train()


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Name -> figure of a baseline, a run with all tasks weighted, and a cascade; a warning while
    one is drawn is an error."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "baseline", "MODEL.SAMPLE_WEIGHTER.NAME", "Uniform")
    train(folder / "masks", detector="mask_rcnn", reading="relative")
    train(folder / "cascade", detector="cascade_rcnn")
    runs = open_runs([folder / name for name in ("baseline", "masks", "cascade")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = {name: FIGURES[name].draw(runs) for name in FROM_THE_RECORDING}
        for figure in drawn.values():
            figure.draw_without_rendering()
    return drawn


@pytest.mark.parametrize("name", FROM_THE_RECORDING)
def test_no_text_is_on_another_or_cut_off(name, figures):
    texts = shown_texts(figures[name])
    assert len(texts) > 20
    for text, place in texts.items():
        assert place.x0 >= 0 and place.y0 >= 0, text
        assert place.x1 <= figures[name].bbox.x1 and place.y1 <= figures[name].bbox.y1, text
    for one, other in combinations(texts, 2):
        assert not texts[one].overlaps(texts[other]), (one, other)


def shown_texts(figure):
    """Text -> its place in pixels, less one for round letters."""
    beyond_the_axis = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)  # a colour bar has the second
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    return {
        text: text.get_window_extent().padded(-1)
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in beyond_the_axis
    }


@pytest.mark.parametrize("ratio", [2, 50])  # on a linear axis, and on a logarithmic one
@pytest.mark.parametrize("largest", [3.5e-6, 3.5e-4, 0.05, 350.0, 3.5e5])
def test_losses_of_any_size_leave_room_for_their_labels(largest, ratio, tmp_path):
    records = list(random_records(range(20)))
    for record in records:
        record.positives["box_loss"][:] = np.linspace(largest / ratio, largest, 40)
    run = run_folder(tmp_path, records)
    weighter = randomize(build_sample_weighter(run.cfg, box_loss_dim=4, has_mask=False), seed=0)
    (tmp_path / SNAPSHOTS).mkdir()
    torch.save({"": weighter.state_dict()}, tmp_path / SNAPSHOTS / "0000019.pth")
    figure = FIGURES["functions"].draw(open_runs([tmp_path]))
    figure.draw_without_rendering()
    texts = shown_texts(figure)
    assert len(texts) > 20
    for one, other in combinations(texts, 2):
        assert not texts[one].overlaps(texts[other]), (one, other)


@pytest.mark.parametrize("name", FROM_THE_RECORDING)
def test_every_run_with_weights_is_named(name, figures):
    texts = " ".join(text.get_text() for text in figures[name].findobj(Text))
    shown = {run for run in ("baseline", "masks", "cascade") if run in texts}
    unweighted = {"baseline"} if name in ("samples", "iou_shares") else set()
    assert shown == {"masks", "cascade"} | unweighted


def test_a_figure_is_also_an_svg_element(figures):
    svg = to_svg(figures["weights"])
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>") and "cascade" in svg


def test_names_are_no_formulas(tmp_path):
    run = run_folder(tmp_path / "$x^$", list(random_records(range(20))))
    for name in ("iou_shares", "weights"):
        save(
            FIGURES[name].draw([run, run_folder(tmp_path / "b", run.recording)]), tmp_path / "f.png"
        )


def test_every_figure_has_a_title_and_says_how_to_read_it():
    of_evaluation = ["precision_recall", "confusions", "missed"]
    assert list(FIGURES) == [*of_evaluation, "samples", "iou_shares", "functions", "weights"]
    assert FROM_THE_RECORDING == list(FIGURES)[3:]
    for info in FIGURES.values():
        assert info.title and info.caption.endswith(".")
