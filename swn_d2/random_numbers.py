"""Random numbers that follow from where they are drawn, and not from what was drawn before.

A run that is resumed can then draw what it would have drawn, without a history to be kept.
"""

import random
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["IMAGE", "STEP", "drawing_at", "seed_at"]

#: Kinds of places that share a seed, and whose numbers must not be each other's: the second part of
#: a place.
IMAGE, STEP = 1, 2


def seed_at(*place: int) -> None:
    """Seed Python, NumPy and torch, on all devices, with what follows from ``place``.

    Args:
        place: numbers of at least 0, such as a run's seed, :data:`STEP`, an iteration and a rank.
    """
    of_python, of_numpy, of_torch = _seeds(place)
    random.seed(of_python)
    np.random.seed(of_numpy)
    torch.manual_seed(of_torch)


@contextmanager
def drawing_at(*place: int):
    """As :func:`seed_at`, for what is drawn within, and on the CPU only: the random numbers of the
    rest of the program stay as they are."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_python, of_numpy, of_torch = _seeds(place)
    random.seed(of_python)
    np.random.seed(of_numpy)
    torch.default_generator.manual_seed(of_torch)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _seeds(place: tuple[int, ...]) -> list[int]:
    return np.random.SeedSequence(place).generate_state(3).tolist()
