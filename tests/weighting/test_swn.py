"""SWN against Eq. 9 of the paper, computed here by hand, sample by sample."""

import math

import pytest
import torch

from swn_d2.errors import UserError
from swn_d2.weighting import SWN, SampleLosses, SampleStatistics

from .conftest import make_samples, randomize

LAMBDAS = {"cls": 0.5, "box": 0.3, "mask": 0.2}
PAPER = dict(
    lambdas=LAMBDAS,
    exponent=2.0,
    box_loss_feature="sum",
    heads="separate",
    init="normal",
    cls_averaging="per_group",
    regularizer_divisor="loss",
    relative=False,
)
AUTHORS = dict(
    lambdas=LAMBDAS,
    exponent=1.0,
    box_loss_feature="columns",
    heads="shared",
    init="normal",
    cls_averaging="per_group",
    regularizer_divisor="group",
    relative=False,
)
AUTHORS_RETINANET = {**AUTHORS, "cls_averaging": "all"}
RELATIVE = dict(lambdas=LAMBDAS, cls_averaging="none")
READINGS = {
    "paper": PAPER,
    "authors": AUTHORS,
    "authors, RetinaNet": AUTHORS_RETINANET,
    "relative": RELATIVE,
    "relative, exponent 2": {**RELATIVE, "exponent": 2.0},
}
EDGES = {
    "no positives": [False] * 6,
    "no negatives": [True] * 4,
    "no samples": [],
    "one positive": [True],
}
ALL_READINGS = pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)


def total_loss(losses, weights):
    return sum(losses.weighted(weights).values()) + sum(weights.regularizers.values())


def clamped_m(weighter, statistics, task):
    return weighter.network(statistics)[task].clamp(-weighter.clamp, weighter.clamp).tolist()


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("name", ["paper", "authors"])
def test_reading_is_eq_9(samples, name):
    losses, statistics = samples
    reading = READINGS[name]
    weighter = randomize(SWN(has_mask=True, **reading))
    weights = weighter(statistics)
    actual = {**losses.weighted(weights), **weights.regularizers}

    k = reading["exponent"]
    foreground = statistics.is_foreground.tolist()
    positives = [i for i, fg in enumerate(foreground) if fg]
    negatives = [i for i, fg in enumerate(foreground) if not fg]
    m_cls = clamped_m(weighter, statistics, "cls")
    m_pos, m_neg = mean([m_cls[i] for i in positives]), mean([m_cls[i] for i in negatives])
    expected = {
        "cls": sum(
            math.exp(-k * (m_pos if fg else m_neg)) * loss
            for fg, loss in zip(foreground, losses.cls.tolist(), strict=True)
        )
        / 12
    }
    if name == "paper":
        expected["loss_swn_cls"] = 0.5 * (5 * m_pos + 7 * m_neg) / 12
    else:
        expected["loss_swn_cls"] = 0.5 * (m_pos + m_neg)
    for task, task_losses, normalizer in (
        ("box", losses.box.sum(dim=1).tolist(), 12),
        ("mask", losses.mask.tolist(), 5),
    ):
        m = clamped_m(weighter, statistics, task)
        expected[task] = sum(math.exp(-k * m[i]) * task_losses[i] for i in positives) / normalizer
        divisor = normalizer if name == "paper" else 5
        expected[f"loss_swn_{task}"] = LAMBDAS[task] * sum(m[i] for i in positives) / divisor

    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        # float32 sums of a dozen terms against float64: a few units in the seventh digit.
        assert actual[key].item() == pytest.approx(value, rel=1e-5), key


