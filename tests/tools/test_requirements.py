"""What the tools say where a package is missing that only they need."""

import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.parametrize("name", ["figures.py", "report.py", "visualize.py"])
def test_without_matplotlib(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="error: figures need Matplotlib.*pip install matplotlib"):
        runpy.run_path(str(TOOLS / name))
