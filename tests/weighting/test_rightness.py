import math
from dataclasses import replace

import pytest
import torch

from swn_d2.errors import UserError
from swn_d2.weighting import SWN

from .conftest import make_samples, randomize

NUM_CLASSES = 3


def samples(annotated, decoys, *, num_negatives=6, objects=None):
    """A positive of each object, all of class 0, and negatives. Of a positive ``annotated`` is the
    loss of its class, ``decoys`` that of the two others; all losses have a graph."""
    number = len(annotated)
    losses, statistics = make_samples([True] * number + [False] * num_negatives)
    label = torch.zeros(len(statistics))
    label[:number] = torch.as_tensor(annotated)
    label_losses = torch.as_tensor(decoys)[:, None].repeat(1, NUM_CLASSES)
    label_losses[:, 0] = label[:number]
    # The rest of a positive's loss asks whether it is an object at all.
    cls = label + 0.25
    label, cls = label.requires_grad_(), cls.requires_grad_()
    objects = torch.arange(number) if objects is None else torch.tensor(objects)
    nothing = torch.full((num_negatives,), -1)
    classes = torch.zeros(number, dtype=torch.long)
    details = {
        "object": lambda: torch.cat([objects, nothing]),
        "gt_class": lambda: torch.cat([classes, nothing + 1 + NUM_CLASSES]),
        "label_loss": lambda: label,
        "label_losses": lambda: label_losses,
    }
    losses = replace(losses, cls=cls, label=lambda: label)
    statistics = replace(
        statistics, cls_loss=cls.detach(), box_loss=statistics.box_loss * 0, details=details
    )
    statistics.iou = statistics.iou * 0
    return losses, statistics, label


def weighter():
    torch.manual_seed(0)
    return SWN(tasks=["cls"])


def train(swn, steps, *args, **kwargs):
    adam = torch.optim.Adam(swn.parameters(), lr=0.03)
    for _ in range(steps):
        losses, statistics, label = samples(*args, **kwargs)
        weights = swn(statistics)
        adam.zero_grad()
        sum(weights.regularizers.values()).backward()
        adam.step()
    return losses, weights, label


def mixture(share, number=400, *, overlap=0.0):
    """(n,) losses of annotated classes, of which the first ``share`` look like decoys, and those
    of decoys."""
    generator = torch.Generator().manual_seed(0)
    wrong = round(number * share)
    right = torch.rand(number - wrong, generator=generator)
    decoys = 1 - overlap + 2 * torch.rand(number + wrong, generator=generator)
    # Up to 3, more likely than an eighth of chance, are the right ones.
    return 3 * torch.cat([decoys[number:], right]), 3 * decoys[:number]


def believe(swn, share):
    """Let it take this ``share`` of the annotated classes for wrong."""
    swn.rightness.unlikely.copy_(1e9 * torch.tensor([share, 1.0]))


def test_starts_as_the_plain_detector():
    swn = weighter()
    losses, statistics, _ = samples(*mixture(0.25, 8))
    weighted = losses.weighted(swn(statistics))
    assert weighted["cls"].item() == pytest.approx(losses.cls.mean().item())
    assert weighted["box"].item() == pytest.approx(losses.box.sum().item() / len(losses.cls))


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_wrong_class_has_no_weight_and_the_mean_is_1(share):
    swn = weighter()
    train(swn, 80, *mixture(share))
    assert swn.rightness.wrong_share.item() == pytest.approx(share, abs=0.03)
    believe(swn, share)
    weights = swn(samples(*mixture(share))[1])
    w, wrong = weights.label, round(400 * share)
    assert w[wrong:400].mean().item() == pytest.approx(1 / (1 - share), abs=0.05)
    if wrong:
        assert w[:wrong].mean() < 0.15
    else:
        assert w[:400].std() < 0.05
    assert (w[400:] == 1).all()
    assert weights.by_name().keys() == {"label"}


def test_the_weight_is_the_ratio_of_the_densities():
    # Right ones are even in 0 to 3, decoys and the wrong fifth in 1.5 to 7.5: where both are, of
    # ten annotations 8 * 0.5 are right for 2 * 0.25 wrong ones.
    swn = weighter()
    annotated, decoys = mixture(0.2, overlap=0.5)
    train(swn, 80, annotated, decoys)
    believe(swn, 0.2)
    w = swn(samples(annotated, decoys)[1]).label[:400]
    both = (annotated > 1.95) & (annotated < 2.85)
    right, wrong = 0.8 * 1, 0.2 * 0.5
    assert w[both].mean().item() == pytest.approx(right / (right + wrong) / 0.8, abs=0.05)
    assert w[annotated < 1.2].mean().item() == pytest.approx(1 / 0.8, abs=0.03)
    assert w[annotated > 3.6].mean().item() == pytest.approx(0, abs=0.1)