@ALL_READINGS
def test_gradients_are_those_of_eq_9(reading):
    """Central differences, in float64, of the objective as a function of the network's m."""
    losses, statistics = make_samples([True] * 3 + [False] * 4, has_mask=True, seed=3)
    weighter = randomize(SWN(has_mask=True, **reading)).eval()
    weights = weighter(statistics)
    m = {task: weighter.network(statistics)[task] for task in weighter.tasks}
    parameters = list(weighter.network.parameters())
    # Autograd gives d objective / d parameters; the same through the numerical d objective / d m.
    actual = torch.autograd.grad(total_loss(losses, weights), parameters, allow_unused=True)

    def objective(values):
        return eq_9(weighter, losses, statistics, values)

    gradient_of_m = {}
    step = 1e-6
    for task in weighter.tasks:
        gradient_of_m[task] = torch.zeros(len(statistics))
        for i in range(len(statistics)):
            sides = []
            for sign in (1, -1):
                moved = {t: v.detach().double().clone() for t, v in m.items()}
                moved[task][i] += sign * step
                sides.append(objective(moved))
            gradient_of_m[task][i] = (sides[0] - sides[1]) / (2 * step)
    expected = torch.autograd.grad(
        [m[task] for task in weighter.tasks],
        parameters,
        [gradient_of_m[task] for task in weighter.tasks],
        allow_unused=True,
    )
    for a, e in zip(actual, expected, strict=True):
        # Central differences err by about step^2 and float64's rounding / step; float32 autograd
        # by 1e-6 of the largest term.
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-6)


def eq_9(weighter, losses, statistics, m):
    """What the network minimises, in float64: Eq. 9, or its relative form, from unclamped m."""
    total = 0.0
    foreground = statistics.is_foreground
    for task, values in m.items():
        values = values.clamp(-weighter.clamp, weighter.clamp)
        groups = [foreground, ~foreground] if task == "cls" else [foreground]
        if task == "cls" and weighter.cls_averaging == "all":
            groups = [torch.ones_like(foreground)]
        task_losses = (losses.box.sum(dim=1) if task == "box" else getattr(losses, task)).double()
        task_losses = task_losses.detach()
        normalizer = losses.normalizers[task]
        for group in groups:
            mg, lg = values[group], task_losses[group]
            if task == "cls" and weighter.cls_averaging != "none":
                mg = mg.mean().expand_as(mg)
            w = torch.exp(-weighter.exponent * mg)
            size = len(mg)
            divisor = size if weighter.regularizer_divisor == "group" else normalizer
            lam = LAMBDAS[task]
            if weighter.relative:
                relative_losses = lg / lg.mean()
                total += (
                    lam * ((w * relative_losses).sum() / weighter.exponent + mg.sum()) / divisor
                )
            else:
                total += (w * lg).sum() / normalizer + lam * mg.sum() / divisor
    return float(total)


@ALL_READINGS
def test_detector_gradient_is_the_weight(samples, reading):
    losses, statistics = samples
    weighter = randomize(SWN(has_mask=True, **reading))
    weights = weighter(statistics)
    total_loss(losses, weights).backward()
    torch.testing.assert_close(losses.cls.grad, weights.cls.detach() / 12)
    foreground = statistics.is_foreground
    torch.testing.assert_close(
        losses.box.grad[foreground], weights.box.detach()[foreground, None].expand(-1, 4) / 12
    )
    torch.testing.assert_close(losses.mask.grad[foreground], weights.mask.detach()[foreground] / 5)


@ALL_READINGS
def test_starts_as_the_plain_detector(samples, reading):
    losses, statistics = samples
    weights = SWN(has_mask=True, **reading)(statistics)
    plain = {"cls": losses.cls.sum() / 12, "box": losses.box.sum() / 12}
    plain["mask"] = losses.mask.sum() / 5
    for task, loss in losses.weighted(weights).items():
        assert loss.item() == pytest.approx(plain[task].item(), rel=1e-5)
    assert all(abs(r.item()) < 1e-6 for r in weights.regularizers.values())


@pytest.mark.parametrize("is_foreground", EDGES.values(), ids=EDGES)
@ALL_READINGS
def test_edges_keep_every_parameter_in_the_graph(reading, is_foreground):
    losses, statistics = make_samples(is_foreground, has_mask=True)
    weighter = randomize(SWN(has_mask=True, **reading))
    loss = total_loss(losses, weighter(statistics))
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in weighter.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
@ALL_READINGS
def test_non_finite_statistics(reading, value):
    _, statistics = make_samples([True] * 3 + [False] * 3)
    for tensor in (statistics.cls_loss, statistics.box_loss, statistics.iou, statistics.prob):
        tensor[0] = value
    weighter = randomize(SWN(**reading))
    weights = weighter(statistics)
    (weights.cls.sum() + weights.box.sum() + sum(weights.regularizers.values())).backward()
    assert torch.isfinite(weights.cls).all() and torch.isfinite(weights.box).all()
    for parameter in weighter.parameters():
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@ALL_READINGS
def test_autocast_changes_nothing(samples, reading, dtype):
    _, statistics = samples
    weighter = randomize(SWN(has_mask=True, **reading)).eval()
    expected = weighter(statistics)
    with torch.autocast("cpu", dtype=dtype):
        actual = weighter(statistics)
    assert actual.cls.dtype == torch.float32
    assert torch.equal(actual.cls, expected.cls) and torch.equal(actual.box, expected.box)


