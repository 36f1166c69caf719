#!/usr/bin/env python3
"""How good is an audit? On annotations with noise that tools/add_noise.py added."""

import argparse
import math
from pathlib import Path

from swn_d2.errors import (
    add_debug_argument,
    phase,
    require_detectron2,
    require_scikit_learn,
    user_errors_exit,
)

with user_errors_exit():
    require_detectron2()
    require_scikit_learn()

from swn_d2.audit.audit import KINDS, MISSING_OBJECT
from swn_d2.audit.measure import measure_annotations, measure_missing, read_audit


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``argv`` defaults to the process's own."""
    parser = argparse.ArgumentParser(
        description="Compare an audit with the truth: the area under the ROC curve, the average "
        "precision, how many of the first 100 are wrong, and how many were expected to be."
    )
    parser.add_argument("audit", type=Path, help="audit.json of tools/audit.py")
    parser.add_argument(
        "truth", type=Path, help="the truth that tools/add_noise.py wrote (.truth.json)"
    )
    add_debug_argument(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Run the tool."""
    args = parse_args()
    with user_errors_exit(), phase("measuring the audit"):
        audit, truth = read_audit(args.audit, args.truth)
        rows = {"any kind": measure_annotations(audit, truth)}
        rows |= {kind: measure_annotations(audit, truth, kind) for kind in KINDS}
        rows[MISSING_OBJECT] = measure_missing(audit, truth)
    print("| suspicion | of | wrong | expected | area | average precision | first 100 |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    for name, m in rows.items():
        print(
            f"| {name} | {m.number} | {m.wrong} | {m.expected:.0f} | {share(m.area)} | "
            f"{share(m.average_precision)} | {m.first} |"
        )
    print("–: not defined, where nothing, or everything, is wrong, and for missing objects.")


def share(value: float) -> str:
    """As the table has it."""
    return "–" if math.isnan(value) else f"{value:.3f}"


if __name__ == "__main__":
    main()
