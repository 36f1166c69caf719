#!/usr/bin/env python3
"""The main job in one command: make data, train Faster R-CNN with SWN on it, evaluate, report.

It is what a user does by hand with make_digit_scenes.py and train_net.py. Started again after it
was stopped, it goes on from the last checkpoint.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from swn_d2.errors import add_debug_argument, phase, require_detectron2, user_errors_exit

CONFIG = "configs/Quickstart/faster_rcnn_tiny_FPN_swn.yaml"
OUTPUT = Path("output/demo")
PICTURE = OUTPUT / "detections.png"
REPORT = OUTPUT / "report.html"


def run(*command: str) -> None:
    print("$ python " + " ".join(command), flush=True)
    result = subprocess.run([sys.executable, *command])
    if result.returncode:
        raise SystemExit(result.returncode)


def train(config: str, output: Path, *arguments: str) -> None:
    """Train on the CPU, by two processes. Two threads of one process would wait for each other by
    spinning, and take many times as long where something else is running on their cores."""
    run(
        *("train_net.py", "--config-file", config, "--resume", "--num-gpus", "2", *arguments),
        # The same numbers every time, but for rounding.
        *("OUTPUT_DIR", str(output), "SEED", "1", "MODEL.DEVICE", "cpu"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_debug_argument(parser)
    parser.parse_args()
    require_detectron2()
    start = time.monotonic()
    run("tools/make_digit_scenes.py")
    # Four fifths of the config's length, and a curve of AP for the report.
    schedule = ("SOLVER.MAX_ITER", "720", "SOLVER.STEPS", "(504, 648)")
    train(CONFIG, OUTPUT, *schedule, "TEST.EVAL_PERIOD", "240")

    from swn_d2.analysis.report import write_report
    from swn_d2.analysis.run_folder import RunFolder
    from swn_d2.evaluation import draw_detections

    draw_detections(
        str(OUTPUT / "inference" / "coco_instances_results.json"),
        "digit_scenes_val",
        str(PICTURE),
    )
    write_report([RunFolder(OUTPUT)], REPORT)
    result = last_evaluation(OUTPUT / "metrics.json")
    minutes = (time.monotonic() - start) / 60
    print(
        f"\nFaster R-CNN with SWN on DigitScenes, {minutes:.1f} minutes:\n\n"
        f"  AP (0.50:0.95)   {result['bbox/AP']:6.2f}\n"
        f"  AP50             {result['bbox/AP50']:6.2f}\n"
        f"  AP75             {result['bbox/AP75']:6.2f}\n\n"
        f"What its weights do, in a browser:  {REPORT}\n"
        f"Detections beside the ground truth: {PICTURE}\n"
        f"Everything else of the run:         {OUTPUT}/"
    )


def last_evaluation(metrics_file: Path) -> dict:
    rows = map(json.loads, metrics_file.read_text().splitlines())
    return [row for row in rows if "bbox/AP" in row][-1]


if __name__ == "__main__":
    with user_errors_exit(), phase("the demo"):
        main()
