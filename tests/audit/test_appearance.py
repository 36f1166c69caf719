"""What the backbone is shown, and what is taken of it."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.ops import roi_align

from swn_d2.audit.annotations import Annotations
from swn_d2.audit.appearance import crop, gather_appearance
from swn_d2.errors import UserError
from tests.tiny import tiny_config, tiny_model

from .synthetic import SIZE, annotations

BOX = (60, 80, 140, 120)  # its left half is red, its right half green, what is around it blue


@pytest.fixture
def data(tmp_path):
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[..., 2] = 200
    x0, y0, x1, y1 = BOX
    middle = (x0 + x1) // 2
    pixels[y0:y1, x0:middle] = (200, 0, 0)
    pixels[y0:y1, middle:x1] = (0, 200, 0)
    for i in range(2):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    other = (0, 0, 30, 30)  # blue, and beyond the picture's edge with what is around it
    found = annotations([other, BOX, BOX], [0, 0, 1], image=[1, 0, 1])
    return Annotations(found.file, tmp_path, found.content)


@pytest.mark.parametrize("pixel_format", ["RGB", "BGR"])
def test_both_views_are_of_the_objects(data, pixel_format):
    model, seen = tiny_model(tiny_config("INPUT.FORMAT", pixel_format)).eval(), []
    model.backbone.bottom_up.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    views = gather_appearance(model, data, pixel_format)
    last = list(model.backbone.bottom_up.output_shape().values())[-1]  # and not the pyramid's
    assert views.shape == (3, 2, last.channels) and np.isfinite(views).all()
    # Both times the same object, however many are in its picture, and another one.
    np.testing.assert_allclose(views[1], views[2], rtol=1e-4, atol=1e-4)
    assert np.abs(views[0] - views[1]).max() > 1e-3
    upright, mirrored = (crops[0] * model.pixel_std + model.pixel_mean for crops in seen[:2])
    if pixel_format == "BGR":
        upright, mirrored = upright.flip(0), mirrored.flip(0)
    half = upright.shape[-1] // 2
    for shown, left in ((upright, 0), (mirrored, 1)):
        inside = shown[:, half - 10 : half + 10]
        assert inside[:, :, half - 30].mean(dim=1).argmax() == left  # red or green
        assert inside[:, :, half + 30].mean(dim=1).argmax() == 1 - left
    blue = [int((shown.argmax(dim=0) == 2).sum()) for shown in (upright, mirrored)]
    assert 0 < blue[0] < blue[1]  # the second has more of what is around it


def test_a_trained_backbone_sees_objects_smaller_than_one_of_imagenets(data):
    model, sides = tiny_model(tiny_config()).eval(), []
    model.backbone.bottom_up.register_forward_pre_hook(
        lambda _, inputs: sides.append(inputs[0].shape[-1])
    )
    for has_learned in (False, True):
        gather_appearance(model, data, "BGR", has_learned=has_learned)
    assert set(sides[: len(sides) // 2]) == {224} and set(sides[len(sides) // 2 :]) == {160}


def test_features_that_are_not_finite(data):
    model = tiny_model(tiny_config()).eval()
    with torch.no_grad():
        for parameter in model.backbone.bottom_up.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite .* give other weights"):
        gather_appearance(model, data, "BGR")


def test_no_object_at_all(tmp_path, data):
    nothing = Annotations(data.file, data.image_root, {**data.content, "annotations": []})
    assert len(gather_appearance(tiny_model(tiny_config()).eval(), nothing, "BGR")) == 0


def test_a_large_window_is_brought_to_size_as_a_small_one():
    coarse = torch.rand(1, 3, 30, 40, generator=torch.Generator().manual_seed(0))
    picture = F.interpolate(coarse, (1200, 1600), mode="bilinear")
    windows = torch.tensor(
        [
            [100.0, 200, 1500, 1100],  # wide
            [300, -200, 500, 1500],  # high, and beyond the picture's edges
            [900, 700, 1000, 820],  # as small as it is seen
            [-3000, 100, 100, 700],
        ]
    )
    seen, expected = crop(picture, windows, 32), roi_align(picture, [windows], 32, aligned=True)
    assert (seen[2] == expected[2]).all()
    # The row and column where the picture ends is a little more or less of it.
    difference = (seen - expected).abs()
    assert difference.mean() < 0.005
    assert (difference.amax(dim=1) > 0.05).float().mean() < 0.03


@pytest.mark.parametrize(
    "box",
    [(10, 10, 1e5, 60), (-1e7, -1e7, 1e7, 1e7), (190, 5, 1e9, 6), (1e5, 1e5, 3e5, 3e5)],
)
def test_a_wrong_box_of_any_size_can_be_looked_at(box):
    """Pooling keeps four numbers for every pixel of a window: 1e5 of them squared are too many."""
    seen = crop(torch.ones(1, 3, SIZE, SIZE), torch.tensor([box, BOX], dtype=torch.float32), 32)
    assert ((seen >= 0) & (seen <= 1)).all() and (seen[1] == 1).all()
