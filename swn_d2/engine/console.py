"""What a run shows on the terminal: how it starts, a line of progress, each warning once, and what
came out. Its log.txt has all that Detectron2 says, as well."""

import io
import logging
import math
import re
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout

from detectron2.utils.events import CommonMetricPrinter, get_event_storage
from termcolor import colored

from ..modeling.logging import LOG_PERIOD

__all__ = ["ProgressPrinter", "describe_results", "prints_logged", "tidy_console"]

#: What is shown of the log beside ours: logger -> how its messages begin. All else that is no
#: warning is for log.txt only.
_SHOWN = {"detectron2.engine.train_loop": "Starting training"}
#: Of an evaluation, what scripts look for; a person gets a line of :func:`describe_results`.
_FOR_SCRIPTS = {
    "detectron2.engine.defaults": "Evaluation results for",
    "detectron2.evaluation.testing": "copypaste:",
}
#: Whose warnings are only for log.txt: tables of parameters, and what is said elsewhere in a
#: sentence of ours.
_HIDDEN_WARNINGS = {
    "detectron2.checkpoint.c2_model_loading",
    "detectron2.solver.build",
    "fvcore.common.checkpoint",
}
_EVALUATOR = "detectron2.evaluation.evaluator"
_INFERENCE = re.compile(r"Inference done (\d+)/(\d+)\..*ETA=(\S+)", re.DOTALL)
_INFERENCE_SECONDS = 20  # between two lines about it

#: Loss -> in which number of the line of progress it is.
_PARTS = {
    **{"loss_cls": "cls", "loss_box_reg": "box", "loss_mask": "mask", "loss_keypoint": "keypoint"},
    **{"loss_iou": "iou", "loss_rpn_cls": "rpn", "loss_rpn_loc": "rpn"},
}

#: For the terminal only: log.txt has Detectron2's line in its place.
_progress = logging.getLogger("swn_d2.progress")
_logger = logging.getLogger(__name__)


def tidy_console(loggers: Sequence[logging.Logger]) -> None:
    """Have a terminal get what a person wants to know, and files nothing that is in colour.

    Args:
        loggers: after Detectron2's ``setup_logger``.
    """
    selection = _Selection(for_scripts=not sys.stdout.isatty())
    for logger in loggers:
        for handler in logger.handlers:
            if getattr(handler, "stream", None) is sys.stdout:
                handler.setFormatter(_ConsoleFormatter(in_colour=sys.stdout.isatty()))
                handler.addFilter(selection)
            else:
                handler.setFormatter(_WithoutColours(handler.formatter))
                handler.addFilter(lambda record: record.name != _progress.name)


class _Selection(logging.Filter):
    """What a terminal gets of the logs. The loggers share one, so that a warning is new once."""

    def __init__(self, *, for_scripts: bool):
        super().__init__()
        self._shown = _SHOWN | (_FOR_SCRIPTS if for_scripts else {})
        self._warnings: set[str] = set()
        self._last_inference = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        if record.levelno == logging.WARNING:
            text = record.getMessage()
            is_new = text not in self._warnings
            self._warnings.add(text)
            return is_new and record.name not in _HIDDEN_WARNINGS
        if record.name == _EVALUATOR:
            return self._is_news_of_inference(record)
        if record.levelno < logging.INFO:
            return False
        begins = self._shown.get(record.name)
        if begins is not None:
            return record.getMessage().startswith(begins)
        return record.name.startswith("swn_d2.")

    def _is_news_of_inference(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if not _INFERENCE.match(record.getMessage()):
            return False
        if now < self._last_inference + _INFERENCE_SECONDS:
            return False
        self._last_inference = now
        return True


class _ConsoleFormatter(logging.Formatter):
    def __init__(self, *, in_colour: bool):
        super().__init__("%(asctime)s  %(message)s", "%H:%M:%S")
        self._in_colour = in_colour

    def formatMessage(self, record: logging.LogRecord) -> str:
        if record.name == _EVALUATOR and (found := _INFERENCE.match(record.message)):
            record.message = "evaluated {} of {}  eta {}".format(*found.groups())
        if record.levelno >= logging.WARNING:
            level = record.levelname
            if self._in_colour:
                level = colored(level, "yellow" if level == "WARNING" else "red")
            record.message = f"{level}: {record.message}"
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if self._in_colour else _without_colours(text)


class _WithoutColours(logging.Formatter):
    """Another formatter's lines, without the colours that some messages have in them."""

    def __init__(self, other: logging.Formatter):
        super().__init__()
        self._other = other

    def format(self, record: logging.LogRecord) -> str:
        return _without_colours(self._other.format(record))


def _without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


class ProgressPrinter(CommonMetricPrinter):
    """Detectron2's, whose line with every number is for log.txt; a terminal gets a short one, of
    fewer than 100 characters. In it the losses of a cascade's stages are added up, and so are
    those of the RPN. ``total_loss`` and regularisers, which differ between ways of weighting, are
    left out."""

    def write(self) -> None:
        super().write()  # which notes the time that is left, too
        storage = get_event_storage()
        done = storage.iter + 1
        if done > self._max_iter or (done % LOG_PERIOD and done < self._max_iter):
            return  # nothing new, or after a line that says why the training stops here
        latest = {name: value for name, (value, _) in storage.latest().items()}
        line = [f"iter {done}/{self._max_iter}"]
        if "eta_seconds" in latest:
            line.append(f"eta {_clock(latest['eta_seconds'])}")
        losses = defaultdict(float)
        for name, history in storage.histories().items():
            if part := _PARTS.get(re.sub(r"_stage\d+$", "", name)):
                losses[part] += history.median(self._window_size)
        line += [f"{part} {value:.3f}" for part, value in losses.items()]
        if "lr" in latest:
            line.append(f"lr {latest['lr']:.2g}")
        _progress.info("  ".join(line))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def prints_logged():
    """A context in which what is printed, as by COCO's evaluation, goes to log.txt instead. Where
    there is none, it is printed."""
    return redirect_stdout(_Log()) if _logger.isEnabledFor(logging.DEBUG) else nullcontext()


class _Log(io.TextIOBase):
    def __init__(self):
        self._line = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            _logger.debug(line)
        return len(text)


def describe_results(name: str, results: Mapping[str, Mapping[str, float]]) -> str:
    """A line on an evaluation.

    Args:
        name: of the test set.
        results: task -> metric -> percent, as Detectron2's evaluators give them.
    """
    texts = []
    for task, metrics in results.items():
        numbers = {n: metrics[n] for n in ("AP", "AP50", "AP75") if n in metrics}
        if all(map(math.isnan, numbers.values())):
            texts.append(f"{task}: nothing found")
        else:
            texts.append(f"{task} " + ", ".join(f"{n} {v:.2f}" for n, v in numbers.items()))
    return f"{name}: {'; '.join(texts)}"
