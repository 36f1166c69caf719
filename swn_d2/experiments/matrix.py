"""The YAML file that says what is run: configs, overrides and seeds."""

import difflib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..config import flat_config, load_config, section_of
from ..data.sample_weights import without_weights
from ..engine.setup import check_detector
from ..engine.values import check_values
from ..errors import UserError
from ..files import read_yaml
from ..own import import_file
from ..weighting import SAMPLE_WEIGHTER_REGISTRY

__all__ = ["CHECKPOINT", "Matrix", "Run", "load_matrix"]

#: The name of the runs that the rows start from, where a matrix asks for that.
CHECKPOINT = "checkpoint"
#: Config keys that the tool sets itself.
OWN_KEYS = ("SEED", "OUTPUT_DIR")
#: What stands for the seed in a command, an argument or an override.
SEED = "{seed}"
#: Arguments of train_net.py that the tool gives itself, or does not support.
OWN_ARGUMENTS = (
    *("--config-file", "--resume", "--eval-only", "--num-machines", "--machine-rank", "--import"),
)
_METRICS = "a list like [bbox/AP, bbox/AP50, segm/AP75, voc/AP50]"
# Those of our evaluators can be checked before a run has them; others may be of an --import.
_METRIC = re.compile(r"(bbox|segm)/AP(50|75|s|m|l)?|voc/AP(50|75)?|(?!(bbox|segm|voc)/).*/.*")


@dataclass(frozen=True)
class Run:
    """One training or evaluation: a row of the matrix with one seed.

    Attributes:
        row, seed: which one it is.
        config: path of the config file.
        overrides: KEY, VALUE, KEY, VALUE, ... as they stand on a command line; ``{seed}`` is the
            seed.
        folder: the run's OUTPUT_DIR.
        iterations: of the training; 0 for an evaluation.
        settings: all that the result depends on but for the seed and the source, as JSON; of the
            config without the keys of sample weighters that the run does not have.
        source: the run whose final checkpoint this one starts from, or evaluates.
    """

    row: str
    seed: int
    config: str
    overrides: tuple[str, ...]
    folder: Path
    iterations: int
    settings: Mapping[str, Any]
    source: "Run | None"

    @property
    def name(self) -> str:
        return f"{self.row}, seed {self.seed}"

    @property
    def is_evaluation(self) -> bool:
        return self.iterations == 0

    def check_config(self) -> None:
        """Raise a :class:`UserError` if the config file says something else by now."""
        now = _resolve(load_config(self.config, self.overrides))
        for key, value in self.settings["config"].items():
            if now.get(key) != value:
                raise UserError(
                    f"{self.config} has changed since the tool read it: {key} was {value!r} and "
                    f"now is {now.get(key)!r}. Start the tool again."
                )

    def arguments(self) -> list[str]:
        """What follows ``train_net.py`` on its command line."""
        extra = self.settings["train_net_args"]
        weights = []
        if self.source:
            weights = ["MODEL.WEIGHTS", str(self.source.folder / "model_final.pth")]
        own = [text.replace(SEED, str(self.seed)) for text in (*extra, *self.overrides)]
        return [
            *("--config-file", self.config, "--eval-only" if self.is_evaluation else "--resume"),
            *(*own, *weights),
            *("SEED", str(self.seed), "OUTPUT_DIR", str(self.folder)),
        ]


@dataclass(frozen=True)
class Matrix:
    """What :func:`load_matrix` reads; ``docs/experiments.md`` explains the keys of the file.

    Attributes:
        file: where it was read.
        rows: their names, in the order of the table.
        runs: in the order in which they are started: seed by seed, a source before its users.
    """

    file: Path
    title: str
    output: Path
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    baseline: str
    rows: tuple[str, ...]
    environment: Mapping[str, str]
    data: tuple[str, ...]
    runs: tuple[Run, ...]

    @property
    def data_commands(self) -> list[str]:
        """``data``, with a command that has ``{seed}`` in it for each of the seeds."""
        return [
            command.replace(SEED, str(seed))
            for command in self.data
            for seed in (self.seeds if SEED in command else self.seeds[:1])
        ]


