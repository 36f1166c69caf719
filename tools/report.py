#!/usr/bin/env python3
"""Write a report on one or several trainings: one HTML page that needs no network."""

import argparse
from pathlib import Path

from swn_d2.errors import (
    UserError,
    add_debug_argument,
    phase,
    require_detectron2,
    require_matplotlib,
    user_errors_exit,
)

with user_errors_exit():
    require_detectron2()
    require_matplotlib()

from swn_d2.analysis.report import write_report
from swn_d2.analysis.run_folder import folder_of_all, open_runs
from swn_d2.own import add_own_arguments, register_own


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``argv`` defaults to the process's own."""
    parser = argparse.ArgumentParser(
        description="Write a report on a training, or on several side by side: their AP, curves, "
        "figures, configs, versions. It is one HTML page without anything beside it. What a folder "
        "lacks, the page says in its place."
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="OUTPUT_DIR of a training; the first is what the others are compared with",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="default: report.html in the run's folder, or in the one that all the runs are in",
    )
    add_own_arguments(parser)
    add_debug_argument(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Run the tool."""
    args = parse_args()
    with user_errors_exit(), phase("writing the report"):
        if args.output and args.output.suffix.lower() not in (".html", ".htm"):
            # Which keeps a file of another kind from being replaced.
            raise UserError(
                f"the report is an HTML page, whose name must end with .html; {args.output} does "
                "not."
            )
        register_own(args)
        runs = open_runs(args.runs)
        file = args.output or folder_of_all(args.runs) / "report.html"
        write_report(runs, file)
    print(f"{file} ({file.stat().st_size / 1e6:.1f} MB): open it in a browser.")


if __name__ == "__main__":
    main()
