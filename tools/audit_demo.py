#!/usr/bin/env python3
"""An audit in one command: digits of which some are annotated as others, and who finds them.

Started again after it was stopped, it goes on from the last checkpoint.
"""

import argparse
import time
from pathlib import Path

from demo import run, train

from swn_d2.errors import (
    add_debug_argument,
    phase,
    require_detectron2,
    require_matplotlib,
    require_scikit_learn,
    user_errors_exit,
)

with user_errors_exit():
    require_detectron2()
    require_matplotlib()
    require_scikit_learn()

from swn_d2.data import digit_scenes_root

CONFIG = "configs/Quickstart/faster_rcnn_tiny_FPN.yaml"
OUTPUT = Path("output/audit_demo")
SHARE = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_debug_argument(parser)
    parser.parse_args()
    start = time.monotonic()
    run("tools/make_digit_scenes.py")
    root = digit_scenes_root()
    clean, part, rest, noisy, truth = (
        str(root / f"{name}.json")
        for name in (
            "annotations/instances_train",
            "third",
            "other_two_thirds",
            "noisy_third",
            "noisy_third.truth",
        )
    )
    # A third of them, for the time that it takes.
    run("tools/split_dataset.py", clean, part, rest, "--share", "0.33")
    run("tools/add_noise.py", part, noisy, "--wrong-classes", str(SHARE))
    train(
        *(CONFIG, OUTPUT, "--register-coco", "noisy_digits", noisy, str(root / "train")),
        *("DATASETS.TRAIN", "noisy_digits", "DATASETS.TEST", "()"),
        *("SOLVER.MAX_ITER", "600", "SOLVER.STEPS", "(450,)"),
    )
    # The boxes are exact, and localisers, which would find still more, take their time.
    run("tools/audit.py", str(OUTPUT), "--quick", "--overwrite")
    print(f"\n{SHARE:.0%} of the digits were annotated as another one. What the audit found:\n")
    run("tools/measure_audit.py", str(OUTPUT / "audit.json"), truth)
    minutes = (time.monotonic() - start) / 60
    print(f"\n{minutes:.1f} minutes. The audit, in a browser: {OUTPUT / 'audit.html'}")


if __name__ == "__main__":
    with user_errors_exit(), phase("the demo"):
        main()
