"""How long a training is for its data, in words."""

from collections.abc import Iterator

__all__ = ["length_in_words", "schedule_faults"]

#: Outside of which a number of epochs is more likely a mistake: the schedule of other data.
_FEWEST, _MOST = 1, 500


def length_in_words(iterations: int, batch: int, num_pictures: int) -> str:
    """ "1,200 iterations of 8 pictures: 4.4 epochs of 2,206 pictures"."""
    epochs = _epochs(iterations, batch, num_pictures)
    digits = 0 if epochs >= 10 else 1 if epochs >= 1 else 2
    return (
        f"{iterations:,} iterations of {batch} pictures: {epochs:,.{digits}f} epochs of "
        f"{num_pictures:,} pictures"
    )


def schedule_faults(cfg, num_pictures: int) -> Iterator[str]:
    """What of the schedule does not fit the data, or itself: a sentence for each."""
    solver = cfg.SOLVER
    epochs = _epochs(solver.MAX_ITER, solver.IMS_PER_BATCH, num_pictures)
    if not _FEWEST <= epochs <= _MOST:
        yield (
            f"That is {'many' if epochs > _MOST else 'few'}: is SOLVER.MAX_ITER "
            f"{solver.MAX_ITER} for other data? tools/new_project.py writes a config that fits."
        )
    if 0 < solver.MAX_ITER <= solver.WARMUP_ITERS:
        yield (
            f"The learning rate never gets to SOLVER.BASE_LR: SOLVER.WARMUP_ITERS is "
            f"{solver.WARMUP_ITERS}, SOLVER.MAX_ITER {solver.MAX_ITER}."
        )
    beyond = [step for step in solver.STEPS if step >= solver.MAX_ITER]
    if beyond and solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        yield (
            f"The learning rate does not fall at {' and '.join(map(str, beyond))}: of SOLVER.STEPS "
            f"{tuple(solver.STEPS)}, that is not before SOLVER.MAX_ITER {solver.MAX_ITER}."
        )


def _epochs(iterations: int, batch: int, num_pictures: int) -> float:
    return iterations * batch / max(num_pictures, 1)
