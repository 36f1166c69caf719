"""The learned functions: they are the weighter's own."""

import numpy as np
import pytest
import torch

from swn_d2 import UserError
from swn_d2.analysis.functions import (
    draw_functions,
    learned_weights,
    load_weighters,
    sample_range,
)
from swn_d2.analysis.run_folder import RunFolder
from swn_d2.recording import SNAPSHOTS
from swn_d2.weighting import SampleStatistics, build_sample_weighter
from tests.analysis.samples import random_records, run_folder
from tests.tiny import tiny_config
from tests.weighting.conftest import randomize

SUM = ["MODEL.SWN.BOX_LOSS_FEATURE", "sum"]
BY_OBJECT = ["MODEL.SWN.TASKS", ["cls", "box"], "MODEL.SWN.CLS_AVERAGING", "per_object"]


def weighter_of(cfg, *, box_loss_dim=4, has_mask=False, seed=0, std=0.2):
    weighter = build_sample_weighter(cfg, box_loss_dim=box_loss_dim, has_mask=has_mask)
    return randomize(weighter, seed=seed, std=std)


def with_snapshots(run, weighters):
    """Adds iteration -> stage -> weighter to the run's folder as a training keeps them."""
    (run.path / SNAPSHOTS).mkdir()
    for iteration, of_stages in weighters.items():
        states = {stage: weighter.state_dict() for stage, weighter in of_stages.items()}
        torch.save(states, run.path / SNAPSHOTS / f"{iteration:07d}.pth")
    return run


def points(num, *, has_mask=False):
    generator = np.random.default_rng(1)
    names = ("cls_loss", "box_loss", "iou", "prob") + (("mask_loss",) if has_mask else ())
    return {name: generator.uniform(0, 2, num) for name in names}


@pytest.mark.parametrize("reading", ["relative", "authors"])
@pytest.mark.parametrize("box_loss_dim, has_mask", [(4, False), (1, False), (4, True)])
def test_functions_equal_the_weighters_forward(reading, box_loss_dim, has_mask):
    # Averages of m would be of these points, not of a batch: forward does without them here.
    cfg = tiny_config("MODEL.SWN.CLS_AVERAGING", "none", reading=reading)
    weighter = weighter_of(cfg, box_loss_dim=box_loss_dim, has_mask=has_mask)
    samples = points(50, has_mask=has_mask)
    tensors = {name: torch.tensor(values).float() for name, values in samples.items()}
    box_loss = tensors.pop("box_loss")[:, None].repeat(1, box_loss_dim) / box_loss_dim
    normalizers = {task: 50 for task in weighter.tasks}
    everyone = torch.ones(50, dtype=torch.bool)
    statistics = SampleStatistics(
        **tensors, box_loss=box_loss, is_foreground=everyone, normalizers=normalizers
    )
    expected = weighter(statistics).learned
    assert set(expected) == {"cls", "box"} | ({"mask"} if has_mask else set())
    for task, w in expected.items():
        actual = learned_weights(weighter, task, samples)
        np.testing.assert_allclose(actual, w, rtol=1e-6)
        assert actual.std() > 0.02  # else any function would do


def test_the_limits_and_the_exponent_are_the_weighters():
    cfg = tiny_config("MODEL.SWN.EXPONENT", 2.0, "MODEL.SWN.CLAMP", 0.5)
    w = learned_weights(weighter_of(cfg, std=1.0), "box", points(500))
    np.testing.assert_allclose([w.min(), w.max()], np.exp([-1, 1]), rtol=1e-6)


def test_averages_over_a_batch_are_left_out():
    samples = points(20)
    averaging = weighter_of(tiny_config(reading="authors"))
    assert averaging.cls_averaging == "per_group"
    together = learned_weights(averaging, "cls", samples)
    alone = [
        learned_weights(averaging, "cls", {k: v[i : i + 1] for k, v in samples.items()}).item()
        for i in range(20)
    ]
    np.testing.assert_allclose(together, alone, rtol=1e-5)  # sums in another order
    assert together.std() > 0.02


def test_statistics_are_broadcast():
    weighter = weighter_of(tiny_config())
    x, y = np.linspace(0, 2, 5)[None], np.linspace(0, 1, 3)[:, None]
    surface = learned_weights(
        weighter, "box", {"cls_loss": 0.7, "box_loss": x, "iou": y, "prob": 0.5}
    )
    assert surface.shape == (3, 5)
    point = {"cls_loss": 0.7, "box_loss": x[0, 3], "iou": y[1, 0], "prob": 0.5}
    assert surface[1, 3] == pytest.approx(learned_weights(weighter, "box", point).item(), rel=1e-5)


