"""Checks that run one after the other, each for itself, and the table of what came out."""

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

__all__ = ["Check", "CheckFailed", "Figure", "LeftOut", "Outcome", "run_checks", "table"]


class CheckFailed(Exception):
    """What is checked is not so. The message is one sentence that says what."""


class LeftOut(Exception):
    """The check can't be made on this machine. The message is one sentence that says why."""


@dataclass(frozen=True)
class Figure:
    """Something measured.

    Attributes:
        value: None where it could not be measured, and the note says why.
        goal: the largest value that is aimed at, None where nothing is. To miss it is no failure.
        note: what else there is to say of it.
    """

    name: str
    value: float | None
    unit: str = ""
    goal: float | None = None
    note: str = ""

    @property
    def misses_goal(self) -> bool:
        return self.goal is not None and (self.value is None or self.value > self.goal)


@dataclass(frozen=True)
class Check:
    """
    Attributes:
        run: makes the check. It returns what it measured, or raises :class:`CheckFailed`,
            :class:`LeftOut` or, which counts as failed, anything else.
        seconds: how long it is expected to take.
    """

    name: str
    run: Callable[[], Sequence[Figure]]
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """
    Attributes:
        status: "passed", "failed" or "left out".
        reason: one line, empty for a check that passed.
        seconds: how long it took.
    """

    name: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    figures: Sequence[Figure] = field(default_factory=tuple)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_checks(
    checks: Iterable[Check], *, budget: float, tell: Callable[[Outcome], None] = lambda _: None
) -> list[Outcome]:
    """The outcome of every check. One that raises does not keep the others from running.

    Args:
        budget: seconds in all. A check that would not fit into what is left of them is left out.
        tell: is called with each outcome as it comes.
    """
    start = time.monotonic()
    outcomes = []
    for check in checks:
        left = budget - (time.monotonic() - start)
        if check.seconds > left:
            outcome = Outcome(check.name, "left out", f"no time: it needs {check.seconds:.0f} s")
        else:
            outcome = _run(check)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        tell(outcome)
        outcomes.append(outcome)
    return outcomes


def _run(check: Check) -> Outcome:
    start = time.monotonic()
    figures: Sequence[Figure] = ()
    try:
        figures = tuple(check.run())
        status, reason = "passed", ""
    except LeftOut as error:
        status, reason = "left out", _one_line(error)
    except CheckFailed as error:
        status, reason = "failed", _one_line(error)
    except torch.cuda.OutOfMemoryError:
        status, reason = "left out", "the GPU has too little memory"
    # A trainer ends with SystemExit where a user could mend what is wrong.
    except (Exception, SystemExit) as error:
        status, reason = "failed", f"{type(error).__name__}: {_one_line(error)}"
    return Outcome(check.name, status, reason, time.monotonic() - start, figures)


def _one_line(error: BaseException) -> str:
    """Its last line: where an error was passed on from another process, a traceback is before."""
    lines = str(error).strip().splitlines() or ["without a message"]
    return lines[-1].strip()


def table(outcomes: Iterable[Outcome]) -> str:
    """A Markdown table with a row for every figure, and for every check without one."""
    rows = [("check", "", "measured", "goal", ""), ("---",) * 5]
    for outcome in outcomes:
        status = outcome.status if outcome.status == "passed" else f"**{outcome.status}**"
        if not outcome.figures:
            rows.append((outcome.name, "", status, "", outcome.reason))
        for figure in outcome.figures:
            goal = "" if figure.goal is None else f"≤ {_number(figure.goal)}"
            notes = ["**goal missed**"] * figure.misses_goal + [figure.note] * bool(figure.note)
            measured = "" if figure.value is None else f"{_number(figure.value)} {figure.unit}"
            rows.append((outcome.name, figure.name, measured.strip(), goal, "; ".join(notes)))
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def _number(value: float) -> str:
    return f"{value:.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"