def test_statistics_are_detached_and_float32(samples):
    losses, statistics = samples
    half = SampleStatistics.of(
        SampleLosses(
            cls=losses.cls.bfloat16(), box=losses.box.bfloat16(), normalizers=losses.normalizers
        ),
        iou=statistics.iou,
        prob=statistics.prob,
        is_foreground=statistics.is_foreground,
    )
    assert half.cls_loss.dtype == half.box_loss.dtype == torch.float32
    assert not half.cls_loss.requires_grad and not half.box_loss.requires_grad


def test_clamp(samples):
    _, statistics = samples
    for sign in (1, -1):
        weighter = SWN(has_mask=True, **AUTHORS)
        with torch.no_grad():
            weighter.network.heads["shared"][-1].bias.fill_(sign * 50.0)
        weights = weighter(statistics)
        for w in (weights.cls, weights.box[statistics.is_foreground]):
            torch.testing.assert_close(w, torch.full_like(w, math.exp(-2.0 * sign)))


def test_smoothing_averages_m_not_w(samples):
    _, statistics = samples
    weighter = randomize(SWN(has_mask=True, **AUTHORS))
    weights = weighter(statistics)
    m = torch.tensor(clamped_m(weighter, statistics, "cls"))
    for group in (statistics.is_foreground, ~statistics.is_foreground):
        assert m[group].std() > 0.01  # else the average would show nothing
        expected = torch.exp(-m[group].mean()).expand(int(group.sum()))
        torch.testing.assert_close(weights.cls[group], expected)


def test_relative_weights_keep_the_total_loss_of_every_group(samples):
    losses, statistics = samples
    weights = randomize(SWN(has_mask=True, **RELATIVE))(statistics)
    foreground = statistics.is_foreground
    for task, loss, group in (
        ("cls", losses.cls, foreground),
        ("cls", losses.cls, ~foreground),
        ("box", losses.box.sum(dim=1), foreground),
        ("mask", losses.mask, foreground),
    ):
        w = getattr(weights, task)[group]
        assert w.std() > 0.01
        assert (w * loss[group]).sum().item() == pytest.approx(loss[group].sum().item(), rel=1e-5)


