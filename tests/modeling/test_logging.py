import pytest
import torch
from detectron2.utils.events import EventStorage

from swn_d2.modeling.logging import log_sample_weights
from swn_d2.weighting import SampleWeights
from tests.weighting.conftest import make_samples


def test_weights_per_column_are_logged_as_their_mean():
    _, statistics = make_samples([True, False, True], box_loss_dim=2)
    weights = SampleWeights(box=torch.tensor([[1.0, 2.0], [9.0, 9.0], [3.0, 6.0]]))
    with EventStorage(19) as storage:
        log_sample_weights(statistics, weights)
        logged = {name: value for name, (value, _) in storage.latest().items()}
    assert set(logged) == {"weights/box_mean", "weights/box_std"}
    assert logged["weights/box_mean"] == pytest.approx((1.5 + 4.5) / 2)
    assert logged["weights/box_std"] == pytest.approx(1.5)
