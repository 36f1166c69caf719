import numpy as np
import pytest
import torch

from swn_d2.recording import first_weight, make_record
from swn_d2.weighting import SampleStatistics, SampleWeights


def test_weights_are_recorded_as_the_losses_have_them():
    """Those of the weighter times those of the data, which have one more for the box."""
    statistics = SampleStatistics(
        cls_loss=torch.ones(3),
        box_loss=torch.ones(3, 4),
        iou=torch.ones(3),
        prob=torch.ones(3),
        is_foreground=torch.tensor([True, True, False]),
        normalizers={"cls": 3, "box": 3, "mask": 2},
        mask_loss=torch.ones(3),
        details={
            "given_weight": lambda: torch.tensor([0.5, 3, 1]),
            "given_label_weight": lambda: torch.tensor([0.5, 0, 1]),
            "given_box_weight": lambda: torch.tensor([0, 6, 1.0]),
            "given_mask_weight": lambda: torch.tensor([2, 0, 1.0]),
            "label_loss": lambda: torch.tensor([0.25, 1.5, 0]),
        },
    )
    weights = SampleWeights(cls=torch.full((3,), 2.0), label=torch.tensor([3.0, 3, 1]))
    record = make_record(statistics, weights, iteration=0, num_samples=3)
    assert record.positives["cls_weight"].tolist() == [1, 6]
    assert record.positives["box_weight"].tolist() == [0, 6]
    assert record.positives["mask_weight"].tolist() == [2, 0]
    assert record.positives["label_loss"].tolist() == [0.25, 1]  # of a loss of 1
    assert record.positives["label_weight"].tolist() == [1.5, 0]
    assert record.negatives["cls_weight"].tolist() == [2]


@pytest.mark.parametrize(
    "other_than_1, column",
    [
        ((), None),
        (("box", "mask"), "box_weight"),
        (("label", "box"), "label_weight"),
        (("cls", "label"), "cls_weight"),
    ],
)
def test_pictures_are_chosen_by_the_first_weights_that_differ_from_1(other_than_1, column):
    names = ("mask", "box", "label", "cls")
    columns = {f"{n}_weight": np.array([1.0, 1 + (n in other_than_1)]) for n in names}
    assert first_weight(columns) == column
