"""Text files that appear whole or not at all."""

import contextlib
import os
from pathlib import Path

from .errors import UserError

__all__ = ["write_text"]


def write_text(file: Path, text: str) -> None:
    """Write a file, and its folder if there is none. It appears, or replaces the one before it,
    whole or not at all.

    Raises:
        UserError: it can't be written.
    """
    partial = file.with_name(file.name + ".partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"cannot write {file}: {error.strerror}.") from error