def test_the_share_is_read_off_where_classes_are_unlikely():
    swn = weighter()
    bound = math.log(8 * NUM_CLASSES)
    annotated = torch.tensor([bound + 0.1, bound - 0.1, 0.0, 0.0])
    decoys = torch.tensor([bound + 0.1, bound + 0.1, bound - 0.1, bound + 9])
    for _ in range(2):
        swn(samples(annotated, decoys)[1])
    # One and three of four, and 2 % of what there was before is forgotten each time.
    assert swn.rightness.unlikely.tolist() == pytest.approx([1.98, 3 * 1.98])


@pytest.mark.parametrize(
    "numbers, share",
    [((0, 0), 0), ((3, 10), 0), ((30, 100), 0.25), ((90, 250), 0.9 / 2.7), ((60, 40), 0)],
)
def test_few_unlikely_classes_say_little(numbers, share):
    swn = weighter()
    swn.rightness.unlikely.copy_(torch.tensor(numbers))
    assert swn.rightness.wrong_share.item() == pytest.approx(share)


def test_right_classes_are_never_suspected_for_want_of_unlikely_ones():
    swn = weighter()
    for decoys in range(0, 1000, 10):
        swn.rightness.unlikely.copy_(torch.tensor([0.0, decoys]))
        assert swn.rightness.wrong_share == 0


@pytest.mark.parametrize(
    "share, believed",
    [
        (0, 0),
        (0.1, 0),
        (0.15, 0.1),
        (0.2, 0.2),
        (0.3, 0.3),
        (0.4, 0.4),
        (0.5, 0.2),
        (0.6, 0),
        (1, 0),
    ],
)
def test_few_and_many_wrong_classes_are_not_believed(share, believed):
    swn = weighter()
    believe(swn, share)
    right = swn.rightness._probability(torch.zeros(2, 9))  # of a network that says 0: r is 1
    assert right.tolist() == pytest.approx([1 - believed] * 2)


def test_a_detector_that_can_not_tell_weights_nothing():
    generator = torch.Generator().manual_seed(1)
    annotated, decoys = 8 * torch.rand(2, 400, generator=generator)
    swn = weighter()
    _, weights, _ = train(swn, 60, annotated, decoys)
    w = weights.label[:400]
    assert torch.allclose(w, torch.ones_like(w), atol=0.02)


def test_the_weight_is_of_the_class_and_not_of_being_an_object():
    swn = weighter()
    losses, weights, label = train(swn, 80, *mixture(0.25))
    w = weights.label
    assert w[:100].mean() < 0.2 and w[100:400].mean() > 1.2
    total = losses.weighted(weights)["cls"] * len(w)
    expected = (losses.cls - label + w * label).sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    # In the detector the losses are functions of the scores; so is this in these two leaves.
    of_total = torch.autograd.grad(total, (losses.cls, label))
    of_expected = torch.autograd.grad(expected, (losses.cls, label))
    for actual, wanted in zip(of_total, of_expected, strict=True):
        assert torch.allclose(actual, wanted, atol=1e-5)


def test_an_object_is_judged_by_this_batch():
    swn = weighter()
    annotated, decoys = mixture(0.25)
    train(swn, 80, annotated, decoys)
    annotated[0], annotated[200] = 0.3, 9.0
    w = swn(samples(annotated, decoys)[1]).label
    assert w[0] > 1.1 and w[200] < 0.5


def test_without_gradients_nothing_is_learned():
    swn = weighter()
    train(swn, 3, *mixture(0.25))
    before = {name: value.clone() for name, value in swn.state_dict().items()}
    with torch.no_grad():
        swn(samples(*mixture(0.0, 7))[1])
    for name, value in swn.state_dict().items():
        assert torch.equal(before[name], value), name


def test_all_regions_of_an_object_have_its_weight():
    swn = weighter()
    train(swn, 80, *mixture(0.25))
    _, statistics, _ = samples([0.6, 6.0, 1.2], [6.0, 6.0, 6.0], objects=[200, 3, 200])
    w = swn(statistics).label
    assert w[0] == w[2] != w[1]


