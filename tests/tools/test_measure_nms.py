"""tools/measure_nms.py, on few boxes."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from swn_d2.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
tool = importlib.import_module("measure_nms")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["measure_nms.py", *arguments])
    tool.main()


def test_prints_a_ratio_for_every_method(monkeypatch, capsys):
    run(monkeypatch, "--boxes", "200", "--classes", "3", "--rounds", "2")
    printed = capsys.readouterr().out
    assert re.search(r"^all: 600 candidates on \w+, 2 rounds$", printed, re.M)
    rows = re.findall(r"^  ([\w, ]+?) +kept +(\d+), +([\d.]+) ms, ratio +([\d.]+)$", printed, re.M)
    assert len(rows) == 2 * 6
    assert {name for name, *_ in rows} >= {"torchvision", "linear", "gaussian", "iou_guided"}
    for name, kept, milliseconds, ratio in rows:
        assert float(milliseconds) > 0 and float(ratio) > 0
        assert name != "torchvision" or float(ratio) == 1.0
        assert "limit" not in name or int(kept) == 100


@pytest.mark.parametrize("argument", ["--boxes", "--classes", "--rounds"])
def test_bad_arguments(monkeypatch, argument):
    with pytest.raises(UserError, match="must be at least 1"):
        run(monkeypatch, argument, "0")