def test_relative_weights_do_not_depend_on_the_normalizer():
    """A detector may divide its loss by the number of its samples, or by that of its positives."""
    gradients = []
    for normalizer in (12.0, 0.1):
        losses, statistics = make_samples([True] * 5 + [False] * 7, normalizer=normalizer)
        weighter = randomize(SWN(**RELATIVE))
        total_loss(losses, weighter(statistics)).backward()
        gradients.append([p.grad.clone() for p in weighter.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_relative_weight_is_stationary_at_the_inverse_relative_loss():
    """Trained on fixed samples, w approaches mean(L) / L_i, up to the network's fit."""
    losses, statistics = make_samples([True] * 4, seed=1)
    torch.manual_seed(0)
    weighter = SWN(**RELATIVE)
    adam = torch.optim.Adam(weighter.parameters(), lr=1e-3)
    for _ in range(500):
        adam.zero_grad()
        total_loss(losses, weighter(statistics)).backward()
        adam.step()
    box_loss = losses.box.sum(dim=1).detach()
    w = torch.exp(-weighter.network(statistics)["box"]).detach()
    # Four samples and thousands of parameters: the fit is as good as Adam's last steps.
    torch.testing.assert_close(w, box_loss.mean() / box_loss, rtol=0.05, atol=0.0)


def test_strength_and_ease_in(samples):
    _, statistics = samples
    full = randomize(SWN(has_mask=True, **RELATIVE))(statistics).box
    eased = randomize(SWN(has_mask=True, strength=0.5, ease_in=(2, 6), **RELATIVE))
    # Iterations 0 and 1 are without weights, 5 is the first with all of the strength.
    for iteration, amount in enumerate([0, 0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5]):
        statistics.iteration = iteration
        weights = eased(statistics)
        torch.testing.assert_close(weights.box, 1 + amount * (full - 1))
        assert (weights.box >= 1 - amount).all()


@pytest.mark.parametrize("tasks", [["cls"], ["box"], ["cls", "box"]])
@pytest.mark.parametrize("heads", ["separate", "shared"])
def test_only_the_chosen_tasks_are_weighted(samples, tasks, heads):
    losses, statistics = samples
    options = {**AUTHORS, "tasks": tasks, "heads": heads}
    weighter = randomize(SWN(has_mask=True, **options))
    weights = weighter(statistics)
    for task in ("cls", "box", "mask"):
        assert (getattr(weights, task) is None) == (task not in tasks), task
    assert set(weights.regularizers) == {f"loss_swn_{task}" for task in tasks}
    total_loss(losses, weights).backward()
    assert all(p.grad is not None for p in weighter.parameters())


def test_a_detector_without_masks_has_no_mask_task():
    _, statistics = make_samples([True, False])
    weighter = SWN(has_mask=False, **AUTHORS)
    assert weighter.tasks == ("cls", "box")
    assert weighter(statistics).mask is None


def test_iou_type_box_loss_has_one_column():
    _, statistics = make_samples([True, True, False], box_loss_dim=1)
    for reading in READINGS.values():
        weights = randomize(SWN(box_loss_dim=1, **reading))(statistics)
        assert weights.box.shape == (3,)


@pytest.mark.parametrize(
    "argument, value, key",
    [
        ("lambdas", {"cls": -0.1, "box": 0.5, "mask": 0.5}, "LAMBDA_CLS"),
        ("exponent", 0.0, "EXPONENT"),
        ("clamp", -1.0, "CLAMP"),
        ("strength", 1.5, "STRENGTH"),
        ("ease_in", (5, 2), "EASE_IN"),
        ("ease_in", (0.5, 0.75), "EASE_IN"),
        ("ease_in", (5,), "EASE_IN"),
        ("box_loss_feature", "vector", "BOX_LOSS_FEATURE"),
        ("heads", "two", "HEADS"),
        ("init", "ones", "INIT"),
        ("cls_averaging", "both", "CLS_AVERAGING"),
        ("regularizer_divisor", "batch", "REGULARIZER_DIVISOR"),
        ("tasks", ["keypoints"], "TASKS"),
        ("tasks", ["mask"], "TASKS"),
    ],
)
def test_bad_arguments_name_their_key(argument, value, key):
    with pytest.raises(UserError, match=f"MODEL.SWN.{key}"):
        SWN(**{**RELATIVE, argument: value})


def test_lambdas_that_are_not_given():
    assert SWN(lambdas={"box": 0.3}).lambdas == {"cls": 0.5, "box": 0.3, "mask": 0.5}
    with pytest.raises(UserError, match="lambdas has 'boxes', but .* cls, box, mask"):
        SWN(lambdas={"boxes": 0.3})


def test_classes_by_object_are_weighted_relatively():
    with pytest.raises(UserError, match="'per_object', which .*, take cls out of MODEL.SWN.TASKS"):
        SWN(relative=False)


@pytest.mark.parametrize("relative", [True, False])
def test_how_classes_are_weighted_does_not_matter_where_they_are_not(relative):
    swn = SWN(tasks=["box"], relative=relative)
    assert swn.rightness is None and swn.tasks == ("box",)


@pytest.mark.parametrize(
    "options, key",
    [
        ({"cls_averaging": "per_group"}, "CLS_AVERAGING"),
        ({"cls_averaging": "all"}, "CLS_AVERAGING"),
        ({"init": "normal"}, "INIT"),
    ],
)
def test_what_would_leave_every_weight_at_one_is_refused(options, key):
    with pytest.raises(UserError, match=f"MODEL.SWN.{key}.*RELATIVE"):
        SWN(**{**RELATIVE, **options})
