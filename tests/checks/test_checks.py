"""Each check finds what it is there to find. That all pass: tests/tools/test_check_gpu.py."""

import dataclasses
from pathlib import Path

import pytest
import torch

from swn_d2.checks import cost, equality, processes, training, weighting_step
from swn_d2.checks.detectors import DETECTORS
from swn_d2.checks.outcomes import Check, CheckFailed, run_checks
from swn_d2.checks.scale import ON_CPU
from swn_d2.engine import SWNTrainer
from swn_d2.weighting import SWN
from swn_d2.weighting.objective import preserve_total_loss

every_detector = pytest.mark.parametrize("detector", DETECTORS)


def all_heavier(weights, statistics):
    return torch.full_like(weights.box, 1.02)


def some_heavier(weights, statistics):
    """By so much that others are lighter, and the loss is what it was."""
    weight = 1 + torch.linspace(0, 1, len(weights.box))
    return weight * preserve_total_loss(weight, statistics.loss("box"), statistics.is_foreground)


@every_detector
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("change, what", [(all_heavier, "loss"), (some_heavier, "gradient")])
def test_another_weight_than_1_is_found(bench, monkeypatch, detector, precision, change, what):
    def changed(self, statistics, forward=SWN.forward):
        weights = forward(self, statistics)
        weights.box = change(weights, statistics)
        return weights

    monkeypatch.setattr(SWN, "forward", changed)
    with pytest.raises(CheckFailed, match=f"the {what} .* is another one than Detectron2's, by"):
        equality.check_losses_and_gradients(bench.twins(detector), ON_CPU, precision)


def test_equality_is_checked_with_the_weights_eased_in(bench, monkeypatch):
    amounts = []

    def amount(self, iteration, amount=SWN._amount):
        amounts.append(amount(self, iteration))
        return amounts[-1]

    monkeypatch.setattr(SWN, "_amount", amount)
    twins = bench.twins("retinanet")
    equality.check_losses_and_gradients(twins, ON_CPU, "float32")
    assert amounts == [twins.swn.sample_weighter.strength]


def test_a_loss_that_does_not_start_at_0_is_found(bench, monkeypatch):
    def with_an_offset(self, statistics, forward=SWN.forward):
        weights = forward(self, statistics)
        weights.regularizers["loss_swn_box"] = weights.regularizers["loss_swn_box"] + 0.1
        return weights

    monkeypatch.setattr(SWN, "forward", with_an_offset)
    with pytest.raises(CheckFailed, match="loss_swn_box, which should start at 0, is 0.1"):
        equality.check_losses_and_gradients(bench.twins("retinanet"), ON_CPU, "float32")


@every_detector
def test_other_detections_are_found(bench, detector):
    twins = bench.twins(detector)
    for module in twins.swn.modules():
        if hasattr(module, "test_nms_thresh"):
            module.test_nms_thresh = 0.1
    with pytest.raises(CheckFailed, match="the detections are others than Detectron2's"):
        equality.check_detections(twins, ON_CPU)
    assert twins.stock.training and twins.swn.training


def test_detectors_of_other_parameters_are_found(bench):
    twins = bench.twins("faster_rcnn")
    twins.stock.register_parameter("another", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(CheckFailed, match="not the same parameters: another"):
        twins.align()


def test_a_loss_that_is_not_finite_is_found(bench):
    twins = bench.twins("retinanet")
    with torch.no_grad():
        twins.swn.head.cls_score.bias.fill_(float("nan"))
    with pytest.raises(CheckFailed, match="loss_cls is nan in iteration 0"):
        training.check_stays_finite(twins, ON_CPU, "bfloat16")


def test_a_weighter_that_is_not_trained_is_found(bench):
    twins = bench.twins("faster_rcnn")
    twins.swn_cfg.SOLVER.SWN.BASE_LR = 0.0
    before = [parameter.clone() for parameter in twins.swn.parameters()]
    with pytest.raises(
        CheckFailed, match="sample_weighter.*network is as it was before 4 iterations"
    ):
        training.check_stays_finite(twins, ON_CPU, "bfloat16")
    # It trains a copy.
    assert all(map(torch.equal, before, twins.swn.parameters()))


@pytest.mark.parametrize(
    "lost, message",
    [
        (
            "grad_scaler",
            "the GradScaler is .*'scale': 2.0.* after resuming, and was .*'scale': 131072.0",
        ),
        ("optimizer", "the optimisers are not what they were"),
    ],
)
def test_a_state_that_is_not_restored_is_found(bench, monkeypatch, lost, message):
    def forgetful(self, state, load=SWNTrainer.load_state_dict):
        fresh = self._trainer.state_dict()[lost]
        load(self, {**state, "_trainer": {**state["_trainer"], lost: fresh}})

    monkeypatch.setattr(SWNTrainer, "load_state_dict", forgetful)
    with pytest.raises(CheckFailed, match=message):
        training.check_resume(bench, "retinanet")


def test_a_wait_that_is_added_is_found(bench, monkeypatch):
    def waiting(self, statistics, forward=SWN.forward):
        statistics.cls_loss.sum().item()
        return forward(self, statistics)

    twins = bench.twins("cascade_rcnn")
    before, _ = cost.check_waits(twins, ON_CPU)
    monkeypatch.setattr(SWN, "forward", waiting)
    after, _ = cost.check_waits(twins, ON_CPU)
    assert after.value == before.value + 3  # stages
    assert "checks/test_checks.py" in after.note and "checks/test_checks.py" not in before.note


@every_detector
def test_we_add_no_wait(bench, detector):
    """As a training's iterations are on a GPU, but for what only copies to one would show."""
    for figure in cost.check_waits(bench.twins(detector), ON_CPU):
        assert figure.goal == 0 and not figure.misses_goal, figure


def test_kernels_that_are_added_are_found(bench, monkeypatch):
    twins = bench.twins("retinanet")
    before = cost.check_kernels(twins, ON_CPU)[1].value
    monkeypatch.setattr(
        SWN, "forward", lambda self, s, f=SWN.forward: [f(self, s) for _ in range(2)][1]
    )
    assert cost.check_kernels(twins, ON_CPU)[1].value > before > 0


def test_the_profiler_counts_what_calls_nothing_else():
    tensor = torch.ones(3)
    arguments = (cost.ProfilerActivity.CPU, cost.DeviceType.CPU)
    once = cost._profiled(lambda: tensor.add(tensor), *arguments)
    assert cost._profiled(lambda: tensor.add(tensor).add(tensor), *arguments) == once + 1


def test_what_can_not_be_compiled_is_no_failure():
    scale = dataclasses.replace(ON_CPU, compiler="no such compiler", num_samples=(512,))
    figures = weighting_step.check_compiled_step(scale)
    assert len(figures) == len(scale.weighted)
    for figure in figures:
        assert figure.value is None and "torch.compile failed: " in figure.note


def test_a_process_that_fails_is_one_line():
    def run():
        return processes.check_processes(Path("no such folder"), ON_CPU, num_processes=2)

    (outcome,) = run_checks([Check("processes", run, 0)], budget=60)
    assert outcome.status == "failed"
    assert "UserError: " in outcome.reason and "no such folder" in outcome.reason
