#!/usr/bin/env python3
"""Kill small trainings, again and again, and see whether they end as one that is left alone.

They are killed at random moments, while a checkpoint is written, after a record and in an
evaluation; and resumed. Exits with 1 where anything in the end is not the same, bit for bit.
"""

import argparse
from pathlib import Path

from swn_d2.errors import (
    UserError,
    add_debug_argument,
    phase,
    require_detectron2,
    user_errors_exit,
)

with user_errors_exit():
    require_detectron2()

from swn_d2.data import make_digit_scenes
from swn_d2.experiments.torture import Campaign

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = REPOSITORY / "configs" / "Quickstart" / "faster_rcnn_tiny_FPN_swn.yaml"
#: A few iterations on a few images, with everything on the way that a training has.
OPTIONS = """
    DATASETS.TRAIN ('tortured_train',) DATASETS.TEST ('tortured_val',) MODEL.DEVICE cpu SEED 1
    INPUT.MIN_SIZE_TRAIN (72,80) INPUT.MIN_SIZE_TEST 80 INPUT.RANDOM_FLIP horizontal
    SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 12 SOLVER.STEPS (8,) SOLVER.WARMUP_ITERS 2
    SOLVER.CHECKPOINT_PERIOD 3 TEST.EVAL_PERIOD 4 RECORDING.PERIOD 1 MODEL.SWN.EASE_IN [0.1,0.9]
    DATALOADER.NUM_WORKERS 1
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="a new folder, for the data and the trainings")
    parser.add_argument("--kills", type=int, default=100, help="how many (default: 100)")
    parser.add_argument(
        "--processes", type=int, default=1, choices=(1, 2), help="of each training (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    add_debug_argument(parser)
    return parser


def main() -> None:
    args = argument_parser().parse_args()
    if args.kills < 1:
        raise UserError("--kills must be at least 1.")
    if args.output.exists():
        raise UserError(f"{args.output} exists already; give another folder.")
    data = make_digit_scenes(args.output / "data", num_train=24, num_val=4, image_size=(96, 80))
    arguments = ["--config-file", str(CONFIG)]
    for split in ("train", "val"):
        annotations = data / "annotations" / f"instances_{split}.json"
        arguments += ["--register-coco", f"tortured_{split}", str(annotations), str(data / split)]
    campaign = Campaign(
        REPOSITORY / "train_net.py",
        [*arguments, *OPTIONS.split()],
        args.output,
        num_processes=args.processes,
        seed=args.seed,
    )
    outcome = campaign.run(args.kills, progress=lambda line: print(line, flush=True))
    print(outcome)
    if outcome.differences:
        raise UserError("a training that was killed is not what it would have been.")


if __name__ == "__main__":
    with user_errors_exit(), phase("the campaign"):
        main()
