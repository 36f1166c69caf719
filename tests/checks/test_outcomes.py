"""The running of checks and their table."""

import pytest
import torch

from swn_d2.checks.outcomes import Check, CheckFailed, Figure, LeftOut, run_checks, table


def raising(error):
    def run():
        raise error

    return run


def passing():
    return [Figure("time", 1.5, "ms", goal=2.0)]


def run(*runs, seconds=0.0, budget=60.0):
    checks = [Check(str(i), run, seconds) for i, run in enumerate(runs)]
    return run_checks(checks, budget=budget)


@pytest.mark.parametrize(
    "error, status, reason",
    [
        (CheckFailed("the loss differs"), "failed", "the loss differs"),
        (RuntimeError("CUDA error\nwith details"), "failed", "RuntimeError: with details"),
        (RuntimeError(), "failed", "RuntimeError: without a message"),
        (SystemExit("error: training has diverged"), "failed", "SystemExit: error: training"),
        (LeftOut("this machine has 1 GPU"), "left out", "this machine has 1 GPU"),
        (torch.cuda.OutOfMemoryError("tried"), "left out", "the GPU has too little memory"),
    ],
)
def test_what_raises_says_why_and_the_others_run(error, status, reason):
    outcomes = run(passing, raising(error), passing)
    assert [outcome.status for outcome in outcomes] == ["passed", status, "passed"]
    assert outcomes[1].reason.startswith(reason) and "\n" not in outcomes[1].reason
    assert not outcomes[1].figures


def test_an_interrupt_ends_it():
    with pytest.raises(KeyboardInterrupt):
        run(passing, raising(KeyboardInterrupt()))


def test_what_does_not_fit_into_the_budget_is_left_out():
    called = []
    checks = [
        Check("short", lambda: called.append("short") or [], 1),
        Check("long", lambda: called.append("long") or [], 100),
        Check("short again", lambda: called.append("short again") or [], 1),
    ]
    told = []
    outcomes = run_checks(checks, budget=50, tell=told.append)
    assert called == ["short", "short again"]
    assert [outcome.status for outcome in outcomes] == ["passed", "left out", "passed"]
    assert "no time" in outcomes[1].reason and told == outcomes


@pytest.mark.parametrize(
    "value, goal, misses",
    [
        (1.0, None, False),
        (1.0, 1.0, False),
        (1.02, 1.01, True),
        (None, 1.0, True),
        (None, None, False),
    ],
)
def test_goals(value, goal, misses):
    assert Figure("", value, goal=goal).misses_goal is misses


def test_the_table_has_every_figure_and_every_check():
    def figures():
        return [
            Figure("ratio", 1.2, goal=1.005, note="5 pairs"),
            Figure("waits", 3),
            Figure("other", None, "ms", note="why"),
        ]

    rows = table(run(figures, raising(CheckFailed("a | b")), raising(LeftOut("no GPU")))).split(
        "\n"
    )
    assert rows[2:] == [
        "| 0 | ratio | 1.2 | ≤ 1.005 | **goal missed**; 5 pairs |",
        "| 0 | waits | 3 |  |  |",
        "| 0 | other |  |  | why |",
        "| 1 |  | **failed** |  | a / b |",
        "| 2 |  | **left out** |  | no GPU |",
    ]
    assert {row.count("|") for row in rows} == {6}
