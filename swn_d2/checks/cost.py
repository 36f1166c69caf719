"""What SWN costs: a training's iteration with it beside one of Detectron2's detector."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from ..engine import build_joint_optimizer
from ..engine.inner_trainer import inner_trainer_class
from ..engine.recorder import SampleRecorder
from ..modeling import LOG_PERIOD
from .clock import Pair, alternate, ratio
from .detectors import Twins
from .outcomes import Figure, LeftOut
from .precision import grad_scaler
from .scale import Scale
from .synchronisations import waits

__all__ = ["check_cost", "check_kernels", "check_recorder", "check_waits"]

_TIME_GOALS = {"RetinaNet": 1.01, "GeneralizedRCNN": 1.005}
_MEMORY_GOAL = 1.01
# What torch.profiler sees beside kernels: copies, and the names that it gives to stretches of time.
_NOT_KERNELS = ("Memcpy", "Memset", "Optimizer.", "ProfilerStep")
# Operators that compute nothing.
_NO_KERNEL = (torch.ops.aten.detach, torch.ops.aten.empty, torch.ops.aten.empty_like)

Iteration = Callable[[int], None]


def check_cost(twins: Twins, scale: Scale, *, amp: bool, pictures: int, pairs: int) -> list[Figure]:
    """Time and peak memory of an iteration, in alternating pairs.

    Args:
        amp: in mixed precision.
        pictures: in a batch.
        pairs: to measure.
    """
    stock, swn = _iterations(twins, scale, amp=amp, pictures=pictures)
    measured = list(alternate(stock, swn, scale.device, pairs=pairs, warm_up=min(pairs, 3)))
    middle, low, high = ratio(measured)
    without, with_swn = (median(pair.mebibytes[i] for pair in measured) for i in (0, 1))
    return [
        Figure("an iteration of Detectron2's", _milliseconds(measured, 0), "ms"),
        Figure("an iteration of ours", _milliseconds(measured, 1), "ms"),
        Figure(
            "time, ours / Detectron2's",
            middle,
            goal=scale.goal(_TIME_GOALS[twins.stock_cfg.MODEL.META_ARCHITECTURE]),
            note=f"{low:.3f} to {high:.3f}, {len(measured)} pairs",
        ),
        Figure("peak memory of Detectron2's", without, "MiB"),
        Figure(
            "peak memory, ours / Detectron2's",
            with_swn / without if without > 0 else None,
            goal=scale.goal(_MEMORY_GOAL),
        ),
    ]


def check_waits(twins: Twins, scale: Scale) -> list[Figure]:
    """How much more often the host waits for the GPU than with Detectron2's detector."""
    stock, swn = _iterations(twins, scale, amp=scale.device == "cuda", pictures=scale.few_pictures)
    result = []
    # The weights are logged in the last iteration of each period.
    for name, number in (("", 0), (f", in every {LOG_PERIOD}th iteration", LOG_PERIOD - 1)):
        counts = []
        for iteration in (stock, swn):
            iteration(number)  # what happens once only, as the choice of kernels
            with waits(scale.device) as places:
                iteration(number)
            counts.append(places)
        result.append(
            Figure(
                f"waits that we add{name}",
                counts[1].total() - counts[0].total(),
                goal=0,
                note=f"Detectron2's {counts[0].total()}, ours {counts[1].total()}"
                + _more(counts[1] - counts[0]),
            )
        )
    return result


def check_kernels(twins: Twins, scale: Scale) -> list[Figure]:
    """How many more kernels an iteration launches; on a CPU, operators that would.

    Raises:
        LeftOut: the profiler does not see what the GPU does.
    """
    counts = []
    for iteration in _iterations(
        twins, scale, amp=scale.device == "cuda", pictures=scale.few_pictures
    ):
        for number in range(2):
            iteration(number)
        step = partial(iteration, 2)
        if scale.device == "cuda":
            counts.append(_profiled(step, ProfilerActivity.CUDA, DeviceType.CUDA))
        else:
            counts.append(_operators(step))
    if not counts[0]:
        raise LeftOut("torch.profiler sees no kernels; it may lack CUPTI or the right to use it")
    what = "kernels" if scale.device == "cuda" else "operators"
    return [
        Figure(f"{what} of Detectron2's iteration", counts[0]),
        Figure(f"{what} that we add", counts[1] - counts[0]),
    ]


