#!/usr/bin/env python3
"""Run a matrix of configs, overrides and seeds, and make its table. See docs/experiments.md."""

import argparse
import io
import os
import sys
from pathlib import Path

from swn_d2.errors import (
    UserError,
    add_debug_argument,
    phase,
    require_detectron2,
    require_matplotlib,
    require_scipy,
    user_errors_exit,
)

with user_errors_exit():
    require_detectron2()

from swn_d2.experiments import Runner, collect, describe, load_matrix, read_known, write_results
from swn_d2.own import add_import_argument
from swn_d2.shell import join_words

TRAIN_NET = Path(__file__).resolve().parents[1] / "train_net.py"


def gpus(text: str) -> list[str]:
    """The entries of ``--gpus``. An empty one would be no GPU, and its runs on the CPU."""
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty entry; write it like 0,1")
    return found


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``argv`` defaults to the process's own."""
    parser = argparse.ArgumentParser(
        description="Run what is missing of a matrix of configs, overrides and seeds, each run in "
        "a process of its own, and write its table and plot. Stopped in any way, the same command "
        "goes on. Paths are relative to the current folder."
    )
    parser.add_argument("matrix", help="a YAML file, like those in configs/experiments")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at the same time (default: 1, or one per GPU)"
    )
    parser.add_argument(
        "--gpus",
        type=gpus,
        metavar="0,1,...",
        help="give each of the runs at the same time one of these GPUs for itself; 0,0,0 lets "
        "three runs share GPU 0",
    )
    parser.add_argument(
        "--known",
        action="append",
        default=[],
        metavar="RUNS_CSV",
        help="take the runs that stand in such a file, and were made with the same settings, for "
        "done; can be given several times",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="only say what would be done")
    what.add_argument("--table", action="store_true", help="only make the table of what is there")
    add_import_argument(parser)
    add_debug_argument(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Run the tool."""
    args = parse_args()
    # Names and tables have more letters than some terminals and logs.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with user_errors_exit(), phase("running the experiments"):
        matrix = load_matrix(args.matrix, imports=args.imports)
        known, notes = read_known(matrix, args.known)
        for note in notes:
            print(note, flush=True)
        if args.dry_run:
            print("\n".join(describe(matrix, TRAIN_NET, known)))
            return
        require_matplotlib()  # before hours of trainings
        require_scipy()
        failed = {}
        if not args.table:
            runner = Runner(matrix, TRAIN_NET, jobs=args.jobs, gpus=args.gpus, known=known)
            failed = runner.run()
        results = collect(matrix, known)
        if failed and not results:
            raise UserError("every run failed; the lines above say why.")
        command = ["python", os.path.relpath(__file__), args.matrix]
        for file in args.known:
            command += ["--known", file]
        for file in args.imports:
            command += ["--import", file]
        print("\n" + write_results(matrix, results, join_words(command)))
        print(f"In {matrix.output}: results.md, results.csv, runs.csv, results.png")
        for name, reason in failed.items():
            print(f"FAILED: {name}: {reason}", file=sys.stderr)
        if failed:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