def load_matrix(file: str | Path, *, imports: Sequence[str] = ()) -> Matrix:
    """Read and check a matrix, and every config file that it names.

    Args:
        imports: Python files that register what it names, imported here and by every run.

    Raises:
        UserError: the file can't be read, or something in it is not as it must be.
    """
    for python_file in imports:
        import_file(python_file)
    top = _Section(read_yaml(file), str(file))
    title = top.take("title", _is_text, "a text", Path(file).stem)
    output = Path(top.take("output", _is_path, "the path of a folder"))
    seeds = top.take("seeds", _are_seeds, "a list of different whole numbers from 0 to 2^32 - 1")
    metrics = top.take("metrics", _are_metrics, _METRICS, ["bbox/AP"])
    data = top.take("data", _are_commands, "a list of commands", [])
    environment = top.take("environment", _is_environment, "a mapping from names to values", {})
    arguments = top.take("train_net_args", _are_scalars, "a list of arguments", [])
    forbidden = [word for word in map(str, arguments) if word.split("=")[0] in OWN_ARGUMENTS]
    if forbidden:
        raise top.error(f"train_net_args can't have {forbidden[0]}, which this tool gives itself.")
    for python_file in imports:
        arguments = ["--import", python_file, *arguments]
    common = top.take("common", _is_mapping, "a mapping from config keys to values", {})
    baseline = top.take("baseline", _is_text, "the name of a row")
    checkpoint = top.take(CHECKPOINT, _is_mapping, "a mapping with a config", None)
    rows = top.take("rows", lambda v: _is_mapping(v) and v, "a mapping from names to rows")
    top.check_all_taken()

    if baseline not in rows:
        raise top.error(f"the baseline {baseline!r} is none of the rows: {', '.join(rows)}.")
    _check_names(rows, top)
    shared = {
        "train_net_args": [str(argument) for argument in arguments],
        "environment": {name: str(value) for name, value in environment.items()},
        "data": data,
    }
    starting_point = CHECKPOINT if checkpoint is not None else None
    specs = []
    if starting_point:
        section = _Section(checkpoint, f"{file}: {CHECKPOINT}")
        specs.append(_RowSpec.read(CHECKPOINT, section, common, None, rows, metrics))
    for name, content in rows.items():
        section = _Section(content, f"{file}: row {name!r}")
        specs.append(_RowSpec.read(name, section, common, starting_point, rows, metrics))
    return Matrix(
        file=Path(file),
        title=title,
        output=output,
        seeds=tuple(seeds),
        metrics=tuple(metrics),
        baseline=baseline,
        rows=tuple(rows),
        environment=shared["environment"],
        data=tuple(data),
        runs=_make_runs(specs, seeds, output, shared),
    )


def _resolve(cfg: CfgNode) -> dict[str, Any]:
    """All of its config that a run depends on, but for what the tool sets."""
    unused = _unused_sections(cfg)
    return {
        key: value
        for key, value in flat_config(cfg).items()
        if key not in OWN_KEYS and not key.startswith(unused)
    }


def _unused_sections(cfg: CfgNode) -> tuple[str, ...]:
    """The prefixes of the keys of sample weighters that the run does not have."""
    if without_weights(cfg):
        return "MODEL.SAMPLE_WEIGHTER.", "MODEL.SWN.", "SOLVER.SWN."
    name = cfg.MODEL.SAMPLE_WEIGHTER.NAME
    # Those of this package read no section but their own, one of a user's may read any.
    ours = [n for n, c in SAMPLE_WEIGHTER_REGISTRY if c.__module__.startswith("swn_d2.")]
    return tuple(section_of(n) for n in ours if n != name) if name in ours else ()


@dataclass(frozen=True)
class _RowSpec:
    name: str
    config: str
    overrides: tuple[str, ...]
    values: Mapping[str, Any]  # the whole config, with the overrides
    source: str | None
    is_evaluation: bool

    @classmethod
    def read(cls, name, section, common, starting_point, rows, metrics) -> "_RowSpec":
        config = section.take("config", _is_text, "the path of a config file")
        own = section.take("overrides", _is_mapping, "a mapping from config keys to values", {})
        evaluated = None
        if name != CHECKPOINT:
            evaluated = section.take("evaluate", _is_text, "the name of a row", None)
        section.check_all_taken()
        if evaluated and (evaluated not in rows or "evaluate" in (rows[evaluated] or {})):
            raise section.error(f"evaluate must be a row that is trained, not {evaluated!r}.")
        source = evaluated or starting_point
        overrides = []
        for key, value in {**common, **own}.items():
            if key in OWN_KEYS or (key == "MODEL.WEIGHTS" and source):
                raise section.error(f"{key} can't be overridden: the tool sets it.")
            if not isinstance(key, str) or not _is_value(value):
                raise section.error(
                    f"the override {key}: {value!r} is not a config key with a number, a text or a "
                    "list."
                )
            overrides += [key, str(value)]
        try:
            cfg = load_config(config, overrides)
            check_values(cfg)  # not only when it is the row's turn
            check_detector(cfg)
            _check_metrics(cfg, metrics)
        except UserError as error:
            raise section.error(str(error)) from error
        values = _resolve(cfg)
        return cls(name, config, tuple(overrides), values, source, evaluated is not None)


