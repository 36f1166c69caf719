from pathlib import Path

import pytest

from swn_d2.checks.detectors import Bench
from swn_d2.checks.scale import ON_CPU

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def bench():
    """Builds tiny detectors, in milliseconds and anew for each test, which may damage them."""
    return Bench(CONFIGS, ON_CPU)
