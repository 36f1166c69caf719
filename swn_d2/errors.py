"""The one exception for what a user can mend."""

import importlib.util
from contextlib import contextmanager

__all__ = [
    "UserError",
    "has_detectron2",
    "require_detectron2",
    "require_matplotlib",
    "require_scikit_learn",
    "user_errors_exit",
]


class UserError(ValueError):
    """Bad input. The message is one or two sentences: what is wrong (with the file, image id or
    config key) and how to mend it. The command-line tools print it without a traceback."""


@contextmanager
def user_errors_exit():
    """Turn a :class:`UserError` into one line on stderr and exit status 1."""
    try:
        yield
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


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


def require_scikit_learn() -> None:
    """Raise a :class:`UserError` with the command that installs scikit-learn if it is missing."""
    if importlib.util.find_spec("sklearn") is None:
        raise UserError(
            "an audit needs scikit-learn, which is not installed. Install it with: "
            "pip install scikit-learn"
        )
