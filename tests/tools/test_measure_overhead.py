"""tools/measure_overhead.py, on detectors that step in a moment."""

import re
from pathlib import Path

import pytest

from tests import processes
from tests.tiny import tiny_config

TOOL = Path(__file__).parents[2] / "tools" / "measure_overhead.py"


def run(tmp_path, *arguments, detector="retinanet"):
    for name, stock in (("baseline", True), ("swn", False)):
        text = tiny_config(detector=detector, stock=stock).dump()
        (tmp_path / f"{name}.yaml").write_text(text)
    files = ("--baseline", "baseline.yaml", "--swn", "swn.yaml")
    return processes.run(TOOL, *files, *arguments, cwd=tmp_path)


@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
def test_measures_pairs(tmp_path, detector):
    result = run(tmp_path, "--pairs", "3", "--size", "64", "96", detector=detector)
    assert result.returncode == 0, result.stderr
    pairs = re.findall(
        r"^pair \d: ([\d.]+) s .*, ([\d.]+) s .*, ratio ([\d.]+)$", result.stdout, re.M
    )
    assert len(pairs) == 3
    for without, with_swn, ratio in pairs:  # printed to the millisecond
        assert float(ratio) == pytest.approx(float(with_swn) / float(without), rel=0.1)
    ratios = sorted(float(ratio) for *_, ratio in pairs)
    assert f"median {ratios[1]:.4f} ({ratios[0]:.4f} to {ratios[2]:.4f}, 3 pairs)" in result.stdout
    needed = re.search(r"([\d.]+) MiB without, ([\d.]+) MiB with", result.stdout)
    assert all(float(mebibytes) > 0 for mebibytes in needed.groups())


def test_bad_arguments_are_one_line(tmp_path):
    result = run(tmp_path, "--pairs", "0")
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: --pairs")
