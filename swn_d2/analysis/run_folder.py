"""What a training left in its folder, whatever of it is there."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import abspath, commonpath
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import flat_config, load_config
from ..data import unknown_dataset
from ..engine.best import Best, read_best
from ..engine.checkpoint import last_checkpoint
from ..engine.environment import ENVIRONMENT
from ..engine.start import EVALUATION_CONFIG, EVALUATION_METRICS
from ..errors import UserError
from ..evaluation.coco import CocoResults
from ..files import check_is_file, read_bytes, read_json
from ..own import recall
from ..recording import RECORDING, SNAPSHOTS, Record, read_recording

__all__ = ["Evaluation", "RunFolder", "evaluations_of", "folder_of_all", "open_runs"]

_DECIDES_DETECTIONS = r"MODEL\.(?!DEVICE)|INPUT\..*TEST|TEST\.(?!EVAL_PERIOD)|DATASETS\.TEST"


@dataclass(frozen=True)
class Evaluation:
    """What a run detected, and where.

    Attributes:
        dataset: the name of the data set.
    """

    dataset: str
    results: CocoResults


class RunFolder:
    """A run's folder, read when asked for. What can't be read is None or empty, and
    :attr:`problems` says why. The data sets that it knows get their names in Detectron2.

    Attributes:
        path: the folder.
        name: what figures call the run.
    """

    def __init__(self, path: str | Path, name: str | None = None):
        """
        Args:
            path: the folder, OUTPUT_DIR of the training.
            name: the folder's name if it is not given.

        Raises:
            UserError: there is no such folder.
        """
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(
                f"there is no folder {path}; give the OUTPUT_DIR of a training, like output/demo."
            )
        self.name = name or self.path.resolve().name
        self._problems: dict[str, str] = {}
        try:
            recall(self.path)
        except UserError as error:
            self._problems["data"] = str(error)

    @cached_property
    def cfg(self) -> CfgNode | None:
        """The run's config."""
        file = self.path / "config.yaml"
        if not file.is_file():
            self._problems["cfg"] = (
                f"{self.path} has no config.yaml, as train_net.py writes it: what depends on the "
                "settings, the data or the checkpoint is not known."
            )
            return None
        try:
            return load_config(str(file))
        except UserError as error:
            self._problems["cfg"] = self._problems.pop("data", None) or (
                f"the config of {self.path} is not one of this version: {error}"
            )
            return None

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.json, in the order of the iterations; of an iteration that was
        done twice, since the run was resumed, the later lines."""
        file = self.path / "metrics.json"
        rows: list[dict[str, Any]] = []
        if not file.exists():
            self._problems["metrics"] = (
                f"{self.path} has no metrics.json: no losses were logged, and no AP."
            )
            return rows
        try:
            lines = read_bytes(file).splitlines()
        except UserError as error:
            self._problems["metrics"] = str(error)
            return rows
        furthest = -1
        for line in lines:
            try:
                row = _numbers(json.loads(line))
                iteration = row["iteration"] = int(row["iteration"])
            except Exception:  # cut short, of another process, or no line of metrics
                continue
            # Only lines of a training step show that it was resumed: Detectron2 writes scalars
            # that an iteration did not have after it, with the iteration that had them.
            if "total_loss" in row and iteration <= furthest:
                rows = [r for r in rows if r["iteration"] < iteration]
                furthest = iteration
            furthest = max(furthest, iteration)
            rows.append(row)
        rows.sort(key=lambda row: row["iteration"])
        if not rows:
            self._problems["metrics"] = (
                f"metrics.json of {self.path} has no whole line: no losses were logged, and no AP."
            )
        return rows

    @cached_property
    def recording(self) -> list[Record]:
        """The records of its samples and weights."""
        try:
            check_is_file(self.path / RECORDING)
            records = read_recording(self.path / RECORDING)
        except UserError as error:
            self._problems["recording"] = str(error)
            return []
        if not records:
            self._problems["recording"] = f"{self.path / RECORDING} has no record yet."
        return records

    @property
    def has_recording(self) -> bool:
        """Whether there is a recording, readable or not: Detectron2's own detectors leave none."""
        return (self.path / RECORDING).exists()

    @cached_property
    def snapshots(self) -> list[tuple[int, Path]]:
        """(iteration counted from 0, file) of the weighter's parameters during training."""
        files = sorted((self.path / SNAPSHOTS).glob("*.pth"))
        return [(int(file.stem), file) for file in files if re.fullmatch(r"\d+", file.stem)]

    @cached_property
    def checkpoint(self) -> Path | None:
        """The last checkpoint."""
        try:
            file = last_checkpoint(self.path) or self.path / "model_final.pth"
        except UserError as error:
            self._problems["checkpoint"] = str(error)
            return None
        if not file.is_file():
            self._problems["checkpoint"] = f"{self.path} has no checkpoint."
            return None
        return file

    @cached_property
    def best(self) -> Best | None:
        """What the detector that it kept as its best is the best in; None if it kept none."""
        try:
            return read_best(self.path)
        except UserError as error:
            self._problems["best"] = str(error)
            return None

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """What its last evaluation detected in the last of its data sets."""
        try:
            return self._read_evaluation()
        except UserError as error:
            self._problems["evaluation"] = str(error)
            return None

    @cached_property
    def evaluated_with(self) -> dict[str, Any]:
        """Key -> value of the last evaluation, of what decides the detections and that the training
        has otherwise: what ``--eval-only`` evaluates leaves detections, but no line in
        :attr:`metrics`."""
        is_by_itself = (self.path / EVALUATION_METRICS).exists()
        if self.cfg is None or not is_by_itself:
            return {}
        try:
            evaluated = flat_config(load_config(str(self.path / EVALUATION_CONFIG)))
        except UserError:  # which :attr:`evaluation` tells
            return {}
        trained = flat_config(self.cfg)
        return {
            key: value
            for key, value in evaluated.items()
            if re.match(_DECIDES_DETECTIONS, key) and value != trained.get(key)
        }

    @cached_property
    def metrics_by_itself(self) -> dict[str, float]:
        """Metric, like "bbox/AP" -> percent of the last evaluation, if that was one by itself; NaN
        if it is not defined."""
        file = self.path / EVALUATION_METRICS
        try:
            content = read_json(file) if file.is_file() else {}
        except UserError:  # cut short
            return {}
        return {
            metric: math.nan if value is None else float(value)
            for metric, value in (content.items() if isinstance(content, dict) else ())
            if value is None or isinstance(value, int | float)
        }

    def _read_evaluation(self) -> Evaluation:
        config = self.path / EVALUATION_CONFIG
        cfg = load_config(str(config)) if config.is_file() else self.cfg
        if cfg is None or not cfg.DATASETS.TEST:
            raise UserError(
                f"{self.path} does not say what it was evaluated on: it needs a config.yaml with "
                "DATASETS.TEST."
            )
        name = cfg.DATASETS.TEST[-1]
        # As Detectron2's evaluator: data sets in other formats are converted in the run's folder.
        truth = self.path / "inference" / f"{name}_coco_format.json"
        if name in DatasetCatalog:
            truth = MetadataCatalog.get(name).get("json_file", truth)
        elif not truth.is_file():
            raise UserError(unknown_dataset(name))
        results = self.path / "inference" / "coco_instances_results.json"
        return Evaluation(name, CocoResults(results, truth))

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What trained it last, see :mod:`swn_d2.engine.environment`."""
        file = self.path / ENVIRONMENT
        try:
            if not file.exists():
                raise UserError(
                    f"{self.path} has no {ENVIRONMENT}, in which a training notes its versions and "
                    "the kind of machine."
                )
            content = read_json(file)
            if not isinstance(content, dict) or not isinstance(content.get("versions", {}), dict):
                raise UserError(f"{file} is not the note of a training on its versions.")
            return content
        except UserError as error:
            self._problems["environment"] = str(error)
            return {}

    def problem(self, attribute: str) -> str:
        """The sentence that says why an attribute of this name is None or empty."""
        getattr(self, attribute)
        return self._problems[attribute]

    @property
    def problems(self) -> dict[str, str]:
        """A sentence for each part that is missing or can't be read: "data", "cfg", "metrics",
        "recording", "checkpoint", "best" or "environment" -> sentence; "evaluation" once it was
        asked for, since it takes long to read."""
        _ = self.cfg, self.metrics, self.recording, self.checkpoint, self.best, self.environment
        return dict(self._problems)


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """What can be drawn of a line of metrics.json."""
    return {
        key: float(value)
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def open_runs(paths: Sequence[str | Path]) -> list[RunFolder]:
    """The folders of runs to be compared, each with a name of its own.

    Runs whose folders have the same name are told apart by the folders above.

    Raises:
        UserError: there is no such folder, or one is given twice.
    """
    resolved = [Path(path).resolve() for path in paths]
    for i, path in enumerate(resolved):
        if path in resolved[:i]:
            raise UserError(f"{paths[i]} is given twice; give different runs.")
    depth = 1
    while len({path.parts[-depth:] for path in resolved}) < len(resolved):
        depth += 1
    return [
        RunFolder(path, name="/".join(whole.parts[-depth:]))
        for path, whole in zip(paths, resolved, strict=True)
    ]


def folder_of_all(paths: Sequence[str | Path]) -> Path:
    """The innermost folder that holds all of these folders: of one, itself."""
    folder = Path(commonpath([abspath(path) for path in paths]))
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def evaluations_of(runs: Sequence[RunFolder]) -> list[Evaluation]:
    """What each run detected in the same data.

    Raises:
        UserError: a run has no evaluation that can be read, or they are of different data.
    """
    if not runs:
        raise UserError("there is no run to draw; give the folder of at least one.")
    for run in runs:
        if run.evaluation is None:
            raise UserError(run.problem("evaluation"))
        first, other = runs[0].evaluation, run.evaluation
        if (first.dataset, first.results.class_names) != (other.dataset, other.results.class_names):
            raise UserError(
                f"{runs[0].name} was evaluated on {first.dataset} and {run.name} on "
                f"{other.dataset}; to be compared, they must be evaluated on the same data."
            )
    return [run.evaluation for run in runs]
