import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def clean_catalog():
    """Whatever a test registers with Detectron2 is forgotten afterwards."""
    known = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
