import os

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

# The tensors of the tests are so small that a second thread would only wait for the first: here,
# and in the processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def clean_catalog():
    """Whatever a test registers with Detectron2 is forgotten afterwards."""
    known = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
