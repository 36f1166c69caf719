#!/usr/bin/env python3
"""Check on a GPU that SWN does what it should, and measure what it costs. See docs/gpu.md."""

import argparse
import json
from pathlib import Path

import torch

from swn_d2.errors import (
    UserError,
    add_debug_argument,
    phase,
    require_detectron2,
    user_errors_exit,
)

with user_errors_exit():
    require_detectron2()

from swn_d2.checks.outcomes import Outcome, run_checks, table
from swn_d2.checks.plan import all_checks
from swn_d2.checks.scale import ON_CPU, ON_GPU
from swn_d2.engine.environment import surroundings
from swn_d2.files import write_text

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``argv`` defaults to the process's own."""
    parser = argparse.ArgumentParser(
        description="Check on a GPU that every detector with SWN starts as Detectron2's own, "
        "trains in mixed precision, resumes and detects as it should; measure what SWN costs. "
        "Ends with exit status 1 if a check failed; a goal that is missed is none."
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("check_gpu.json"),
        metavar="FILE",
        help="what is written; must not exist (default: check_gpu.json)",
    )
    parser.add_argument(
        "--cpu", action="store_true", help="the same on the CPU, with tiny detectors and pictures"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=330,
        metavar="SECONDS",
        help="what does not fit into them is left out (default: 330)",
    )
    add_debug_argument(parser)
    return parser.parse_args(argv)


def describe(outcome: Outcome) -> str:
    reason = f": {outcome.reason}" if outcome.reason else ""
    return f"{outcome.name}: {outcome.status}{reason} ({outcome.seconds:.1f} s)"


def main() -> None:
    """Run the tool."""
    args = parse_args()
    with user_errors_exit(), phase("checking"):
        if args.output.exists():
            raise UserError(f"{args.output} exists already; remove it, or give another --output.")
        if not args.budget > 0:
            raise UserError("--budget must be more than 0 seconds.")
        if not args.cpu and not torch.cuda.is_available():
            raise UserError("torch finds no GPU here; --cpu runs the same on the CPU, tiny.")
        scale = ON_CPU if args.cpu else ON_GPU
        outcomes = run_checks(
            all_checks(ROOT / "configs", scale),
            budget=args.budget,
            tell=lambda outcome: print(describe(outcome), flush=True),
        )
        environment = {
            **surroundings(ROOT),
            "device": torch.cuda.get_device_name() if scale.device == "cuda" else "cpu",
            "cuda": torch.version.cuda if scale.device == "cuda" else None,
        }
        versions = ", ".join(f"{name} {value}" for name, value in environment["versions"].items())
        print(f"\n{environment['machine']}; {versions}; commit {environment['commit']}\n")
        print(table(outcomes))
        result = {"environment": environment, "checks": [o.as_dict() for o in outcomes]}
        write_text(args.output, json.dumps(result, indent=1))
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if failed:
        raise SystemExit(f"error: {len(failed)} of {len(outcomes)} checks failed.")


if __name__ == "__main__":
    main()
