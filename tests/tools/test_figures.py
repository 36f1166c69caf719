"""tools/figures.py, on folders of runs with records made by hand."""

import importlib
import sys
from pathlib import Path

import pytest
from PIL import Image

from swn_d2.analysis.figures import FIGURES
from tests import processes
from tests.analysis.samples import random_records, run_folder

TOOL = Path(__file__).parents[2] / "tools" / "figures.py"
sys.path.insert(0, str(TOOL.parent))
tool = importlib.import_module("figures")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, weighted in (("baseline", ()), ("swn", ("box",))):
        opts = [*("MODEL.SAMPLE_WEIGHTER.NAME", "SWN" if weighted else "Uniform")]
        run_folder(folder / name, list(random_records(range(30), weighted=weighted)), *opts)
    return folder


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_figure_that_can_be_drawn_is(runs):
    result = processes.run(TOOL, runs / "baseline", runs / "swn")
    assert result.returncode == 0, result.stderr
    folder = runs / "figures"  # of neither of them
    assert files(folder) == ["iou_shares.png", "weights.png"]
    assert result.stdout.splitlines() == [
        f"{n}: {folder / n}.png" for n in ("iou_shares", "weights")
    ]
    for file in folder.iterdir():
        assert Image.open(file).mode == "RGBA"  # transparent
    said = dict(line.split(": ", 1) for line in result.stderr.splitlines())
    assert list(said) == ["precision_recall", "confusions", "missed", "samples", "functions"]
    assert "no picture of a sample" in said["samples"]
    assert "no learned functions" in said["functions"]


def test_those_of_one_run_are_in_its_folder(runs):
    tool.main([str(runs / "swn"), "--only", "weights"])
    assert files(runs / "swn" / "figures") == ["weights.png"]


def test_only_some_figures_to_another_folder(runs, tmp_path, capsys):
    output = tmp_path / "new" / "figures"
    tool.main([str(runs / "swn"), "--only", "weights", "--output", str(output)])
    assert files(output) == ["weights.png"]
    assert capsys.readouterr().out == f"weights: {output / 'weights.png'}\n"


def test_without_any_figure_it_fails(runs, tmp_path, capsys):
    output = tmp_path / "figures"
    with pytest.raises(SystemExit, match="no figure could be drawn; the lines above say why"):
        tool.main(
            [str(runs / "baseline"), "--only", "weights", "functions", "--output", str(output)]
        )
    assert not output.exists()
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said] == ["weights", "functions"]


def test_bad_arguments(runs, tmp_path, capsys):
    with pytest.raises(SystemExit, match="there is no folder .*nothing; give"):
        tool.main([str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match="is given twice"):
        tool.main([str(runs / "swn"), str(runs / "swn")])
    with pytest.raises(SystemExit) as error:
        tool.main([str(runs / "swn"), "--only", "weight"])
    assert error.value.code == 2 and "invalid choice: 'weight'" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="cannot write .*file"):
        tool.main([str(runs / "swn"), "--only", "weights", "--output", str(tmp_path / "file")])


def test_help_names_every_figure(capsys):
    with pytest.raises(SystemExit) as error:
        tool.parse_args(["--help"])
    assert error.value.code == 0
    printed = capsys.readouterr().out
    for name, info in FIGURES.items():
        assert any(name in line and info.title in line for line in printed.splitlines())
