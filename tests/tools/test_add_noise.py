"""tools/add_noise.py."""

import json
from pathlib import Path

import pytest

from swn_d2.data import make_digit_scenes
from swn_d2.data.noise import JITTERED_BOX, MISSING_OBJECT, WRONG_CLASS, add_noise
from tests import processes

TOOL = Path(__file__).parents[2] / "tools" / "add_noise.py"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = make_digit_scenes(tmp_path_factory.mktemp("data") / "s", num_train=20, num_val=1)
    return root / "annotations" / "instances_train.json"


def test_it_hands_on_what_is_asked_for(source, tmp_path):
    options = "--wrong-classes 0.3 --jittered-boxes 0.4 --missing-objects 0.2 --amount 0.1 --seed 3"
    files = [str(tmp_path / f"{name}.json") for name in ("noisy", "true", "left_out")]
    others = ["--truth", files[1], "--left-out", files[2]]
    result = processes.run(TOOL, source, files[0], *options.split(), *others)
    assert result.returncode == 0, result.stderr

    expected = [tmp_path / f"expected_{name}.json" for name in ("noisy", "true", "left_out")]
    added = add_noise(
        source,
        expected[0],
        shares={WRONG_CLASS: 0.3, JITTERED_BOX: 0.4, MISSING_OBJECT: 0.2},
        amount=0.1,
        seed=3,
        truth=expected[1],
        left_out=expected[2],
    )
    for file, other in zip(files, expected, strict=True):
        assert Path(file).read_bytes() == other.read_bytes()
    numbers = ", ".join(f"{kind} {number}" for kind, number in added.num_changed.items())
    assert result.stdout == (
        f"Of {added.num_objects} objects: {numbers}. Files: {', '.join(files)}\n"
    )


def test_it_can_run_again(source, tmp_path):
    results = [
        processes.run(TOOL, source, tmp_path / "noisy.json", "--wrong-classes", share)
        for share in ("0.3", "0.3", "0.4")
    ]
    assert [result.returncode for result in results] == [0, 0, 1]
    assert results[1].stdout == results[0].stdout
    assert "noisy.json exists already; remove it, or give another name." in results[2].stderr


def test_defaults(source, tmp_path):
    result = processes.run(TOOL, source, tmp_path / "noisy.json", "--jittered-boxes", "1")
    assert result.returncode == 0, result.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"noisy.json", "noisy.truth.json"}
    record = json.loads((tmp_path / "noisy.json").read_text())["info"]["noise"]
    number = record["objects"]
    assert record == {
        JITTERED_BOX: {"share": 1.0, "changed": number, "amount": 0.2},
        "objects": number,
        "seed": 0,
    }


def test_a_mistake_is_one_line(source, tmp_path):
    result = processes.run(TOOL, source, tmp_path / "noisy.json")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: No noise is asked for")
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