def test_decoys_are_other_classes_alike():
    swn = weighter()
    losses = torch.tensor([5.0, 1.0, 2.0]).repeat(4, 1)
    seen = []
    for iteration in (0, 1):
        _, statistics, _ = samples([5.0] * 4, [0.0] * 4)
        statistics.iteration = iteration
        seen.append(swn.rightness._look(statistics, losses))
        assert seen[-1][:, 0].tolist() == [5.0] * 4
        assert torch.equal(seen[-1][:, 2:4], torch.exp(-seen[-1][:, :2]))
    assert seen[0][:, 1].tolist() == [1.0, 2.0, 1.0, 2.0]
    assert seen[1][:, 1].tolist() == [2.0, 1.0, 2.0, 1.0]


def test_of_an_object_the_means_over_its_regions_are_seen():
    swn = weighter()
    _, statistics, _ = samples([1.0, 5.0, 3.0], [9.0, 7.0, 2.0], objects=[2**14 + 4, 0, 4])
    seen = swn.rightness._look(statistics, statistics.detail("label_losses"))
    assert seen[:, :2].tolist() == [[2.0, 5.5], [5.0, 7.0], [2.0, 5.5]]


def test_every_parameter_gets_a_gradient_without_positives_too():
    swn = weighter()
    _, statistics, _ = samples([], torch.zeros(0))
    weights = swn(statistics)
    weights.regularizers["loss_swn_cls"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in swn.parameters())
    assert swn.rightness.wrong_share == 0


def test_survives_losses_that_are_not_finite():
    swn = weighter()
    for bad in (math.nan, math.inf):
        _, statistics, _ = samples([bad, 0.1, 0.3, 0.2], [2.0, bad, 2.0, 2.0])
        statistics = replace(statistics, box_loss=(statistics.box_loss + 1) * bad)
        regularizers = swn(statistics).regularizers
        sum(regularizers.values()).backward()
        assert all(torch.isfinite(loss) for loss in regularizers.values())
        assert all(torch.isfinite(p.grad).all() for p in swn.parameters())
        assert torch.isfinite(swn.rightness.recent[-4:]).all()
        assert torch.isfinite(swn.rightness.wrong_share)


def test_swn_weights_classes_so_and_boxes_as_ever():
    annotated, decoys = mixture(0.25)
    alone = weighter()
    train(alone, 40, annotated, decoys)
    believe(alone, 0.25)
    joint, boxes = SWN(tasks=["cls", "box"], cls_averaging="per_object"), SWN(tasks=["box"])
    randomize(joint)
    joint.rightness.load_state_dict(alone.rightness.state_dict())
    boxes.load_state_dict(joint.state_dict(), strict=False)
    _, statistics, _ = samples(annotated, decoys)
    statistics.box_loss = torch.rand(len(statistics), 4) * statistics.is_foreground[:, None]
    weights, of_classes, of_boxes = (w(statistics) for w in (joint, alone, boxes))
    assert of_classes.label[:400].std() > 0.2 and of_boxes.box[:400].std() > 0.01
    assert torch.allclose(weights.label, of_classes.label, atol=1e-6)
    assert torch.allclose(weights.box, of_boxes.box)
    assert weights.regularizers.keys() == {"loss_swn_cls", "loss_swn_box"}
    assert weights.cls is None and weights.learned.keys() == {"label", "box"}


def test_another_data_set_is_begun_as_the_first_was():
    swn = weighter()
    train(swn, 40, *mixture(0.25))
    assert swn.rightness.wrong_share > 0.2
    swn.rightness.forget()
    new = weighter().rightness
    for name, value in swn.rightness.named_buffers():
        assert torch.equal(value, new.get_buffer(name)), name
    assert swn.rightness.wrong_share == 0


def test_of_a_large_batch_samples_of_all_images_are_learned_from():
    swn = weighter()
    swn(samples(torch.arange(2000.0), torch.ones(2000))[1])
    seen = swn.rightness.recent[:, 0]
    assert seen[0] == 0 and seen[-1] == 1999
    assert 3 <= seen.diff().min() and seen.diff().max() <= 4


@pytest.mark.parametrize("name", ["object", "gt_class", "label_losses"])
def test_what_a_detector_does_not_tell_is_named(name):
    _, statistics, _ = samples([0.0], [1.0])
    del statistics.details[name]
    for swn in (weighter(), SWN()):
        with pytest.raises(UserError, match=f"tell the {name} .* or take SWN without cls"):
            swn(statistics)


def test_a_single_class_is_right():
    swn = weighter()
    for _ in range(3):
        _, statistics, _ = samples([0.0] * 4, [0.0] * 4)
        statistics.details["label_losses"] = lambda: torch.zeros(4, 1)
        weights = swn(statistics)
        sum(weights.regularizers.values()).backward()
    assert (weights.label == 1).all()
    assert all(torch.isfinite(p.grad).all() for p in swn.parameters())