@pytest.mark.parametrize("opts", [[], BY_OBJECT, SUM, BY_OBJECT + SUM])
@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("box_loss_dim", [1, 4])
def test_snapshots_are_of_each_iteration_and_stage(opts, has_mask, box_loss_dim, tmp_path):
    run = run_folder(tmp_path, [], *opts)
    kwargs = {"box_loss_dim": box_loss_dim, "has_mask": has_mask}
    stages = ("stage0", "stage1")
    saved = {
        iteration: {
            s: weighter_of(run.cfg, seed=iteration + i, **kwargs) for i, s in enumerate(stages)
        }
        for iteration in (9, 99)
    }
    loaded = load_weighters(with_snapshots(run, saved))
    assert [iteration for iteration, _ in loaded] == [9, 99]
    samples = points(10, has_mask=has_mask)
    for iteration, weighters in loaded:
        for stage in stages:
            expected = learned_weights(saved[iteration][stage], "box", samples)
            actual = learned_weights(weighters[stage], "box", samples)
            np.testing.assert_array_equal(actual, expected)


def test_ranges_are_of_the_samples():
    values = np.linspace(0.2, 0.8, 1001)
    np.testing.assert_allclose(sample_range(values, is_loss=False), [0.206, 0.794], rtol=1e-4)
    np.testing.assert_allclose(sample_range(values, is_loss=True), [0.206, 0.794], rtol=1e-4)
    long = np.geomspace(1e-9, 10, 1001)
    low, high = sample_range(long, is_loss=True)
    assert high == pytest.approx(np.quantile(long, 0.99)) and high / low == pytest.approx(1000)
    for same in (np.zeros(5), np.full(5, 0.3)):  # an axis needs a length
        assert sample_range(same, is_loss=False).tolist() == [0, 1]
        low, high = sample_range(same, is_loss=True)
        assert 0 < low < high


def test_curves_and_surfaces_are_drawn_of_the_last_samples(tmp_path):
    run = run_folder(tmp_path, list(random_records(range(100))))
    weighters = {i: {"": weighter_of(run.cfg, seed=i)} for i in (49, 99)}
    figure = draw_functions([with_snapshots(run, weighters)])
    (block,) = figure.subfigs
    curves, surfaces = block.axes[:3], block.axes[4:6]
    last = {
        name: np.concatenate([r.positives[name] for r in run.recording[90:]])
        for name in ("cls_loss", "box_loss", "iou", "prob")
    }
    medians = {name: np.median(values) for name, values in last.items()}
    for axis, name in zip(curves, ("box_loss", "iou", "prob"), strict=True):
        for line, iteration in zip(axis.get_lines(), (49, 99), strict=False):
            x, y = line.get_data()
            expected = learned_weights(weighters[iteration][""], "box", {**medians, name: x})
            np.testing.assert_allclose(2**y, expected, rtol=1e-5)
            assert (x[0], x[-1]) == pytest.approx(
                sample_range(last[name], is_loss=name == "box_loss")
            )
    for axis, name in zip(surfaces, ("iou", "prob"), strict=True):
        mesh, dots = axis.collections
        corner = mesh.get_coordinates()[10, 20]
        point = {**medians, "box_loss": corner[0], name: corner[1]}
        expected = learned_weights(weighters[99][""], "box", point).item()
        assert 2 ** mesh.get_array().reshape(60, 60)[10, 20] == pytest.approx(expected, rel=1e-5)
        pairs = set(zip(last["box_loss"].tolist(), last[name].tolist(), strict=True))
        assert {tuple(dot) for dot in dots.get_offsets().tolist()} <= pairs
        assert len(dots.get_offsets()) > 200


def test_what_is_missing_is_said(tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="nothing has no config.yaml"):
        draw_functions([RunFolder(tmp_path / "nothing")])
    uniform = run_folder(tmp_path / "uniform", [], "MODEL.SAMPLE_WEIGHTER.NAME", "Uniform")
    with pytest.raises(UserError, match="uniform has no learned functions.* Uniform, not SWN"):
        draw_functions([uniform])
    run = run_folder(tmp_path / "new", list(random_records(range(3))))
    with pytest.raises(UserError, match="new has no snapshot"):
        draw_functions([run])
    good = {9: {"": weighter_of(run.cfg)}}
    with pytest.raises(UserError, match="cannot read the recording"):
        draw_functions([with_snapshots(run_folder(tmp_path / "a", []), good)])
    empty = list(random_records(range(3), num_samples=0))
    with pytest.raises(UserError, match="recording of b has no positives"):
        draw_functions([with_snapshots(run_folder(tmp_path / "b", empty), good)])
    assert len(draw_functions([uniform, RunFolder(with_snapshots(run, good).path)]).subfigs) == 1


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"not a checkpoint"])
def test_a_broken_snapshot_is_named(content, tmp_path):
    run = run_folder(tmp_path, [])
    (run.path / SNAPSHOTS).mkdir()
    (run.path / SNAPSHOTS / "0000009.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"0000009\.pth is no snapshot.*; delete it\.$"):
        load_weighters(run)


def test_a_snapshot_of_another_config_is_named(tmp_path):
    run = run_folder(tmp_path, [], "MODEL.SWN.HEADS", "shared")
    other = weighter_of(tiny_config("MODEL.SWN.HEADS", "separate"))
    with pytest.raises(UserError, match=r"0000009\.pth is no snapshot"):
        load_weighters(with_snapshots(run, {9: {"": other}}))
