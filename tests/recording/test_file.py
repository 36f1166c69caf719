"""The file format of a recording."""

import json

import numpy as np
import pytest

from swn_d2.errors import UserError
from swn_d2.recording import Crop, Record, append_records, read_recording


def record(iteration, **kwargs):
    positives = {"cls_loss": np.array([0.123456, 2.0], np.float32), "iou": np.array([0.5, 1.0])}
    negatives = {"cls_loss": np.array([1e-7], np.float32)}
    return Record(iteration, "", 2, 1, positives, negatives, **kwargs)


def iterations(file):
    return [r.iteration for r in read_recording(file)]


def test_what_is_written_is_read(tmp_path):
    crop = Crop(
        "mismatch",
        "a b/c.jpg",
        3,
        (1.0, 2.0, 30.5, 40.0),
        (0.0, 2.5, 3.0, 4.0),
        {"iou": 0.25},
        b"\xff",
    )
    append_records(tmp_path / "r", [record(0, crops=(crop,))])
    append_records(tmp_path / "r", [record(19)])
    first, second = read_recording(tmp_path / "r")
    assert first.crops == (crop,) and second.crops == ()
    assert (second.iteration, second.stage) == (19, "")
    assert (second.num_positives, second.num_negatives) == (2, 1)
    np.testing.assert_allclose(first.positives["cls_loss"], [0.1235, 2.0], rtol=1e-6)  # 4 digits
    np.testing.assert_allclose(first.negatives["cls_loss"], [1e-7])
    assert first.positives["iou"].dtype == np.float32


def test_it_is_json_lines_with_a_header(tmp_path):
    append_records(tmp_path / "r", [record(0)])
    append_records(tmp_path / "r", [record(1)])
    header, *lines = map(json.loads, (tmp_path / "r").read_text().splitlines())
    assert header == {"format": "swn_d2 samples", "version": 1}
    assert [line["iteration"] for line in lines] == [0, 1]
    assert lines[0]["positives"]["cls_loss"] == [0.1235, 2.0]


@pytest.mark.parametrize("lost", [1, 30])
def test_a_line_that_was_cut_short_is_left_out(lost, tmp_path):
    append_records(tmp_path / "r", [record(0), record(1)])
    whole = (tmp_path / "r").read_bytes()
    (tmp_path / "r").write_bytes(whole[:-lost])
    # Without its newline alone, a line is complete.
    assert iterations(tmp_path / "r") == ([0, 1] if lost == 1 else [0])
    append_records(tmp_path / "r", [record(2)])
    assert iterations(tmp_path / "r") == ([0, 1, 2] if lost == 1 else [0, 2])


def test_what_was_done_again_takes_the_place_of_what_was_lost(tmp_path):
    append_records(tmp_path / "r", map(record, [0, 1, 2, 3]))
    again = record(1, crops=())
    append_records(tmp_path / "r", [again, record(2)])
    assert iterations(tmp_path / "r") == [0, 1, 2]
    # The last iteration, with few records since the checkpoint; in a cascade, too.
    append_records(tmp_path / "r", [Record(2, "", 7, 0, {}, {})])
    assert iterations(tmp_path / "r") == [0, 1, 2]
    assert read_recording(tmp_path / "r")[-1].num_positives == 7
    stages = [Record(1, f"stage{s}", 0, 0, {}, {}) for s in (0, 1, 2)]
    append_records(tmp_path / "c", stages[:2])  # killed while it wrote
    append_records(tmp_path / "c", stages)
    assert [r.stage for r in read_recording(tmp_path / "c")] == ["stage0", "stage1", "stage2"]


def test_stages_of_an_iteration_stand_together(tmp_path):
    stages = [Record(i, f"stage{s}", 0, 0, {}, {}) for i in (0, 1) for s in (0, 1)]
    append_records(tmp_path / "r", stages)
    assert [r.stage for r in read_recording(tmp_path / "r")] == ["stage0", "stage1"] * 2


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a recording"),
        (b"PK\x03\x04\n", "not a recording"),
        (b'{"iteration": 1}\n', "not a recording"),
        (
            b'{"format": "swn_d2 samples", "version": 2}\n',
            "version 2, and this swn_d2 reads version 1",
        ),
        (
            b'{"format": "swn_d2 samples", "version": 1}\n{"iteration": 7}\n',
            "iteration 7 that can't be read .*delete that line",
        ),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    (tmp_path / "r").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_recording(tmp_path / "r")


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="cannot read .*RECORDING.PERIOD"):
        read_recording(tmp_path / "r")
