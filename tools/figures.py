#!/usr/bin/env python3
"""Draw what the weights did in a training, or in several side by side. See docs/analysis.md."""

import argparse
import sys
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

from swn_d2.analysis.figures import FIGURES
from swn_d2.analysis.run_folder import folder_of_all, open_runs
from swn_d2.analysis.style import save
from swn_d2.own import add_own_arguments, register_own


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``argv`` defaults to the process's own."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s RUN [RUN ...] [--only NAME [NAME ...]] [--output FOLDER] [options]",
        description="Draw what the weights did in a training, or in several side by side, as PNG "
        "files:\nevery figure that the runs have the data for. Name the baseline first.",
        epilog="figures:\n" + "\n".join(f"  {k:12}{info.title}" for k, info in FIGURES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="OUTPUT_DIR of a training")
    parser.add_argument(
        "--only", nargs="+", choices=FIGURES, metavar="NAME", help="draw these figures (see below)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="default: figures/ in the run's folder, or in the one that all the runs are in",
    )
    add_own_arguments(parser)
    add_debug_argument(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    with user_errors_exit(), phase("drawing the figures"):
        register_own(args)
        runs = open_runs(args.runs)
        folder = args.output or folder_of_all(args.runs) / "figures"
        drawn = 0
        for name in args.only or FIGURES:
            try:
                figure = FIGURES[name].draw(runs)
            except UserError as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            save(figure, folder / f"{name}.png")
            print(f"{name}: {folder / name}.png", flush=True)
            drawn += 1
        if not drawn:
            raise UserError("no figure could be drawn; the lines above say why.")


if __name__ == "__main__":
    main()
