import copy

import pytest
import torch
from detectron2.engine import DefaultTrainer
from detectron2.solver import build_lr_scheduler, build_optimizer

from swn_d2.engine import JointOptimizer, build_joint_optimizer, sample_weighter_parameters
from swn_d2.errors import UserError
from swn_d2.recording.samples import weighters_of
from swn_d2.weighting import SWN, SampleWeighter
from tests.tiny import batch, tiny_config, tiny_model, training_losses


def step(model, optimizer, seed=0):
    optimizer.zero_grad()
    sum(training_losses(model, batch(), seed=seed).values()).backward()
    optimizer.step()


def params(optimizer):
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def test_every_parameter_has_one_optimizer():
    cfg = tiny_config()
    model = tiny_model(cfg)
    optimizer = build_joint_optimizer(cfg, model)
    detector, weighter = optimizer.members["detector"], optimizer.members["weighter"]
    assert isinstance(detector, torch.optim.SGD) and isinstance(weighter, torch.optim.Adam)
    assert params(weighter) == {id(p) for p in sample_weighter_parameters(model)}
    assert not params(detector) & params(weighter)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert params(detector) | params(weighter) == params(optimizer) == trainable


def test_hyperparameters():
    cfg = tiny_config("SOLVER.SWN.BASE_LR", 0.003, "SOLVER.SWN.WEIGHT_DECAY", 0.2)
    optimizer = build_joint_optimizer(cfg, tiny_model(cfg))
    for group in optimizer.members["weighter"].param_groups:
        assert (group["lr"], group["weight_decay"]) == (0.003, 0.2)
    for group in optimizer.members["detector"].param_groups:
        assert group["lr"] == cfg.SOLVER.BASE_LR


def test_groups_of_another_number_are_refused():
    cfg = tiny_config()
    optimizer, state = (build_joint_optimizer(cfg, tiny_model(cfg)) for _ in range(2))
    state = state.state_dict()
    state["detector"]["param_groups"].pop()
    with pytest.raises(UserError, match="optimiser of the detector has other groups"):
        optimizer.load_state_dict(state)


def test_settings_that_change():
    """As after a checkpoint whose learning rate has decayed to a tenth."""
    cfg = tiny_config("SOLVER.SWN.BASE_LR", 0.003)
    optimizer = build_joint_optimizer(cfg, tiny_model(cfg))
    build_lr_scheduler(cfg, optimizer)  # which notes what the rates begin with
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] / 10
    settings = optimizer.settings()
    assert optimizer.change(settings) == [] and optimizer.settings() == settings
    for group in settings:
        group["initial_lr"] *= 3
    settings[0]["momentum"] = 0.5
    assert sorted(optimizer.change(settings)) == ["lr", "momentum"]
    assert optimizer.param_groups[0]["momentum"] == 0.5
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(group["initial_lr"] / 10)
    (rate,) = {group["lr"] for group in optimizer.members["weighter"].param_groups}
    assert rate == pytest.approx(0.003 * 3 / 10)


def test_steps_are_those_of_the_two_optimizers():
    """Against SGD and Adam that each have a copy of the model's gradients."""
    cfg = tiny_config()
    joint_model, apart_model = tiny_model(cfg), tiny_model(cfg)
    joint = build_joint_optimizer(cfg, joint_model)
    weighter_parameters = sample_weighter_parameters(apart_model)
    adam = torch.optim.Adam(weighter_parameters, lr=0.001, weight_decay=1e-4)
    for parameter in weighter_parameters:
        parameter.requires_grad_(False)
    sgd = build_optimizer(cfg, apart_model)
    for parameter in weighter_parameters:
        parameter.requires_grad_(True)
    for seed in range(3):
        step(joint_model, joint, seed)
        adam.zero_grad()
        sgd.zero_grad()
        sum(training_losses(apart_model, batch(), seed=seed).values()).backward()
        adam.step()
        sgd.step()
    for (name, a), b in zip(joint_model.named_parameters(), apart_model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_schedule_is_the_same_factor_on_both():
    cfg = tiny_config("SOLVER.WARMUP_ITERS", 10, "SOLVER.STEPS", (40, 70))
    optimizer = build_joint_optimizer(cfg, tiny_model(cfg))
    scheduler = build_lr_scheduler(cfg, optimizer)
    factors = set()
    for _ in range(90):
        detector, weighter = (m.param_groups[0]["lr"] for m in optimizer.members.values())
        factors.add(round(detector / cfg.SOLVER.BASE_LR, 6))
        assert weighter / cfg.SOLVER.SWN.BASE_LR == pytest.approx(detector / cfg.SOLVER.BASE_LR)
        optimizer.step()
        scheduler.step()
    assert {1.0, 0.1, 0.01} < factors and len(factors) > 10  # the steps, and a warm-up


def test_state_survives_and_stays_connected():
    cfg = tiny_config()
    model = tiny_model(cfg)
    optimizer = build_joint_optimizer(cfg, model)
    step(model, optimizer)
    copy_of_model = tiny_model(cfg, seed=9)
    copy_of_model.load_state_dict(model.state_dict())
    copy_of_optimizer = build_joint_optimizer(cfg, copy_of_model)
    copy_of_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer, seed=1)
    step(copy_of_model, copy_of_optimizer, seed=1)
    for a, b in zip(model.parameters(), copy_of_model.parameters(), strict=True):
        assert torch.equal(a, b)
    # A scheduler must still reach the members through the joint groups.
    for group in copy_of_optimizer.param_groups:
        group["lr"] = 0.5
    for member in copy_of_optimizer.members.values():
        assert all(group["lr"] == 0.5 for group in member.param_groups)


