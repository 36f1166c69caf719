"""Samples of many records together."""

import pytest

from swn_d2 import UserError
from swn_d2.analysis.pooling import EARLY, LATE, able, part, pooled, recording_of
from tests.analysis.samples import record, run_folder


def test_parts_of_a_training():
    records = [record(i, stage=s, cls_loss=[i]) for i in range(40) for s in ("stage0", "stage1")]
    for stage in ("stage0", "stage1"):
        early, late = (part(records, stage, percent) for percent in (EARLY, LATE))
        assert [r.iteration for r in early] == [4, 5, 6, 7]
        assert [r.iteration for r in late] == [36, 37, 38, 39]
        assert {r.stage for r in early + late} == {stage}


@pytest.mark.parametrize("num", [1, 2, 3, 7])
def test_a_part_has_a_record_of_few(num):
    records = [record(i) for i in range(num)]
    assert [r.iteration for r in part(records, "", EARLY)] == [0]
    assert part(records, "", LATE)[-1].iteration == num - 1
    assert part([], "", EARLY) == []


def test_pooled_samples():
    records = [record(0, cls_loss=[1, 2]), record(1, iou=[0.5]), record(2, cls_loss=[3])]
    assert pooled(records, "cls_loss").tolist() == [1, 2, 3]
    assert pooled(records, "mask_loss").tolist() == []
    assert pooled([record(0, negatives=[0.5])], "cls_weight", "negatives").tolist() == [0.5]


def test_runs_without_what_is_needed_are_left_out(tmp_path):
    without = [run_folder(tmp_path / name, []) for name in ("a", "b")]
    having = run_folder(tmp_path / "c", [record(0, cls_loss=[1])])
    assert able([*without, having], recording_of) == [(having, having.recording)]
    with pytest.raises(UserError, match="/a/"):
        able(without, recording_of)
