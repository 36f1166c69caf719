"""Every check, in the order in which they matter where the time does not suffice for all."""

from functools import partial
from pathlib import Path

from . import cost, equality, processes, suppression, training, weighting_step
from .detectors import DETECTORS, Bench
from .outcomes import Check
from .scale import Scale

__all__ = ["all_checks"]


def all_checks(configs: Path, scale: Scale) -> list[Check]:
    """
    Args:
        configs: the folder of the configs.
    """
    bench = Bench(configs, scale)
    on_gpu = scale.device == "cuda"
    checks: list[Check] = []

    def add(name: str, run, seconds: float) -> None:
        # What is small enough for a test needs no plan.
        checks.append(Check(name, run, seconds if on_gpu else 0))

    def of_twins(detector: str, check, *args, **kwargs):
        return lambda: check(bench.twins(detector), scale, *args, **kwargs)

    for detector in DETECTORS:
        for precision in ("float32", *scale.half_precisions):
            name = f"{detector}: losses and gradients, {precision}"
            add(name, of_twins(detector, equality.check_losses_and_gradients, precision), 8)
    for detector in DETECTORS:
        add(f"{detector}: synchronisations", of_twins(detector, cost.check_waits), 3)
    for amp in (True, False) if on_gpu else (False,):
        for detector in DETECTORS:
            run = of_twins(
                detector,
                cost.check_cost,
                amp=amp,
                pictures=scale.few_pictures,
                pairs=scale.pairs if amp == on_gpu else scale.pairs // 2,
            )
            mode = "mixed precision" if amp else "float32"
            add(f"{detector}: cost, {scale.few_pictures} pictures, {mode}", run, 9)
    for detector in DETECTORS:
        for precision in scale.half_precisions:
            name = f"{detector}: training, {precision}"
            add(name, of_twins(detector, training.check_stays_finite, precision), 5)
    for detector in DETECTORS:
        add(f"{detector}: inference", of_twins(detector, equality.check_detections), 6)
    add("weighting step", partial(weighting_step.check_step, scale), 6)
    for count in (1, 2) if on_gpu else (2,):
        run = partial(processes.check_processes, configs, scale, num_processes=count)
        add(f"processes: {count}", run, 20)
    for detector in DETECTORS:
        add(f"{detector}: resume", partial(training.check_resume, bench, detector), 12)
    add("suppression", partial(suppression.check_suppression, scale), 8)
    for detector in DETECTORS:
        add(f"{detector}: kernels", of_twins(detector, cost.check_kernels), 5)
    for detector in ("faster_rcnn", "retinanet"):  # regions and anchors
        add(f"{detector}: recorder", of_twins(detector, cost.check_recorder), 9)
    for detector in DETECTORS:
        run = of_twins(
            detector,
            cost.check_cost,
            amp=on_gpu,
            pictures=scale.many_pictures,
            pairs=scale.pairs_of_many,
        )
        add(f"{detector}: cost, {scale.many_pictures} pictures", run, 16)
    add("weighting step, compiled", partial(weighting_step.check_compiled_step, scale), 60)
    return checks
