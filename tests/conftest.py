"""What all tests share. It imports torch and Detectron2 where they are used, since a process that
only hands tests to others reads this file, too, and they wait for it."""

import functools
import os

import pytest

# The tensors of the tests are so small that a second thread would only wait for the first: here,
# and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="module")
def forked():
    """The processes that launch() starts are forked from one that has imported torch and Detectron2
    already. That they can import it anew, as they do for a user, tests of train_net.py see."""
    import torch.multiprocessing as mp

    import tests.processes  # noqa: F401  whose server that is

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mp, "spawn", functools.partial(mp.start_processes, start_method="forkserver"))
        yield


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
