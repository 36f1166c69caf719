"""The trainer: Detectron2's, with two optimisers and with checkpoints that hold all of a run."""

import errno
import inspect
import logging
import os
import weakref
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    PascalVOCDetectionEvaluator,
)
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter

from ..data import (
    NamingDatasetMapper,
    TrainStream,
    end_with_parent,
    load_training_set,
    number_annotations,
)
from ..data.voc import VOC_EVALUATOR_TYPE
from ..errors import UserError, phase, user_errors_exit
from ..evaluation import build_voc_evaluator
from ..files import write_text
from ..pickled_arrays import read_pickled_arrays
from ..random_numbers import STEP, seed_at
from ..recording import weighters_of
from ..weighting.memory import ObjectMemory
from ..weighting.rightness import ClassRightness
from .best import BestCheckpoint
from .checkpoint import SafeCheckpointer
from .console import ProgressPrinter, describe_results, prints_logged
from .environment import write_environment
from .inner_trainer import inner_trainer_class
from .optimizer import build_joint_optimizer
from .recorder import SampleRecorder
from .retinanet_history import RetinaNetHistory
from .schedule import length_in_words, schedule_faults
from .setup import check_output_dir, make_output_dir
from .start import EVALUATION_CONFIG, EVALUATION_METRICS, write_config
from .stopping import StopOnSignal

__all__ = ["SWNTrainer"]

_logger = logging.getLogger(__name__)