def test_uniform_has_the_detector_alone():
    cfg = tiny_config("MODEL.SAMPLE_WEIGHTER.NAME", "Uniform")
    assert list(build_joint_optimizer(cfg, tiny_model(cfg)).members) == ["detector"]


def test_state_of_another_kind_of_run_is_refused():
    swn, plain = tiny_config(), tiny_config(stock=True)
    optimizer = build_joint_optimizer(swn, tiny_model(swn))
    with pytest.raises(UserError, match="detector.*weighter"):
        optimizer.load_state_dict(build_joint_optimizer(plain, tiny_model(plain)).state_dict())
    with pytest.raises(UserError, match="optimisers"):
        optimizer.load_state_dict(
            DefaultTrainer.build_optimizer(plain, tiny_model(plain)).state_dict()
        )


def test_gradient_clipping_is_the_detectors():
    cfg = tiny_config("SOLVER.CLIP_GRADIENTS.ENABLED", True)
    model = tiny_model(cfg)
    optimizer = build_joint_optimizer(cfg, model)
    step(model, optimizer)
    assert "Clip" in type(optimizer.members["detector"]).__name__


def test_closures_are_refused():
    parameter = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="closure"):
        JointOptimizer(only=torch.optim.SGD([parameter], lr=1.0)).step(lambda: None)


def test_groups_belong_to_the_members():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    sgd = torch.optim.SGD(parameters[:1], lr=1.0)
    joint = JointOptimizer(detector=sgd, weighter=torch.optim.Adam(parameters[1:2]))
    with pytest.raises(UserError, match="give them to the optimiser of the detector before"):
        joint.add_param_group({"params": parameters[2:]})
    assert len(joint.param_groups) == 2
    copied = copy.deepcopy(joint)
    copied.param_groups[0]["params"][0].grad = torch.ones(1)
    copied.step()
    assert copied.param_groups[0]["params"][0].item() == -1 and parameters[0].item() == 0


def test_grad_scaler_skips_both_members_together():
    """AMP's GradScaler, with an infinite gradient and without."""
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    joint = JointOptimizer(
        detector=torch.optim.SGD([parameters[0]], lr=0.1),
        weighter=torch.optim.Adam([parameters[1]], lr=0.1),
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, is_finite in ((float("inf"), False), (1.0, True)):
        joint.zero_grad()
        before = [p.detach().clone() for p in parameters]
        loss = (parameters[0] * factor).sum() + parameters[1].square().sum()
        scaler.scale(loss).backward()
        scaler.step(joint)
        scaler.update()
        for parameter, old in zip(parameters, before, strict=True):
            assert torch.equal(parameter, old) != is_finite
    # Unscaled: SGD's step is 0.1 times the gradient of 1.
    torch.testing.assert_close(parameters[0].detach(), torch.full((2,), 0.9))


class Twofold(SampleWeighter):
    """A weighter that is made of another."""

    def __init__(self):
        super().__init__()
        self.inner = SWN()


def test_what_a_weighter_is_made_of_is_stepped_once():
    detector = torch.nn.ModuleDict({"sample_weighter": Twofold()})
    parameters = sample_weighter_parameters(detector)
    assert len(parameters) == len(list(detector.parameters())) == len(set(map(id, parameters)))
    assert weighters_of(detector) == {"": detector["sample_weighter"]}
