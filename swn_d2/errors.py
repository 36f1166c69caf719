"""The one exception for what a user can mend, and the boundary at which others become it."""

import argparse
import contextlib
import importlib.util
import os
import sys
import textwrap
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "UserError",
    "add_debug_argument",
    "has_detectron2",
    "phase",
    "require_detectron2",
    "require_matplotlib",
    "require_scikit_learn",
    "require_scipy",
    "user_errors_exit",
]


class UserError(ValueError):
    """Bad input. The message is one or two sentences: what is wrong (with the file, image id or
    config key) and how to mend it. The command-line tools print it without a traceback."""


# Not a global variable, which the processes that a run starts would not have.
_DEBUG = "SWN_D2_DEBUG"
_LONGEST = 300  # letters of a reason; some exceptions list all that would have been right


@contextmanager
def phase(doing: str):
    """Around what comes before the first iteration, or what a tool reads: whatever fails in there
    becomes a :class:`UserError` that says what was being done. It is a decorator, too.

    The checks that know better have their own sentences, and raise a UserError themselves.

    Args:
        doing: "building the model", for instance.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{doing} failed: {_in_one_line(error)}; run with --debug for the traceback"
        ) from error


def _in_one_line(error: Exception) -> str:
    text = "".join(traceback.format_exception_only(error)).strip()
    if "Traceback" in text:  # of another process, which a data loader hands on
        text = text.splitlines()[-1]
    if not str(error):  # an assertion without words
        *_, place = traceback.extract_tb(error.__traceback__)
        text += f" in {os.path.basename(place.filename)}, line {place.lineno}: {place.line}"
    return textwrap.shorten(text, _LONGEST, placeholder=" ...")


@contextmanager
def user_errors_exit(folder: str | Path | None = None):
    """Turn a :class:`UserError` into one line on stderr and exit status 1.

    Its traceback is printed if ``--debug`` asks for it.

    Args:
        folder: of a run, whose log.txt gets the traceback where another exception is behind the
            error. What a check refuses leaves the folder as it is.
    """
    try:
        yield
    except UserError as error:
        text = "".join(traceback.format_exception(error))
        if folder is not None and error.__cause__ is not None:
            _append_to_log(Path(folder), text)
        if os.environ.get(_DEBUG):
            print(text, end="", file=sys.stderr)
        raise SystemExit(f"error: {error}") from None


def _append_to_log(folder: Path, text: str) -> None:
    # The folder may be what is wrong.
    with contextlib.suppress(OSError), open(folder / "log.txt", "a", encoding="utf-8") as log:
        log.write(f"[{time.strftime('%m/%d %H:%M:%S')} swn_d2]: {text}")


def add_debug_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--debug``, which counts in this process and in those that it starts."""
    parser.add_argument(
        "--debug",
        nargs=0,
        action=_SwitchDebuggingOn,
        help="print the traceback of an error, too",
    )


class _SwitchDebuggingOn(argparse.Action):
    def __call__(self, *_) -> None:
        os.environ[_DEBUG] = "1"


def has_detectron2() -> bool:
    """Whether this environment has Detectron2."""
    return importlib.util.find_spec("detectron2") is not None


def require_detectron2() -> None:
    """Raise a :class:`UserError` with the command that installs Detectron2 if it is missing."""
    if not has_detectron2():
        raise UserError(
            "Detectron2 is not installed; install it with: python tools/install_detectron2.py"
        )


def require_matplotlib() -> None:
    """Raise a :class:`UserError` with the command that installs Matplotlib if it is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "figures need Matplotlib, which is not installed. Install it with: "
            "pip install matplotlib"
        )


def require_scipy() -> None:
    """Raise a :class:`UserError` with the command that installs SciPy if it is missing."""
    if importlib.util.find_spec("scipy") is None:
        raise UserError(
            "this needs SciPy, which is not installed. Install it with: pip install scipy"
        )


def require_scikit_learn() -> None:
    """Raise a :class:`UserError` with the command that installs scikit-learn if it is missing."""
    if importlib.util.find_spec("sklearn") is None:
        raise UserError(
            "an audit needs scikit-learn, which is not installed. Install it with: "
            "pip install scikit-learn"
        )
