"""Experiments: a matrix of configs, overrides and seeds, its runs, and the table they end in.

``tools/run_experiments.py`` is the command; ``docs/experiments.md`` says how to use it.
"""

from .known import read_known
from .matrix import Matrix, Run, load_matrix
from .results import collect, write_results
from .runner import Runner, describe

__all__ = [
    "Matrix",
    "Run",
    "Runner",
    "collect",
    "describe",
    "load_matrix",
    "read_known",
    "write_results",
]
