"""tools/split_dataset.py."""

from pathlib import Path

import pytest

from swn_d2.data import make_digit_scenes
from swn_d2.data.split import split_dataset
from tests import processes

TOOL = Path(__file__).parents[2] / "tools" / "split_dataset.py"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = make_digit_scenes(tmp_path_factory.mktemp("data") / "s", num_train=20, num_val=1)
    return root / "annotations" / "instances_train.json"


@pytest.mark.parametrize("options, share", [([], 0.5), (["--share", "0.67"], 0.67)])
def test_it_hands_on_what_is_asked_for_and_can_run_again(source, tmp_path, options, share):
    files = [tmp_path / name for name in ("a.json", "b.json")]
    expected = [tmp_path / name for name in ("c.json", "d.json")]
    numbers = split_dataset(source, *expected, share=share)
    for _ in range(2):
        result = processes.run(TOOL, source, *files, *options)
        assert result.returncode == 0, result.stderr
        assert result.stdout == (
            f"{numbers[0]} pictures are in {files[0]}, {numbers[1]} in {files[1]}.\n"
        )
        assert [f.read_bytes() for f in files] == [f.read_bytes() for f in expected]


def test_a_mistake_is_one_line(source, tmp_path):
    result = processes.run(TOOL, source, tmp_path / "a.json", tmp_path / "b.json", "--share", "1")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr == "error: The share must be above 0 and below 1, not 1.0.\n"
    assert list(tmp_path.iterdir()) == []