def check_recorder(twins: Twins, scale: Scale) -> list[Figure]:
    """What the recorder costs in the iterations that it records, and thereby a training."""
    amp = scale.device == "cuda"
    iteration = _iterations(twins, scale, amp=amp, pictures=scale.few_pictures)[1]
    period = twins.swn_cfg.RECORDING.PERIOD
    with TemporaryDirectory() as folder:
        recorder = SampleRecorder(
            twins.swn,
            folder,
            period=1,
            num_samples=twins.swn_cfg.RECORDING.NUM_SAMPLES,
            image_format=twins.swn_cfg.INPUT.FORMAT,
        )

        def recorded(number: int) -> None:
            recorder.trainer = SimpleNamespace(
                # A hundredth of the records has pictures in a long training: none of these.
                iter=number,
                max_iter=10**9,
                storage=EventStorage(number),
            )
            recorder.before_step()
            iteration(number)
            recorder.after_step()

        pairs = list(alternate(iteration, recorded, scale.device, pairs=scale.pairs))
    added = median(pair.seconds[1] / pair.seconds[0] - 1 for pair in pairs)
    return [
        Figure("time that a record adds to its iteration", 100 * added, "%"),
        Figure(
            "time that records add to a training",
            100 * added / period,
            "%",
            goal=scale.goal(0.1),
            note=f"one in {period} iterations",
        ),
    ]


def _iterations(
    twins: Twins, scale: Scale, *, amp: bool, pictures: int
) -> tuple[Iteration, Iteration]:
    """An iteration of Detectron2's detector and one of ours, as its trainer does it.

    The learning rate is 0: else the detectors, and with them the number of positives, would part.
    """
    twins.align()
    stock_cfg, swn_cfg = twins.stock_cfg.clone(), twins.swn_cfg.clone()
    for cfg in (stock_cfg, swn_cfg):
        cfg.SOLVER.BASE_LR = cfg.SOLVER.SWN.BASE_LR = 0.0
        cfg.SOLVER.AMP.ENABLED = amp
    batches = itertools.repeat(list(twins.pictures[:pictures]))
    trainers = (
        (AMPTrainer if amp else SimpleTrainer)(
            twins.stock, batches, build_optimizer(stock_cfg, twins.stock)
        ),
        inner_trainer_class(swn_cfg)(twins.swn, batches, build_joint_optimizer(swn_cfg, twins.swn)),
    )
    if amp:
        for trainer in trainers:  # a scale at which no step is skipped
            trainer.grad_scaler = grad_scaler(scale.device, init_scale=128.0)
    return tuple(_iteration(trainer) for trainer in trainers)


def _iteration(trainer: SimpleTrainer) -> Iteration:
    def run(number: int) -> None:
        torch.manual_seed(number)
        trainer.iter = number
        with EventStorage(number):
            trainer.run_step()

    return run


def _milliseconds(pairs: Sequence[Pair], which: int) -> float:
    return 1000 * median(pair.seconds[which] for pair in pairs)


def _more(places: Counter) -> str:
    """The lines where ours waits and Detectron2's does not."""
    lines = ", ".join(f"{place} ({count})" for place, count in sorted(places.items()))
    return f"; more often at {lines}" if lines else ""


def _operators(function: Callable[[], object]) -> int:
    """Those that compute something: on a GPU each launches a kernel or more."""
    with _Operators() as counter:
        function()
    return counter.count


class _Operators(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.count += not operator.is_view and operator.overloadpacket not in _NO_KERNEL
        return result


def _profiled(function: Callable[[], object], activity: ProfilerActivity, where: DeviceType) -> int:
    """What torch.profiler sees, but for what calls something else of it."""
    with profile(activities=[activity]) as profiler:
        function()
        if where == DeviceType.CUDA:
            torch.cuda.synchronize()
    return sum(
        event.device_type == where
        and not event.cpu_children
        and not event.name.startswith(_NOT_KERNELS)
        for event in profiler.events()
    )
