"""The detector with the best AP of a training's evaluations, kept beside its checkpoints."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict

from ..errors import UserError
from .checkpoint import BEST, SafeCheckpointer, read_checkpoint

__all__ = ["Best", "BestCheckpoint", "read_best"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """What the detector in :data:`.checkpoint.BEST` is the best in.

    Attributes:
        metric: "bbox/AP" for instance.
        value: of it, in percent.
        iteration: after which it was evaluated, counted from 0.
    """

    metric: str
    value: float
    iteration: int
    data_sets: list[str] | None = None  # which older files do not have


def read_best(folder: str | Path) -> Best | None:
    """What a run's folder has as its best. None if it has none.

    Raises:
        UserError: the file can't be read, or is something else.
    """
    file = Path(folder) / BEST
    if not file.is_file():
        return None
    try:
        return Best(**read_checkpoint(str(file))["best"])
    except (UserError, LookupError, TypeError) as error:
        raise UserError(
            f"{file} is not the best detector that a training keeps, or is damaged; delete it, or "
            "give it another name."
        ) from error


class BestCheckpoint(HookBase):
    """Saves the detector as :data:`.checkpoint.BEST` whenever an evaluation gives more AP than all
    before it, those before the run was resumed, too.

    It belongs after what evaluates, in the main process. Of several tasks or data sets, the AP is
    that of the first by name.
    """

    def __init__(self, checkpointer: SafeCheckpointer, data_sets: Sequence[str]):
        """
        Args:
            data_sets: which are evaluated; one that was the best on others is none.
        """
        self._checkpointer, self._data_sets = checkpointer, list(data_sets)
        self._best: Best | None = None
        self._seen = None

    def before_train(self) -> None:
        if self.trainer.start_iter > 0:
            self._best = read_best(self._checkpointer.save_dir)
            before = self._best and self._best.data_sets
            if before is not None and sorted(before) != sorted(self._data_sets):
                _logger.info(
                    f"{BEST} was the best on {', '.join(before)}; from here on it is that on "
                    f"{', '.join(self._data_sets)}."
                )
                self._best = None

    def after_step(self) -> None:
        # Where DefaultTrainer leaves what each evaluation gives.
        results = getattr(self.trainer, "_last_eval_results", None)
        if not results or results is self._seen:
            return
        self._seen = results
        flat = flatten_results_dict(results)
        metric = min((key for key in flat if key.endswith("/AP")), default=None)
        # NaN, where nothing was detected, is not more.
        if metric and flat[metric] > (self._best.value if self._best else -1):
            iteration = min(self.trainer.iter, self.trainer.max_iter - 1)  # one more at the end
            self._best = Best(metric, float(flat[metric]), iteration, self._data_sets)
            self._checkpointer.save_best(best=asdict(self._best))
            _logger.info(
                f"The best so far, kept as {BEST}: {metric} {self._best.value:.2f} after "
                f"{self._best.iteration + 1} iterations."
            )

    def after_train(self) -> None:  # after the last evaluation
        self.after_step()
