"""tools/report.py."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from tests.tiny import tiny_config

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
tool = importlib.import_module("report")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs, of which little is there, in folders beside each other."""
    monkeypatch.chdir(tmp_path)
    for name, ap, ap75 in (("baseline", 40.0, 30.0), ("swn", 42.5, 28.5)):
        folder = tmp_path / "output" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(tiny_config().dump())
        row = {"iteration": 99, "total_loss": 1.0, "bbox/AP": ap, "bbox/AP75": ap75}
        (folder / "metrics.json").write_text(json.dumps(row) + "\n")
    return ["output/baseline", "output/swn"]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
    tool.main()


def test_a_run_gets_its_report_in_its_folder(monkeypatch, capsys, runs):
    run(monkeypatch, runs[1])
    assert capsys.readouterr().out.startswith("output/swn/report.html (0.")
    assert "42.5" in Path("output/swn/report.html").read_text()


def test_several_runs_get_theirs_above_them(monkeypatch, capsys, runs):
    run(monkeypatch, *runs)
    assert capsys.readouterr().out.startswith("output/report.html (0.")
    page = Path("output/report.html").read_text()
    assert "baseline and swn" in page and "+2.5" in page and "−1.5" in page
    assert not list(Path("output").glob("*/report.html"))


def test_a_file_of_ones_own(monkeypatch, capsys, runs):
    run(monkeypatch, runs[0], "-o", "new/mine.html")
    assert capsys.readouterr().out.startswith("new/mine.html (")
    assert Path("new/mine.html").is_file()


def test_a_folder_that_does_not_exist(monkeypatch, runs):
    with pytest.raises(SystemExit, match="^error: there is no folder gone; give the OUTPUT_DIR"):
        run(monkeypatch, runs[0], "gone")
    assert not Path("report.html").exists()


def test_data_of_ones_own(monkeypatch, runs, clean_catalog):
    annotations = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    Path("cats.json").write_text(json.dumps(annotations))
    run(monkeypatch, runs[0], "--register-coco", "my_cats", "cats.json", ".")
    assert "my_cats" in DatasetCatalog.list()
