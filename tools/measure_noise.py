#!/usr/bin/env python3
"""Do the weights know which annotations are noisy?

DigitScenes remembers it; of other data, the file says it that tools/add_noise.py has written with
--left-out: give it with --register-coco and --dataset.

Trained detectors with their weighters look at batches of the training set once more, without
learning. For positives of exact and of noisy annotations: the means of their weights, and the
probability that an exact one has the larger weight (the area under the ROC curve: 0.5 if the
weights know nothing, 1 if they know all). The same for the statistics; of losses, the probability
that the noisy one has the larger.
"""

import argparse
from pathlib import Path

from swn_d2.errors import (
    UserError,
    add_debug_argument,
    phase,
    require_detectron2,
    require_scipy,
    user_errors_exit,
)

with user_errors_exit():
    require_detectron2()
    require_scipy()

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from scipy.stats import mannwhitneyu

from swn_d2 import SWNTrainer
from swn_d2.analysis.run_folder import RunFolder
from swn_d2.data import load_training_set, unknown_dataset
from swn_d2.engine import SafeCheckpointer, choose_device
from swn_d2.own import add_own_arguments, register_own
from swn_d2.own.notes import check_learned_classes
from swn_d2.recording import sample_columns, weighters_of

#: The training set in which noisy objects have a ``sample_weight`` of 0, and nothing else differs.
DATASET = "digit_scenes_train_oracle"


@torch.no_grad()
def positives(
    run: RunFolder, batches: int, *, dataset: str = DATASET, checkpoint: Path | None = None
) -> dict[str, np.ndarray]:
    """Column -> (n,) statistics and weights of the positives of some batches of the training set,
    and ``is_noisy``.

    Args:
        dataset: the run's training set, in which noisy objects have a ``sample_weight`` of 0.
        checkpoint: of the run; by default its last.

    Raises:
        UserError: the run has no config, no checkpoint, or no single sample weighter, or the
            checkpoint does not have it; or it was trained on other classes.
    """
    checkpoint = checkpoint or run.checkpoint
    for part, value in (("cfg", run.cfg), ("checkpoint", checkpoint)):
        if value is None:
            raise UserError(run.problem(part))
    cfg = run.cfg.clone()
    choose_device(cfg)
    cfg.DATASETS.TRAIN = (dataset,)
    cfg.MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS = []  # else they would hide who is noisy
    seed_all_rng(0)  # the same images and regions for every run
    model = SWNTrainer.build_model(cfg).train()
    SafeCheckpointer(model).load_whole(str(checkpoint), with_weighter=True)
    records = load_training_set(cfg)
    names = {dataset: MetadataCatalog.get(dataset).thing_classes}
    check_learned_classes(run.path, names, remedy=", with --dataset")
    weighters = weighters_of(model)
    if list(weighters) != [""]:
        raise UserError(f"{run.name} has {len(weighters)} sample weighters, but must have one.")
    found = []

    def look(_, inputs, weights):
        statistics = inputs[0].finite()
        columns = sample_columns(statistics, weights, {})
        columns["is_noisy"] = (statistics.detail("given_weight") == 0).float()
        found.append({k: v[statistics.foreground].cpu().numpy() for k, v in columns.items()})

    weighters[""].register_forward_hook(look)
    data = iter(SWNTrainer.build_train_loader(cfg, dataset=records))
    with EventStorage(cfg.SOLVER.MAX_ITER):  # as after the training: weights are eased in
        for _ in range(batches):
            model(next(data))
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a training")
    parser.add_argument("--batches", type=int, default=25, help="to look at (default: 25)")
    parser.add_argument(
        "--dataset",
        default=DATASET,
        metavar="NAME",
        help="the training set in which noisy objects have a sample_weight of 0, and nothing else "
        "differs (default: %(default)s)",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="in the run's folder, to look at what was known then (default: the last)",
    )
    add_own_arguments(parser)
    add_debug_argument(parser)
    args = parser.parse_args()
    register_own(args)
    if args.batches < 1:
        raise UserError("--batches must be at least 1.")
    runs = [RunFolder(folder) for folder in args.runs]  # which know data sets, too
    if args.dataset not in DatasetCatalog:
        raise UserError(unknown_dataset(args.dataset))
    for run in runs:
        columns = positives(
            run,
            args.batches,
            dataset=args.dataset,
            checkpoint=args.checkpoint and run.path / args.checkpoint,
        )
        is_noisy = columns.pop("is_noisy") == 1
        print(f"{run.path}: {len(is_noisy)} positives, {is_noisy.mean():.0%} of noisy annotations")
        if is_noisy.all() or not is_noisy.any():
            raise UserError(
                f"nothing can be told apart: {args.dataset} was made without noise. Make "
                "DigitScenes with --box-noise-share or --class-noise-share; of other data, give "
                "--dataset what tools/add_noise.py wrote with --left-out."
            )
        for name, values in columns.items():
            exact, noisy = values[~is_noisy], values[is_noisy]
            if name == "gt_class" or values.std() == 0:
                continue
            larger, smaller = (noisy, exact) if name.endswith("_loss") else (exact, noisy)
            area = mannwhitneyu(larger, smaller).statistic / (len(exact) * len(noisy))
            print(
                f"  {name:12} exact {exact.mean():7.3f}  noisy {noisy.mean():7.3f}  "
                f"area under the ROC curve {area:.3f}"
            )


if __name__ == "__main__":
    with user_errors_exit(), phase("measuring"):
        main()
