import sys

import pytest

from swn_d2.own import imports


@pytest.fixture
def forget_imports(monkeypatch):
    """Python files that a test imports are forgotten afterwards."""
    monkeypatch.setattr(imports, "_imported", {})
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]
