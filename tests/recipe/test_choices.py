"""The numbers that follow from the data: rules with a range, not single values."""

import dataclasses

import numpy as np
import pytest

from swn_d2.recipe.choices import CPU, GPU, choose
from swn_d2.recipe.facts import Facts


def facts(num=500, size=(640, 480), share=0.2, objects=3, ratio=1.0):
    """Pictures of one size, with objects of one size and shape."""
    side = share * min(size)
    return Facts(
        name="mine",
        files=[f"{i}.jpg" for i in range(num)],
        sizes=np.tile(np.array(size, float), (num, 1)),
        boxes=np.tile([side / ratio**0.5, side * ratio**0.5], (num * objects, 1)),
        picture=np.repeat(np.arange(num), objects),
        classes=[("cat", num * objects)],
    )


def chosen(machine=CPU, is_retinanet=False, num_test=100, **kwargs):
    return choose(facts(**kwargs), facts(num=num_test), machine, is_retinanet=is_retinanet)


@pytest.mark.parametrize(
    "kwargs, side",
    [
        ({"share": 0.5}, 160),  # large objects: the least that a CPU is given
        ({"share": 0.1}, 240),  # 24 pixels for an object
        ({"share": 0.01}, 320),  # the most
        ({"share": 0.01, "size": (100, 200)}, 96),  # no more than there is
        ({"share": 0.01, "size": (20, 20)}, 32),
        ({"share": 0.5, "machine": GPU}, 480),
        ({"share": 0.01, "machine": GPU, "size": (2000, 1500)}, 800),
    ],
)
def test_the_size_of_the_pictures(kwargs, side):
    choices = chosen(**kwargs)
    assert choices.side == side
    least, same, largest = choices.train_sides
    assert least < same == side < largest


@pytest.mark.parametrize("size, scale", [((1242, 375), 320 / 375), ((4000, 400), 320 / 400 * 0.4)])
def test_wide_pictures(size, scale):
    """As Detectron2 makes them: with the shorter side, or with the longest that is allowed."""
    choices = chosen(share=0.05, size=size)
    assert choices.side == 320 and 2 < choices.elongation <= 4
    longest = min(size[0] * 320 / size[1], choices.elongation * 320)
    assert longest / size[0] == pytest.approx(scale)
    assert choices.small_object == pytest.approx(0.05 * size[1] * scale)


def test_a_few_wide_pictures_do_not_change_the_anchors_of_the_others():
    usual, wide = facts(num=94), facts(num=6, size=(4000, 400))
    both = dataclasses.replace(
        usual,
        files=usual.files + wide.files,
        sizes=np.concatenate([usual.sizes, wide.sizes]),
        boxes=np.concatenate([usual.boxes, wide.boxes]),
        picture=np.concatenate([usual.picture, len(usual.files) + wide.picture]),
    )
    alone, among_others = (choose(f, f, CPU, is_retinanet=False) for f in (usual, both))
    assert among_others.anchors == alone.anchors
    assert among_others.small_object == pytest.approx(alone.small_object)


@pytest.mark.parametrize("machine", [CPU, GPU])
@pytest.mark.parametrize("is_retinanet", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.3, 1.0])
def test_anchors_cover_the_objects(machine, is_retinanet, share):
    choices = chosen(machine, is_retinanet, share=share)
    sizes = np.array(choices.anchors, float)
    assert (sizes[1:] == 2 * sizes[:-1]).all()
    assert sizes[0] >= (16 if is_retinanet else 8) and sizes[-1] <= 2 * choices.side
    if choices.small_object >= 16:
        assert sizes[0] <= choices.small_object
    # Squares with the same centre.
    nearest = np.abs(np.log2(sizes / choices.small_object)).min()
    assert nearest <= 0.51 or choices.small_object < sizes[0]


def test_anchors_of_small_and_large_objects():
    """Five levels can't have all of these: the large ones can be found, however small others."""
    small, large = facts(share=0.01), facts(share=0.9)
    both = dataclasses.replace(
        small,
        boxes=np.concatenate([small.boxes, large.boxes]),
        picture=np.concatenate([small.picture, large.picture]),
    )
    choices = choose(both, small, CPU, is_retinanet=False)
    assert choices.anchors == (16, 32, 64, 128, 256) and choices.side == 320


@pytest.mark.parametrize(
    "ratio, ratios",
    [(1, (0.5, 1, 2)), (3.5, (0.5, 1, 2, 4)), (0.3, (0.25, 0.5, 1, 2)), (2.9, (0.5, 1, 2))],
)
def test_ratios_of_flat_and_steep_objects(ratio, ratios):
    assert chosen(ratio=ratio).ratios == ratios


@pytest.mark.parametrize("objects, regions", [(1, 64), (8, 64), (9, 128), (25, 256), (200, 512)])
def test_regions_of_crowded_pictures(objects, regions):
    assert chosen(num=20, objects=objects).regions == regions


@pytest.mark.parametrize(
    "num, machine, iterations",
    [
        (8, CPU, 200),  # 200 epochs
        (1, CPU, 20),
        (205, CPU, 1000),  # what new layers need
        (5011, CPU, 7520),  # 12 epochs
        (5011, GPU, 3760),
    ],
)
def test_the_length_of_the_schedule(num, machine, iterations):
    choices = chosen(machine, num=num)
    assert choices.iterations == iterations
    assert choices.warmup == min(iterations // 10, 500)
    assert choices.steps == (iterations * 2 // 3, iterations * 11 // 12)
    assert choices.period * 4 < iterations <= choices.period * 5
    assert choices.learning_rate == machine.batch / 800


def test_a_large_test_set_is_evaluated_once():
    assert chosen(num_test=1000).evaluates and not chosen(num_test=1001).evaluates