class SWNTrainer(DefaultTrainer):
    """Trains a detector with SGD and its sample weighter with Adam, on the same schedule.

    Its checkpoints hold the state of both optimisers, the schedule, the iteration and the
    GradScaler, on every supported version of Detectron2, some of which save less. They also hold
    what a weighter remembers of the training set's objects, if it does, which is no part of the
    detector; and the seed. What an iteration draws follows from the seed, the iteration and the
    rank, so that a run that is resumed does what it would have done.

    SIGTERM and Ctrl-C end a training with a checkpoint: see :class:`.stopping.StopOnSignal`. Where
    ``TEST.EVAL_PERIOD`` is greater than 0, the detector with the best AP is kept beside the
    checkpoints: see :class:`.best.BestCheckpoint`.

    It makes the folder ``OUTPUT_DIR``, and :meth:`train` writes ``config.yaml`` there; a run that
    is in it already can only be resumed.

    Attributes:
        resume_command: what is then said to go on with.
    """

    resume_command = "the same, with resume_or_load(resume=True)"

    def __init__(self, cfg):
        # DefaultTrainer's steps, since two of them do not fit: its DistributedDataParallel can't
        # wrap a model on the CPU, and its checkpointer overwrites files in place.
        TrainerBase.__init__(self)
        make_output_dir(cfg.OUTPUT_DIR)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        # Of torch's generator, which a script without a SEED may have seeded itself.
        drawn = comm.all_gather(torch.randint(2**31, ()).item())[0]
        self._seed = cfg.SEED if cfg.SEED >= 0 else drawn
        optimizer = self.build_optimizer(cfg, model)
        self._memories = [m for m in model.modules() if isinstance(m, ObjectMemory)]
        if self._memories:
            data_loader = self._build_numbered_train_loader(cfg)
        else:
            data_loader = self.build_train_loader(cfg)
        on_cpu = cfg.MODEL.DEVICE == "cpu"
        model = create_ddp_model(
            model,
            broadcast_buffers=False,
            device_ids=None if on_cpu else [torch.cuda.current_device()],
        )
        self._trainer = inner_trainer_class(cfg)(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self._resumes = False
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    @phase("building the model")
    def build_model(cls, cfg):
        return super().build_model(cfg)

    @classmethod
    @phase("building the optimiser")
    def build_optimizer(cls, cfg, model):
        return build_joint_optimizer(cfg, model)

    @classmethod
    @phase("building the schedule")
    def build_lr_scheduler(cls, cfg, optimizer):
        return super().build_lr_scheduler(cfg, optimizer)

    @classmethod
    @phase("loading the training set")
    def build_train_loader(cls, cfg, dataset: list[dict] | None = None):
        """As Detectron2's, but a training can go on with any of its batches; an override may do
        without. It needs the one more argument only for weighters that remember objects.

        Args:
            dataset: the dataset dicts to load; those that ``cfg`` names if there are none.
        """
        if dataset is None:
            dataset = load_training_set(cfg)
        mapper = NamingDatasetMapper(cfg, is_train=True)
        return TrainStream(cfg, dataset=dataset, mapper=mapper)

    def _build_numbered_train_loader(self, cfg):
        """A training loader that tells objects by their numbers, with room for each of them in the
        memories.

        Raises:
            UserError: a subclass has a ``build_train_loader`` that takes no ``dataset``, or precise
                batch normalisation is on.
        """
        try:
            inspect.signature(self.build_train_loader).bind(cfg, dataset=None)
        except TypeError:
            raise UserError(
                f"MODEL.SAMPLE_WEIGHTER.NAME {cfg.MODEL.SAMPLE_WEIGHTER.NAME} remembers the "
                f"objects of the training set, but {type(self).__name__}.build_train_loader takes "
                "no dataset whose annotations are numbered; add the argument dataset=None, and "
                "load that with a NamingDatasetMapper where it is given."
            ) from None
        if cfg.TEST.PRECISE_BN.ENABLED:
            raise UserError(
                f"MODEL.SAMPLE_WEIGHTER.NAME {cfg.MODEL.SAMPLE_WEIGHTER.NAME} remembers what the "
                "detector is trained on, and TEST.PRECISE_BN.ENABLED runs batches through it that "
                "it is not; set that to False."
            )
        dataset = load_training_set(cfg)
        num_annotations = number_annotations(dataset)
        for memory in self._memories:
            memory.allocate(num_annotations)
        return self.build_train_loader(cfg, dataset=dataset)

    @classmethod
    @phase("loading the test set")
    def build_test_loader(cls, cfg, dataset_name: str):
        if cfg.MODEL.LOAD_PROPOSALS:
            # Detectron2 would run the code in it.
            index = list(cfg.DATASETS.TEST).index(dataset_name)
            read_pickled_arrays(cfg.DATASETS.PROPOSAL_FILES_TEST[index])
        mapper = NamingDatasetMapper(cfg, is_train=False)
        loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        loader.worker_init_fn = end_with_parent  # for which some versions have no argument
        return loader

    @classmethod
    def build_evaluator(cls, cfg, dataset_name: str) -> DatasetEvaluator:
        """The evaluator of the data set's type: COCO's boxes (and masks), or Pascal VOC's.

        Where VOC's difficult objects are ignored, it gives COCO's box metrics and VOC's.

        Raises:
            UserError: there is no evaluator for the type.
        """
        evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        if evaluator_type == "coco":
            sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
            return COCOEvaluator(dataset_name, output_dir=folder, kpt_oks_sigmas=sigmas)
        if evaluator_type == VOC_EVALUATOR_TYPE:
            return build_voc_evaluator(dataset_name, folder)
        if evaluator_type == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        raise UserError(
            f"DATASETS.TEST has {dataset_name!r}, whose evaluator type is {evaluator_type!r}; "
            f"swn_d2 evaluates data sets of the types coco, pascal_voc and {VOC_EVALUATOR_TYPE}."
        )

    @classmethod
    @phase("the evaluation")
    def test(cls, cfg, model, evaluators=None):
        """As Detectron2's. What it leaves in the folder then has its config beside it."""
        with prints_logged():
            results = super().test(cfg, model, evaluators)
        names = cfg.DATASETS.TEST
        if names and comm.is_main_process():
            folder = Path(cfg.OUTPUT_DIR)
            (folder / EVALUATION_METRICS).unlink(missing_ok=True)  # of the evaluation before
            write_text(folder / EVALUATION_CONFIG, cfg.dump())
            for name, of_set in ({names[0]: results} if len(names) == 1 else results).items():
                if of_set:  # a test set may come without annotations
                    _logger.info(describe_results(name, of_set))
        return results

    def build_writers(self):
        return [
            ProgressPrinter(self.max_iter) if type(writer) is CommonMetricPrinter else writer
            for writer in super().build_writers()
        ]

    def build_hooks(self):
        ret = super().build_hooks()
        # Detectron2's hook reports the learning rate of the largest group, which is Adam's if it
        # sees the joint optimiser.
        detector = self._trainer.optimizer.members["detector"]
        ret = [
            hooks.LRScheduler(detector, self.scheduler)
            if isinstance(hook, hooks.LRScheduler)
            else hook
            for hook in ret
        ]
        model = self._trainer.model
        model = getattr(model, "module", model)  # without DistributedDataParallel around it
        if self.cfg.RECORDING.PERIOD and comm.is_main_process() and weighters_of(model):
            recorder = SampleRecorder(
                model,
                self.cfg.OUTPUT_DIR,
                period=self.cfg.RECORDING.PERIOD,
                num_samples=self.cfg.RECORDING.NUM_SAMPLES,
                image_format=self.cfg.INPUT.FORMAT,
            )
            ret.insert(0, recorder)  # before the writers, which write what it shows
        # Around Detectron2's checkpointer, which only the main process has; before the evaluation,
        # which may take longer than a scheduler waits.
        period = self.cfg.SOLVER.CHECKPOINT_PERIOD
        around = [RetinaNetHistory(model, period)] if RetinaNetHistory.is_for(model) else []
        around += [hook for hook in ret if isinstance(hook, hooks.PeriodicCheckpointer)]
        around.append(StopOnSignal(self._save_between, lambda: self.resume_command))
        ret = [hook for hook in ret if hook not in around]
        where = next(i for i, hook in enumerate(ret) if isinstance(hook, hooks.EvalHook))
        after = [BestCheckpoint(self.checkpointer, self.cfg.DATASETS.TEST)]
        if not (self.cfg.TEST.EVAL_PERIOD > 0 and comm.is_main_process()):
            after = []
        return ret[:where] + around + ret[where : where + 1] + after + ret[where + 1 :]

    def resume_or_load(self, resume=True):
        self._resumes = resume
        super().resume_or_load(resume=resume)
        if self.start_iter == 0:  # what MODEL.WEIGHTS has seen was of another training
            for module in self._trainer.model.modules():
                if isinstance(module, ClassRightness):
                    module.forget()

    def train(self):
        """Train until ``SOLVER.MAX_ITER``, and evaluate.

        Raises:
            UserError: ``OUTPUT_DIR`` holds a run, which is not resumed.
        """
        check_output_dir(self.cfg.OUTPUT_DIR, resume=self._resumes)
        if self.start_iter > self.max_iter:
            raise UserError(
                f"the run in {self.cfg.OUTPUT_DIR} has done {self.start_iter} iterations already; "
                f"SOLVER.MAX_ITER, {self.max_iter}, counts from its start, so give a larger one."
            )
        comm.synchronize()  # what one process now writes is no other run to the others
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.SEED = self._seed
        write_config(cfg, eval_only=False)
        if isinstance(self.data_loader, TrainStream):
            num_pictures, solver = self.data_loader.num_images, self.cfg.SOLVER
            _logger.info(length_in_words(solver.MAX_ITER, solver.IMS_PER_BATCH, num_pictures))
            for fault in schedule_faults(self.cfg, num_pictures):
                _logger.warning(fault)
        return super().train()

    def _save_between(self) -> str:
        """Write a checkpoint, in every process, if none has just been due."""
        name = f"model_{self.iter:07d}"
        if (self.iter + 1) % self.cfg.SOLVER.CHECKPOINT_PERIOD:
            for hook in self._hooks:
                if isinstance(hook, RetinaNetHistory):
                    hook.gather()
            self.checkpointer.save(name, iteration=self.iter)
        return f"{name}.pth"

    def before_train(self):
        if comm.is_main_process():
            with self._one_line_errors():
                write_environment(
                    self.cfg.OUTPUT_DIR,
                    device=self.cfg.MODEL.DEVICE,
                    num_processes=comm.get_world_size(),
                )
        if isinstance(self.data_loader, TrainStream):
            self.data_loader.begin_at(self.start_iter, seed=self._seed)
        for hook in self._hooks:
            loader = isinstance(hook, hooks.PreciseBN) and getattr(hook, "_data_loader", None)
            if isinstance(loader, TrainStream):  # of which it takes its share in every period
                periods = self.start_iter // (self.cfg.TEST.EVAL_PERIOD or self.max_iter)
                loader.begin_at(periods * self.cfg.TEST.PRECISE_BN.NUM_ITER, seed=self._seed)
        super().before_train()

    def run_step(self):
        seed_at(self._seed, STEP, self.iter, comm.get_rank())
        with self._one_line_errors():
            super().run_step()

    def after_step(self):
        with self._one_line_errors():
            super().after_step()

    def after_train(self):
        if isinstance(self.data_loader, TrainStream):
            # Ends the processes that load; Python's collector would take away first what they
            # are told by.
            self._trainer._data_loader_iter.close()
        with self._one_line_errors():
            super().after_train()

    @contextmanager
    def _one_line_errors(self):
        """What a user can mend ends the run with a line, not a traceback; and so does whatever
        fails in the first iteration, before any time is spent.

        Here and not around the whole training, since TrainerBase.train logs the traceback of
        every exception but SystemExit.
        """
        is_first = self.iter == self.start_iter
        first = phase("the first iteration") if is_first else nullcontext()
        with user_errors_exit(self.cfg.OUTPUT_DIR), first:
            try:
                yield
            except FloatingPointError as error:
                raise UserError(
                    f"training has diverged at iteration {self.iter}; lower SOLVER.BASE_LR, raise "
                    "SOLVER.WARMUP_ITERS, or scale large weights of objects or classes down. "
                    f"{' '.join(str(error).split())}"
                ) from error
            except UserError as error:
                # A data loader's process puts its traceback in front.
                last_line = str(error).strip().splitlines()[-1]
                raise UserError(last_line.split("UserError: ")[-1]) from error
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                raise UserError(
                    f"cannot write to {self.cfg.OUTPUT_DIR}: {error.strerror}. Make room, and go "
                    "on with --resume from the last checkpoint."
                ) from error

    def state_dict(self) -> dict[str, Any]:
        # Not DefaultTrainer's: it leaves the optimisers out before Detectron2 0.6.
        state = {
            **TrainerBase.state_dict(self),
            "_trainer": self._trainer.state_dict(),
            "seed": self._seed,
        }
        if self._memories:
            state["object_memories"] = [memory.get_state() for memory in self._memories]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = state_dict.get("_trainer", {})
        for key in self._trainer.state_dict():
            if key not in state and key != "hooks":
                raise UserError(
                    f"the checkpoint has no state of the {key}; it was written by another trainer "
                    "or with another SOLVER.AMP.ENABLED. Resume with that, or start a new run "
                    "from its MODEL.WEIGHTS."
                )
        memories = state_dict.get("object_memories", [])
        if len(memories) != len(self._memories):
            raise UserError(
                f"the number of memories of objects is {len(memories)} in the checkpoint, but "
                f"{len(self._memories)} in this run: it was written with another sample weighter. "
                "Resume with that, or start a new run from its MODEL.WEIGHTS."
            )
        for memory, memory_state in zip(self._memories, memories, strict=True):
            memory.set_state(memory_state)
        self._seed = state_dict.get("seed", self._seed)  # which older checkpoints do not have
        if 0 <= self.cfg.SEED != self._seed:
            _logger.warning(f"The run goes on with its SEED {self._seed}, not {self.cfg.SEED}.")
        asked = self._trainer.optimizer.settings()
        TrainerBase.load_state_dict(self, state_dict)
        self._trainer.load_state_dict(state)
        if changed := self._trainer.optimizer.change(asked):
            groups = self._trainer.optimizer.param_groups
            if hasattr(self.scheduler, "base_lrs"):
                self.scheduler.base_lrs = [g.get("initial_lr", g["lr"]) for g in groups]
            _logger.info(f"From here on the run has another {', '.join(changed)}.")
