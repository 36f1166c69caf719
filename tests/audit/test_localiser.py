"""What localisers learn from annotations, and what they make of others."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from swn_d2.audit import localiser as localiser_module
from swn_d2.audit import placements as placements_module
from swn_d2.audit.annotations import Annotations
from swn_d2.audit.appearance import as_tensor, bottom_up, crop
from swn_d2.audit.contrasts import Placements, interpolate, mirror_sides, rate
from swn_d2.audit.localiser import (
    Localiser,
    new_localiser,
    places_in,
    train_localiser,
    windows_around,
)
from swn_d2.audit.misplaced_boxes import MisplacedBoxes, find_unexpected_boxes
from swn_d2.audit.placements import _placed, gather_placements, judge_placements
from swn_d2.audit.shares import Estimate
from swn_d2.audit.surprise import Told, surprise, surprise_of_class, surprise_of_told
from swn_d2.errors import UserError
from tests.tiny import tiny_config, tiny_model

from .synthetic import SIZE, annotations

NUM_PICTURES, PER_PICTURE = 40, 4


@pytest.fixture(scope="module", autouse=True)
def small():
    """Smaller crops than a photograph takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(localiser_module, "_SIDE", 64)
        patch.setattr(placements_module, "_FEWEST_TO_LEARN_ON", 0)
        yield


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Rectangles on noise, bright or dark ones, of which three in ten are annotated with sides that
    are moved, and some as of the other class; (N, 4) where they are, and (N,) which of them are the
    former, and which the latter."""
    folder, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    true = []
    for i in range(NUM_PICTURES):
        pixels = rng.integers(90, 160, (SIZE, SIZE, 3)).astype(np.uint8)
        for j in range(PER_PICTURE):
            x, y = np.array([j % 2, j // 2]) * SIZE // 2 + rng.integers(15, 30, 2)
            width, height = rng.integers(30, 65, 2)
            pixels[y : y + height, x : x + width] += (90, 166)[len(true) % 2]
            true.append((x, y, x + width, y + height))
        Image.fromarray(pixels).save(folder / f"{i}.png")
    true, wrong = np.array(true, np.float32), rng.random(len(true)) < 0.3
    sizes = np.tile(true[:, 2:] - true[:, :2], 2)
    boxes = true + rng.uniform(-0.25, 0.25, sizes.shape) * sizes * wrong[:, None]
    image, classes = np.arange(len(true)) // PER_PICTURE, np.arange(len(true)) % 2
    of_other = rng.random(len(true)) < 0.1
    found = annotations(boxes, np.where(of_other, 1 - classes, classes), image=image)
    return Annotations(found.file, folder, found.content), true, wrong, of_other


@pytest.fixture(scope="module")
def model():
    return tiny_model(tiny_config("MODEL.BACKBONE.FREEZE_AT", 2)).eval()


@pytest.fixture(scope="module")
def placements(scenes, model):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(localiser_module, "_EPOCHS", 16)  # of few objects, by a random backbone
        return gather_placements(model, scenes[0], "BGR")


def test_moved_sides_are_found(scenes, placements):
    data, true, wrong, _ = scenes
    own, *of_decoys = placements.contrasts.sum(axis=-1).T
    assert roc_auc_score(wrong, -own) > 0.9 and own.mean() > np.mean(of_decoys) + 1
    before, after = (np.abs(boxes - true)[wrong] for boxes in (data.boxes, placements.located))
    assert after.mean() < 0.6 * before.mean()
    found = find_unexpected_boxes(placements, data.image)
    assert roc_auc_score(wrong, found.suspicion) > 0.9
    assert 0.5 * wrong.mean() < found.share.value < 1.5 * wrong.mean()
    assert 0.6 * wrong.sum() < found.suspicion.sum() < 1.4 * wrong.sum()
    assert found.suggestion is placements.located


def test_other_classes_are_found(scenes, placements):
    data, _, _, of_other = scenes
    np.testing.assert_allclose(np.exp(placements.log_probs).sum(axis=1), 1, rtol=1e-5)
    own = placements.log_probs[np.arange(len(data.ids)), data.classes]
    assert roc_auc_score(of_other, -own) > 0.95


def test_nothing_else_changes_and_twice_is_the_same(scenes, model, monkeypatch):
    monkeypatch.setattr(localiser_module, "_EPOCHS", 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    gone_through = []

    def progress(items, what):
        gone_through.append((what, len(items)))
        return items

    first = gather_placements(model, scenes[0], "BGR", progress=progress)
    assert torch.get_rng_state().equal(torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert all(model.state_dict()[key].equal(value) for key, value in before.items())
    assert not model.training
    learns = "localiser {} of 2 learns what objects are, and where"
    steps = NUM_PICTURES * PER_PICTURE // 2 // 16
    again = "localiser {} of 2 learns on from what the other says"
    assert gone_through == [
        (learns.format(1), steps),
        (learns.format(2), steps),
        ("localisers judge the annotations", NUM_PICTURES),
        (again.format(1), steps // 2),
        (again.format(2), steps // 2),
        ("localisers judge the boxes again", NUM_PICTURES),
    ]
    torch.rand(3)
    second = gather_placements(model, scenes[0], "BGR")
    assert (first.contrasts == second.contrasts).all()
    assert (first.located == second.located).all()
    assert (first.log_probs == second.log_probs).all()


def test_no_localiser_judges_what_it_has_learned_from(scenes, model, monkeypatch):
    data, learned, judged, times = scenes[0], {}, [], []

    def note_learned(localiser, model, annotations, rows, *args, **kwargs):
        times.append(localiser)
        train_localiser(localiser, model, annotations, rows, *args, **kwargs)
        learned.setdefault(localiser, set()).update(annotations.image[rows])

    def note_judged(localiser, picture, placed, *rest):
        image = int(data.image[(data.boxes == placed[0, 0]).all(axis=1)][0])
        judged.append((localiser, image))
        return judge_placements(localiser, picture, placed, *rest)

    monkeypatch.setattr(localiser_module, "_MOST_CROPS", 1)
    monkeypatch.setattr(placements_module, "train_localiser", note_learned)
    monkeypatch.setattr(placements_module, "judge_placements", note_judged)
    gather_placements(model, data, "BGR")
    assert len(learned) > 1 and {image for _, image in judged} == set(range(NUM_PICTURES))
    assert [times.count(localiser) for localiser in learned] == [2, 2]
    assert all(image not in learned[localiser] for localiser, image in judged)


def test_the_backbone_learns_as_far_as_the_config_lets_it(scenes, model, monkeypatch):
    monkeypatch.setattr(localiser_module, "_MOST_CROPS", 64)
    rows = np.arange(len(scenes[0].ids))
    localiser = new_localiser(model, 2, seed=0)
    train_localiser(localiser, model, scenes[0], rows, "BGR", seed=0)
    old, new = bottom_up(model).state_dict(), localiser.backbone.state_dict()
    changed = {key for key in old if not old[key].equal(new[key])}
    trainable = {key for key, p in bottom_up(model).named_parameters() if p.requires_grad}
    # No statistics, and nothing frozen.
    assert changed == trainable and not any(key.startswith("stem") for key in changed)


def test_the_number_of_crops_is_bounded(scenes, model, monkeypatch):
    monkeypatch.setattr(localiser_module, "_MOST_CROPS", 64)
    forward, seen = Localiser.forward, []

    def note(localiser, crops, classes):
        seen.append(len(crops))
        return forward(localiser, crops, classes)

    monkeypatch.setattr(Localiser, "forward", note)
    localiser = new_localiser(model, 2, seed=0)
    train_localiser(localiser, model, scenes[0], np.arange(100), "BGR", seed=0)
    assert sum(seen) == 64
    told = Told(torch.zeros(160), torch.ones(160, 4, 41))
    train_localiser(localiser, model, scenes[0], np.arange(100), "BGR", told, seed=0)
    assert sum(seen) == 96  # half as many, to learn on


def test_every_object_is_learned_from_as_often_a_few_of_a_picture_together():
    image = np.repeat([0, 1, 2, 3], [50, 3, 57, 40])
    some = np.flatnonzero(np.arange(150) % 10)
    data = annotations(np.tile([10, 10, 50, 50], (150, 1)), np.zeros(150, int), image=image)
    order = localiser_module._endless(data, some, np.random.default_rng(0))
    passes = np.array(list(itertools.islice(order, 4 * len(some)))).reshape(4, -1)
    assert (np.sort(passes, axis=1) == some).all()
    for one in passes:
        changes = np.flatnonzero(np.diff(image[one])) + 1
        assert 8 <= max(len(part) for part in np.split(one, changes)) < 40
        assert (np.diff(one) < 0).sum() > 40  # nor in the order of the file
    assert (passes[0] != passes[1]).any()


def test_large_photographs_are_read_no_finer_than_they_are_looked_at(tmp_path, model, monkeypatch):
    coarse = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # it lies on its side
    photograph = Image.fromarray(coarse).resize((1600, 1200), Image.Resampling.BICUBIC)
    photograph.save(tmp_path / "large.jpg", quality=95, exif=exif)
    content = {
        "images": [{"id": 1, "file_name": "large.jpg", "width": 1200, "height": 1600}],
        "annotations": [],
        "categories": [{"id": 1, "name": "one"}],
    }
    data = Annotations(tmp_path / "large.json", tmp_path, content)
    shapes = []
    monkeypatch.setattr(
        localiser_module,
        "as_tensor",
        lambda *args: shapes.append(args[1].shape) or as_tensor(*args),
    )
    whole = as_tensor(model, data.read_picture(0, "BGR"))
    for windows, shape in (
        ([[50, 100, 1150, 1500], [300, 0, 900, 1300.0]], (400, 300, 3)),
        ([[50, 100, 1150, 1500], [400, 500, 600, 900.0]], (1600, 1200, 3)),
    ):
        windows = torch.tensor(windows)
        crops = localiser_module._read_crops(model, data, 0, windows, "BGR")
        assert shapes[-1] == shape
        expected = crop(whole, windows, localiser_module._SIDE)
        assert (crops - expected).abs().mean() < 0.05 * expected.abs().mean()
    crops = localiser_module._read_crops(model, data, 0, torch.tensor([[9, 9, 1e7, 1e7]]), "BGR")
    assert crops.isfinite().all()


def test_a_decoy_is_rated_as_an_annotation_would_be(scenes, model):
    data = scenes[0]
    localiser = Localiser(bottom_up(model), 2)
    picture = as_tensor(model, data.read_picture(0, "BGR"))
    placed = np.repeat(data.boxes[:2, None], 4, axis=1)
    placed[:, 1] += 3
    placed[:, 3] += (-4, 2, 6, 5)
    contrasts, _, located, _ = judge_placements(
        localiser, picture, placed, data.classes[:2], np.random.default_rng(0)
    )
    assert contrasts.shape == (2, 4, 4) and located.shape == (2, 4)
    np.testing.assert_array_equal(contrasts[:, 0], contrasts[:, 2])  # the same box
    assert (contrasts[:, 0] != contrasts[:, 1]).all()


def test_contrasts_of_distributions_that_are_known():
    box, other = np.array([20, 30, 70, 110], np.float32), np.array([24, 26, 66, 120], np.float32)
    windows = torch.tensor([[[0.0, 0, 100, 160], [-10, 5, 95, 150]]])
    middles = (torch.arange(64) + 0.5) / 64
    peaks = torch.tensor([22.0, 28, 68, 113])
    sizes = (windows[0, :, 2:] - windows[0, :, :2]).repeat(1, 2)
    places = (peaks - windows[0, :, :2].repeat(1, 2)) / sizes
    spread = 8 / sizes  # of normal distributions, in widths of the window
    log_probs = (-(((middles - places[..., None]) / spread[..., None]) ** 2) / 2).log_softmax(-1)
    for pair in ((box, other), (other, box)):  # each as the annotated one and as the decoy
        placed = torch.tensor(np.stack(pair)[None])
        contrasts, near, located = rate(placed, windows, log_probs[None])
        annotated, normal = torch.from_numpy(pair[0]), torch.distributions.Normal(peaks, 8.0)
        reach = 0.2 * (annotated[2:] - annotated[:2]).repeat(2)
        there = (torch.linspace(-1, 1, near.shape[-1]) * reach[:, None] + annotated[:, None]).T
        of_boxes = normal.log_prob(there).exp().T * (reach / 0.2)[:, None]
        torch.testing.assert_close(near[0], of_boxes, rtol=0.02, atol=0.02)
        half = (normal.cdf(annotated - reach) + normal.cdf(annotated + reach)) / 2
        torch.testing.assert_close(located[0], normal.icdf(half), rtol=0, atol=0.9)
        for rated, of_box in zip(contrasts[0], map(torch.from_numpy, pair), strict=True):
            width = (of_box[2:] - of_box[:2]).repeat(2)
            reach = 0.2 * width
            mean = (normal.cdf(of_box + reach) - normal.cdf(of_box - reach)) / (2 * reach)
            floor = 0.05 / (torch.from_numpy(pair[0][2:] - pair[0][:2])).repeat(2)
            expected = ((normal.log_prob(of_box).exp() + floor) / (mean + floor)).log()
            torch.testing.assert_close(rated, expected, rtol=0, atol=0.03)


def test_many_objects_in_a_picture(scenes, model, monkeypatch):
    data = scenes[0]
    localiser = Localiser(bottom_up(model), 2)
    picture = as_tensor(model, data.read_picture(0, "BGR"))
    placed = np.repeat(data.boxes[:3, None], 4, axis=1)
    looked, look = [], localiser.look

    def note(*args):
        looked.append(look(*args))
        return looked[-1]

    monkeypatch.setattr(localiser, "look", note)
    results = []
    for at_once in (64, 5):
        monkeypatch.setattr(placements_module, "_AT_ONCE", at_once)
        rng = np.random.default_rng(0)
        results.append(judge_placements(localiser, picture, placed, data.classes[:3], rng))
    assert [len(of_sides) for of_sides, _ in looked] == [12, 5, 5, 2]
    assert all(len(column) == 3 for column in results[0])
    for together, in_parts in zip(*results, strict=True):
        np.testing.assert_allclose(together, in_parts, rtol=1e-3, atol=1e-3)
    means = looked[0][1].unflatten(0, (3, 4)).mean(dim=1).softmax(dim=-1).log()
    np.testing.assert_allclose(results[0].log_probs, means, atol=1e-5)


def test_a_mirror_image_is_told_as_it_is(scenes, model):
    localiser = Localiser(bottom_up(model), 2)
    picture = as_tensor(model, scenes[0].read_picture(0, "BGR"))
    width = picture.shape[-1]
    window = torch.tensor([[20.0, 30.0, 90.0, 150.0]])
    other = torch.tensor([[width - 90.0, 30.0, width - 20.0, 150.0]])
    one = torch.zeros(1, dtype=torch.long)
    shown = localiser.look(picture, window, one, torch.tensor([True]))
    plain = localiser.look(picture.flip(-1), other, one, torch.tensor([False]))
    torch.testing.assert_close(shown[1], plain[1], rtol=1e-3, atol=1e-3)
    shown, plain = shown[0][0], plain[0][0]
    for side, as_other in ((0, 2), (2, 0)):
        torch.testing.assert_close(shown[side], plain[as_other].flip(-1), rtol=1e-3, atol=1e-3)
    for side in (1, 3):
        torch.testing.assert_close(shown[side], plain[side], rtol=1e-3, atol=1e-3)


def test_windows_have_the_box_somewhere_in_them():
    boxes = np.tile(np.array([[10, 20, 110, 60], [50, 50, 50, 50]], np.float32), (500, 1))
    windows = windows_around(boxes, np.random.default_rng(0))
    places = places_in(torch.from_numpy(boxes), torch.from_numpy(windows)).numpy()
    assert 0 < places.min() and places.max() < 1
    left, _, right, _ = places[::2].T
    for of_edge in (left, 1 - right):  # everywhere alike
        numbers, _ = np.histogram(of_edge, bins=np.linspace(0.04, 0.42, 6))
        assert numbers.sum() == 500 and numbers.min() > 70
    assert abs(np.corrcoef(left, right)[0, 1]) < 0.15
    width, height = np.median(windows[::2, 2:] - windows[::2, :2], axis=0)
    assert height / width == pytest.approx(0.5, abs=0.05)  # of a box that is 0.4 times as high


def test_a_box_that_lies_elsewhere_teaches_little():
    places = torch.tensor([[0.25, 0.3, 0.75, 0.7]])
    moved = places + torch.tensor([0.08, -0.06, -0.07, 0.06])  # within a fifth of the box
    bins = torch.arange(64) + 0.5
    unsure = torch.zeros(1, 4, 64)
    sure = -0.5 * ((bins - 64 * places[..., None]) / 2) ** 2

    def pull(logits, annotated):
        """How much more likely the places get at which the sides are annotated, in a small step."""
        logits = logits.clone().requires_grad_()
        value = surprise(logits.log_softmax(dim=-1), annotated)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        near = (bins - 64 * annotated[..., None]).abs() < 2
        return value.item(), -(gradient * near).sum().item()

    surprises, pulls = zip(
        *(pull(x, at) for x in (unsure, sure) for at in (places, moved)), strict=True
    )
    assert surprises[2] < surprises[3] < surprises[0] == pytest.approx(surprises[1], abs=0.05)
    # It takes nearly all from one that would surprise much, but nothing where little is known.
    assert pulls[0] == pytest.approx(pulls[1], rel=0.05) and 0 < pulls[3] < 0.15 * pulls[1]
    # What a box teaches before anything is known, in shares of what it would if it were trusted.
    assert pulls[0] == pytest.approx(0.4, abs=0.1)


def pulled(places, told, steps=300):
    """(n, 4) where sides are expected after steps of what is told of boxes, in the mean."""
    logits = torch.zeros(*places.shape, 64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        surprise_of_told(logits.log_softmax(dim=-1), places, told).sum().backward()
        optimizer.step()
    return logits.softmax(dim=-1).detach() @ ((torch.arange(64) + 0.5) / 64)


def test_of_a_box_that_somebody_doubts_it_is_learned_where_he_says_that_it_is():
    places = torch.tensor([[0.2, 0.3, 0.8, 0.6]]).repeat(3, 1)
    near = torch.zeros(3, 4, 41)
    near[..., 24:37] = 1  # about half of the way to where a side may be at most
    expected = pulled(places, Told(torch.tensor([0.0, 1.0, 0.5]), near))
    moved = torch.tensor([0.06, 0.03, 0.06, 0.03])  # tenths of the width and of the height
    torch.testing.assert_close(expected[0], places[0], rtol=0, atol=0.01)
    torch.testing.assert_close(expected[1], places[0] + moved, rtol=0, atol=0.01)
    torch.testing.assert_close(expected[2], places[0] + moved / 2, rtol=0, atol=0.01)


def test_what_is_told_of_odd_boxes_can_be_learned_from():
    places = torch.tensor([[0.5, 0.5, 0.5, 0.5], [-0.2, 0.1, 1.3, 0.1], [0.2, 0.3, 0.8, 0.6]])
    logits = torch.zeros(3, 4, 64, requires_grad=True)
    told = Told(torch.ones(3), torch.zeros(3, 4, 41))  # nowhere near
    value = surprise_of_told(logits.log_softmax(dim=-1), places, told)
    value.sum().backward()
    assert value.isfinite().all() and logits.grad.isfinite().all()


def test_what_was_told_is_of_the_boxes_that_are_shown_and_of_their_mirror_images(
    scenes, model, monkeypatch
):
    data, seen = scenes[0], []
    near = np.random.default_rng(0).random((len(data.ids), 4, 41), dtype=np.float32)
    doubt = np.arange(len(data.ids)) / len(data.ids)

    def note_shown(boxes, rng):
        windows = windows_around(boxes, rng)
        seen.append([(data.boxes == box).all(axis=1).argmax() for box in boxes])
        return windows

    def note_told(log_probs, places, told):
        seen.append((places, told))
        return surprise_of_told(log_probs, places, told)

    monkeypatch.setattr(localiser_module, "_MOST_CROPS", 64)
    monkeypatch.setattr(localiser_module, "windows_around", note_shown)
    monkeypatch.setattr(localiser_module, "surprise_of_told", note_told)
    all_of_it = Told(torch.from_numpy(doubt), torch.from_numpy(near))
    localiser, rows = new_localiser(model, 2, seed=0), np.arange(len(data.ids))
    train_localiser(localiser, model, data, rows, "BGR", all_of_it, seed=0)
    assert len(seen) == 4  # of two batches
    mirrored = []
    for shown, (_, told) in zip(seen[::2], seen[1::2], strict=True):
        assert told.doubt.tolist() == pytest.approx(doubt[shown])
        for of_box, row in zip(told.near, shown, strict=True):
            upright = torch.from_numpy(near[row])
            mirrored.append(not of_box.equal(upright))
            assert not mirrored[-1] or of_box.equal(mirror_sides(upright[None])[0])
    assert 0 < sum(mirrored) < len(mirrored)


def test_sides_in_a_mirror_image():
    values = torch.arange(12.0).reshape(1, 4, 3)
    mirrored = mirror_sides(values)
    assert mirrored[0].tolist() == [[8, 7, 6], [3, 4, 5], [2, 1, 0], [9, 10, 11]]


@pytest.mark.parametrize("second", ["known", "unknown", "diverged"])
def test_each_localiser_learns_on_from_what_the_other_one_says(scenes, model, monkeypatch, second):
    """Of what it learns from itself it is told by who has not learned from that."""
    data, taught, found = scenes[0], [], []

    def note(localiser, model, annotations, rows, input_format, told, *, seed, **_):
        taught.append((localiser, rows, told, seed))

    def judge(localiser, picture, placed, classes, rng):
        """Decoys are told from annotated boxes, in the second round maybe no longer."""
        which, is_second = float(localiser is taught[0][0]), len(taught) > 2
        n, near = len(placed), np.full((len(placed), 4, 41), which, np.float32)
        sure = 0.0 if second == "unknown" and is_second else 2.0
        contrasts = rng.normal(size=placed.shape) + sure * (placed[:, :1] == placed)
        if second == "diverged" and is_second:
            contrasts *= np.nan
        log_probs = np.full((n, 2), -which - len(taught), np.float32)
        return Placements(contrasts, near, placed[:, 0] + is_second, log_probs)

    def find(*args):
        found.append(find_unexpected_boxes(*args))
        return found[-1]

    monkeypatch.setattr(placements_module, "train_localiser", note)
    monkeypatch.setattr(placements_module, "judge_placements", judge)
    monkeypatch.setattr(placements_module, "find_unexpected_boxes", find)
    result = gather_placements(model, data, "BGR")
    assert [told is None for _, _, told, _ in taught] == [True, True, False, False]
    assert len({seed for *_, seed in taught}) == 4  # in another order, in other windows
    for k, (localiser, rows, told, _) in enumerate(taught[2:]):
        assert localiser is taught[k][0] and (rows == taught[k][1]).all()
        assert told.near[rows].eq(1 - (k == 0)).all()
        assert (told.doubt.numpy() == found[0].suspicion).all() and told.doubt.std() > 0
    # Boxes as they are told in the end, if they are, and classes as at first, by each of half.
    assert (result.located == data.boxes + (second == "known")).all()
    assert sorted(np.unique(result.log_probs)) == [-3, -2]


@pytest.mark.parametrize("why", ["unknown", "too few"])
def test_there_may_be_no_second_round(scenes, model, monkeypatch, why):
    data, taught = scenes[0], []
    unknown = MisplacedBoxes.unknown(data.boxes)
    if why == "too few":
        unknown = replace(unknown, share=Estimate(0.1, 0.0, 0.2))
        monkeypatch.setattr(placements_module, "_FEWEST_TO_LEARN_ON", len(data.ids) + 1)
    monkeypatch.setattr(localiser_module, "_MOST_CROPS", 1)
    monkeypatch.setattr(placements_module, "find_unexpected_boxes", lambda *_: unknown)
    progress = lambda items, what: taught.append(what) or items  # noqa: E731
    gather_placements(model, data, "BGR", progress=progress)
    assert len(taught) == 3


def test_an_object_of_another_class_teaches_little():
    def pull(logits):
        """How far the annotated class, the first, gets more likely in a small step."""
        logits = torch.tensor([logits]).requires_grad_()
        value = surprise_of_class(logits.log_softmax(dim=-1), torch.tensor([0]))
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        return value.item(), -gradient[0, 0].item()

    (unsure, much), (sure_of_it, _), (sure_of_other, little) = map(
        pull, ([0.0, 0, 0, 0], [9.0, 0, 0, 0], [0.0, 9, 0, 0])
    )
    assert sure_of_it < unsure < sure_of_other < 3
    # It is one of four, right with a probability of 0.7: as likely as before anything is known.
    assert unsure == pytest.approx(np.log(4)) and much == pytest.approx(0.7 * 0.75)
    assert 0 < little < 0.01


def test_a_narrow_box_is_no_likelier_badly_placed():
    places = torch.tensor([[0.2, 0.2, 0.8, 0.8], [0.2, 0.45, 0.8, 0.55]])
    unsure = torch.full((2, 4, 64), 1 / 64).log()
    wide, narrow = surprise(unsure, places)
    assert wide.item() == pytest.approx(narrow.item(), abs=0.01)


def test_sides_are_moved_by_a_share_of_the_width_or_of_the_height():
    places = torch.tensor([[0.2, 0.45, 0.8, 0.55]])  # six times as wide as high
    sure = -0.5 * ((torch.arange(64) + 0.5 - 64 * places[..., None]) / 2) ** 2
    along, across = (
        surprise(sure.log_softmax(dim=-1), places + torch.tensor(move))
        for move in ([0.1, 0.0, 0.1, 0.0], [0.0, 0.1, 0.0, 0.1])
    )
    assert along < across - 0.5


def test_a_side_beyond_the_window_or_without_size_can_be_learned_from():
    places = torch.tensor([[0.5, 0.5, 0.5, 0.5], [-0.2, 0.1, 1.3, 0.1]])
    logits = torch.zeros(2, 4, 64, requires_grad=True)
    value = surprise(logits.log_softmax(dim=-1), places)
    value.sum().backward()
    assert value.isfinite().all() and logits.grad.isfinite().all()


def test_between_values():
    values = torch.tensor([[1.0, 3.0, 2.0]])
    at = torch.tensor([[-1.0, 0.0, 0.5, 1.25, 2.0, 9.0]])
    expected = torch.tensor([[1.0, 1.0, 2.0, 2.75, 2.0, 2.0]])
    torch.testing.assert_close(interpolate(values, at), expected)


def test_decoys_are_in_the_picture(scenes):
    content = scenes[0].content
    rows = [{**a, "bbox": [0, 20, SIZE, 60]} for a in content["annotations"]]
    data = Annotations(scenes[0].file, scenes[0].image_root, {**content, "annotations": rows})
    placed = _placed(data)
    assert (placed[:, 0] == data.boxes).all()
    xs = placed[:, 1:, 0::2]
    assert xs.min() == 0 and xs.max() == SIZE and 0 < (xs % SIZE > 0).mean() < 0.7


def test_a_single_picture_says_nothing(scenes, model):
    content = scenes[0].content
    rows = [a for a in content["annotations"] if a["image_id"] == 0]
    data = Annotations(scenes[0].file, scenes[0].image_root, {**content, "annotations": rows})
    result = gather_placements(model, data, "BGR")
    assert not result.contrasts.any() and (result.located == data.boxes).all()
    assert not find_unexpected_boxes(result, data.image).suspicion.any()
    np.testing.assert_allclose(np.exp(result.log_probs), 0.5, rtol=1e-6)


def test_a_training_that_diverges(scenes, monkeypatch):
    monkeypatch.setattr(localiser_module, "_MOST_CROPS", 1)
    model = tiny_model(tiny_config()).eval()
    with torch.no_grad():
        for parameter in bottom_up(model).parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite .* leave the localisers out with --quick"):
        gather_placements(model, scenes[0], "BGR")