def _check_metrics(cfg: CfgNode, metrics: Sequence[str]) -> None:
    """Raise a :class:`UserError` for a metric that no evaluation of this run can have."""
    names = cfg.DATASETS.TEST
    if not names:
        raise UserError(
            "DATASETS.TEST is empty, so that nothing would be measured; name a data set there."
        )
    for metric in metrics:
        of_set = next((name for name in names if metric.startswith(f"{name}/")), None)
        if of_set and len(names) == 1:
            raise UserError(
                f"DATASETS.TEST has one data set, whose metrics do not have its name; write "
                f"{metric.removeprefix(f'{of_set}/')} among the metrics."
            )
        if not of_set and len(names) > 1:
            raise UserError(
                f"DATASETS.TEST has several data sets, so that {metric} could be of any; write "
                f"{names[0]}/{metric} among the metrics."
            )
        of_task = metric.removeprefix(f"{of_set}/")
        if not _METRIC.fullmatch(of_task):
            raise UserError(f"there is no metric {metric}; metrics are {_METRICS}.")
        is_known = re.search("RCNN|RetinaNet", cfg.MODEL.META_ARCHITECTURE)
        if of_task.startswith("segm/") and is_known and not cfg.MODEL.MASK_ON:
            raise UserError(
                f"{metric} needs masks, but MODEL.MASK_ON is False; take a detector with masks, or "
                "the metric out."
            )


def _make_runs(specs: list[_RowSpec], seeds, output: Path, shared) -> tuple[Run, ...]:
    runs = []
    for seed in seeds:
        of_seed: dict[str, Run] = {}
        for spec in sorted(specs, key=lambda spec: spec.is_evaluation):  # sources come first
            of_seed[spec.name] = Run(
                row=spec.name,
                seed=seed,
                config=spec.config,
                overrides=spec.overrides,
                folder=output / _folder_name(spec.name) / f"seed_{seed}",
                iterations=0 if spec.is_evaluation else spec.values["SOLVER.MAX_ITER"],
                settings={"config": spec.values, "source": spec.source, **shared},
                source=of_seed[spec.source] if spec.source else None,
            )
        runs += of_seed.values()
    return tuple(runs)


# The files of results.py, in the folder that has those of the rows.
_TABLES = ("results.md", "results.csv", "runs.csv", "results.png")


def _folder_name(row: str) -> str:
    return re.sub(r"[^\w.-]+", "_", row).strip("_.")


def _check_names(rows: Mapping[str, Any], top: "_Section") -> None:
    folders = {CHECKPOINT: CHECKPOINT}
    for name in rows:
        if not isinstance(name, str) or not _folder_name(name) or re.search(r"[|\n]", name):
            raise top.error(f"the row's name {name!r} is not a text of letters and digits.")
        folder = _folder_name(name)
        if folder in _TABLES:
            raise top.error(f"the row {name!r} would have its runs where a table is; rename it.")
        if folder in folders:
            raise top.error(
                f"the rows {folders[folder]!r} and {name!r} would have the same folder, {folder}; "
                "rename one."
            )
        folders[folder] = name


# Reading the file


_REQUIRED = object()


class _Section:
    """A mapping of the file, from which every key must be taken."""

    def __init__(self, values: Any, where: str):
        self.where = where
        self.taken: list[str] = []
        if not isinstance(values, dict):
            raise self.error(f"this must be a mapping of keys to values, not {values!r}.")
        self.values = values

    def error(self, message: str) -> UserError:
        return UserError(f"{self.where}: {message}")

    def take(self, key: str, is_right: Callable[[Any], Any], what: str, default: Any = _REQUIRED):
        self.taken.append(key)
        if key not in self.values:
            if default is _REQUIRED:
                raise self.error(f"the key {key} is missing; it must be {what}.")
            return default
        value = self.values[key]
        if not is_right(value):
            raise self.error(f"{key} is {value!r}, but it must be {what}.")
        return value

    def check_all_taken(self) -> None:
        for key in self.values:
            if key not in self.taken:
                similar = difflib.get_close_matches(str(key), self.taken, n=1)
                hint = f"did you mean {similar[0]}?" if similar else f"use {', '.join(self.taken)}."
                raise self.error(f"there is no key {key!r}; {hint}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_value(value: Any) -> bool:
    return isinstance(value, str | bool | int | float | list)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(_is_text(item) for item in value)


def _is_path(value: Any) -> bool:
    return _is_text(value) and "://" not in value


def _are_commands(value: Any) -> bool:
    try:
        return _are_texts(value) and all(map(shlex.split, value))
    except ValueError:  # a quotation that does not end
        return False


def _is_environment(value: Any) -> bool:
    return _is_mapping(value) and not any(
        name == "" or "=" in name or isinstance(item, list | dict) or "\0" in f"{name}{item}"
        for name, item in value.items()
    )


def _are_scalars(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str | int) for item in value)


def _are_seeds(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(type(item) is int and 0 <= item < 2**32 for item in value)
        and len(set(value)) == len(value)
    )


def _are_metrics(value: Any) -> bool:
    are_some = _are_texts(value) and 0 < len(value) == len(set(value))
    return are_some and all(map(_METRIC.fullmatch, value))
