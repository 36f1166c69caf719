"""Where the labels of boxes come to lie."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from swn_d2.evaluation.drawing import draw_box

WIDTH, HEIGHT = 300, 200
CORNERS = [(0, 0, 9, 9), (291, 0, 300, 9), (291, 191, 300, 200), (-9, 190, 3, 230)]


def labels_of(boxes, label="person  97%", dpis=(100,), **options):
    """The places of the labels in a picture, in points from its lower left. None if left out."""
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(np.zeros((HEIGHT, WIDTH, 3)))
    for box in boxes:
        draw_box(axes, box, label, "#56b4e9", **options)
    for dpi in dpis:
        figure.set_dpi(dpi)
        figure.canvas.draw()
    to_points = 72 / dpis[-1]
    origin, size = axes.bbox.p0 * to_points, axes.bbox.size * to_points
    places = [text.place and text.place.get_points() * to_points - origin for text in axes.texts]
    return places, size


@pytest.mark.parametrize("box", CORNERS)
def test_labels_stay_in_the_picture(box):
    (place,), size = labels_of([box])
    assert size == pytest.approx(labels_of([])[1])  # and take no space from it
    assert (place >= -1e-6).all() and (place <= size + 1e-6).all()


def test_a_label_longer_than_the_picture_begins_in_it():
    (place,), size = labels_of([(250, 50, 290, 90)], label="long name " * 20)
    assert place[0, 0] == pytest.approx(0, abs=1e-6) and place[1, 0] > size[0]


def test_a_label_stands_on_its_box():
    (place,), size = labels_of([(100, 80, 160, 120)])
    scale = size[0] / WIDTH
    # imshow's first pixel goes from -0.5 to 0.5.
    assert place[0] == pytest.approx([100.5 * scale, size[1] - 80.5 * scale], abs=0.1)


@pytest.mark.parametrize("dpis", [(100,), (100, 150, 60)])
def test_labels_of_boxes_at_the_same_place_can_all_be_read(dpis):
    places, size = labels_of([(100, 80, 160, 120)] * 4, dpis=dpis)
    for a, b in combinations(places, 2):
        assert (a[1] <= b[0] + 0.1).any() or (b[1] <= a[0] + 0.1).any()
    # The first is where it would be alone.
    (alone,), _ = labels_of([(100, 80, 160, 120)], dpis=dpis)
    assert places[0] == pytest.approx(alone, abs=0.5)


def test_names_are_not_formulas():
    labels_of([(100, 80, 160, 120)], label="$\\frac{$")


@pytest.mark.parametrize("dpis", [(100,), (100, 150, 60)])
def test_labels_that_do_not_fit_can_be_left_out(dpis):
    wide, narrow, far = (100, 80, 160, 120), (100, 80, 120, 120), (200, 80, 260, 120)
    options = {"dpis": dpis, "only_if_it_fits": True}
    assert labels_of([narrow], **options)[0] == [None]
    # Above the box's edge, and below it; a third would be far from its box.
    first, second, third, other = labels_of([wide, wide, wide, far], **options)[0]
    assert first[0, 1] >= second[1, 1] - 0.1 and third is None and other is not None
