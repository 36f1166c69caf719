"""What all tests share. It imports torch and Detectron2 where they are used, since a process that
only hands tests to others reads this file, too, and they wait for it."""

import os
import sys

import pytest

# The tensors of the tests are so small that a second thread would only wait for the first: here,
# and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

# Coverage, which make test asks of the weighting package, makes Python code take twice the time, so
# it is measured on these alone.
_OF_WEIGHTING = (
    "tests/weighting/",
    "tests/torchvision/",
    "tests/test_other_detectors.py",
    "tests/modeling/test_strategies.py",
    "tests/engine/test_optimizer.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    measured = None
    if "coverage" in sys.modules and not item.nodeid.startswith(_OF_WEIGHTING):
        measured = sys.modules["coverage"].Coverage.current()
    if measured is not None:
        measured.stop()
    try:
        return (yield)
    finally:
        if measured is not None:
            measured.start()


@pytest.fixture
def clean_catalog():
    """Whatever a test registers with Detectron2 is forgotten afterwards."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    known = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def digit_scenes_here(tmp_path, monkeypatch):
    """The folder in which DigitScenes, under its own names, is looked for during a test."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from swn_d2.data.datasets import register_digit_scenes

    names = [name for name in DatasetCatalog.list() if name.startswith("digit_scenes_")]

    def register_anew():
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_digit_scenes()

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_anew()
    yield tmp_path / "digit_scenes"
    monkeypatch.undo()
    register_anew()
