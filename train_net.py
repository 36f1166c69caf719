#!/usr/bin/env python3
"""Train or evaluate a detector with sample weighting. Used as Detectron2's own train_net.py."""

from swn_d2.errors import (
    UserError,
    add_debug_argument,
    phase,
    require_detectron2,
    user_errors_exit,
)

with user_errors_exit():
    require_detectron2()

import logging
import os
import shlex
import sys
from pathlib import Path

from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from swn_d2 import SWNTrainer, load_config
from swn_d2.engine import (
    SafeCheckpointer,
    check_run,
    choose_device,
    find_place,
    folder_of_run,
    is_restart,
    last_checkpoint,
    launch,
    note_evaluation,
    note_start,
    resume_command,
    start_run,
    write_config,
)
from swn_d2.own import add_own_arguments, recall, register_own, take_overrides

_logger = logging.getLogger("swn_d2.train_net")


@phase("reading the config")
def setup(args):
    """The run's config, from the config file and the command line. What the command line does not
    name of one's own data, the run's folder may know, and that of a run's config.yaml."""
    register_own(args)
    if args.config_file:
        recall(os.path.dirname(args.config_file))
    cfg = load_config(args.config_file, args.opts)
    if args.resume and not args.is_restart and "OUTPUT_DIR" not in args.opts:
        cfg.OUTPUT_DIR = folder_of_run(args.config_file) or cfg.OUTPUT_DIR
    if args.resume and args.eval_only:  # as Detectron2's own: the run's last checkpoint
        last = last_checkpoint(cfg.OUTPUT_DIR)
        if last is None and "MODEL.WEIGHTS" not in args.opts:
            raise UserError(
                f"{cfg.OUTPUT_DIR} has no last_checkpoint to evaluate; give MODEL.WEIGHTS and a "
                "checkpoint."
            )
        cfg.MODEL.WEIGHTS = str(last or cfg.MODEL.WEIGHTS)
    recall(cfg.OUTPUT_DIR)
    choose_device(cfg)
    cfg.freeze()
    return cfg


def main(args):
    with user_errors_exit():
        cfg = setup(args)
    with user_errors_exit(cfg.OUTPUT_DIR):
        with phase("starting the run"):
            start_run(cfg, args)
        if args.eval_only:
            model = SWNTrainer.build_model(cfg)
            with phase("loading the checkpoint"):
                SafeCheckpointer(model, save_dir=cfg.OUTPUT_DIR).load_whole(cfg.MODEL.WEIGHTS)
            write_config(cfg, eval_only=True)
            results = SWNTrainer.test(cfg, model)
            note_evaluation(cfg, results)
            if comm.is_main_process():
                verify_results(cfg, results)
            return results
        with phase("setting up the training"):
            trainer = SWNTrainer(cfg)
        other = args.config_file and folder_of_run(args.config_file)
        trainer.resume_command = resume_command(sys.argv, cfg.OUTPUT_DIR if other else None)
        with phase("loading the checkpoint"):
            trainer.resume_or_load(resume=args.resume)
        results = trainer.train()
        if comm.is_main_process():
            report = os.path.relpath(Path(__file__).with_name("tools") / "report.py")
            _logger.info(f"Done: {cfg.OUTPUT_DIR}/model_final.pth")
            _logger.info(f"A report: {shlex.join(['python', report, cfg.OUTPUT_DIR])}")
        return results


def argument_parser():
    parser = default_argument_parser()
    add_own_arguments(parser)
    add_debug_argument(parser)
    # A port that is free: Detectron2's is the same for all trainings of a user.
    parser.set_defaults(dist_url="auto")
    parser.set_defaults(is_restart=False)  # else that of a training without --resume
    return parser


if __name__ == "__main__":
    args = argument_parser().parse_args()
    take_overrides(args)
    with user_errors_exit():
        # In this process first: a mistake is reported once, and before any process starts.
        cfg = setup(args)
        place = find_place(os.environ)
        if place is not None:
            if (args.num_gpus, args.num_machines) != (1, 1):
                raise UserError(
                    f"{place.num_processes} processes have been started already; leave out "
                    "--num-gpus and --num-machines."
                )
            args.num_gpus = place.num_local
            args.num_machines = place.num_processes // place.num_local
        args.is_restart = is_restart(os.environ) and not (args.resume or args.eval_only)
        args.resume = args.resume or args.is_restart
    with user_errors_exit(cfg.OUTPUT_DIR):
        check_run(
            cfg,
            eval_only=args.eval_only,
            resume=args.resume,
            num_processes_per_machine=args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            is_placed=place is not None,
        )
        if place is None and args.num_machines > 1 and args.dist_url == "auto":
            raise UserError(
                "--num-machines is more than 1, so say where the machines meet: --dist-url "
                "tcp://HOST:PORT, of the first one and a free port there, the same on all of them."
            )
        note_start(os.environ)
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
            device=cfg.MODEL.DEVICE,
            place=place,
        )
