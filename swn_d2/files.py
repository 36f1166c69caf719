"""Text files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import UserError

__all__ = ["check_outputs", "write_new", "write_text"]


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
        raise UserError(f"cannot write {file}: {error.strerror or error}.") from error


def check_outputs(source: Path, outputs: Sequence[Path]) -> None:
    """Raise a :class:`UserError` if an output is the source, or the same file as another one."""
    for i, output in enumerate(outputs):
        if output.resolve() == source.resolve():
            raise UserError(f"{output} is the input, too; give the output another name.")
        if output.resolve() in [other.resolve() for other in outputs[:i]]:
            raise UserError(f"{output} is named for two outputs; give each its own name.")


def write_new(texts: Mapping[Path, str]) -> None:
    """Write all files or none; the first one last, so that where it is the others are, too.

    A file that exists and is, byte for byte, what would be written is kept, so that the same
    command can run again. No other file is ever replaced.

    Raises:
        UserError: a file exists and has another content, or can't be written.
    """
    missing = [file for file, text in texts.items() if not _is_there(file, text)]
    written = []
    try:
        for file in reversed(missing):
            write_text(file, texts[file])
            written.append(file)
    except BaseException:  # an interrupt, too
        for file in written:
            file.unlink(missing_ok=True)
        raise


def _is_there(file: Path, text: str) -> bool:
    if not os.path.exists(file):  # without an error where it may not be looked for
        return False
    with contextlib.suppress(OSError):  # a folder, or a file that may not be read
        if file.read_bytes() == text.encode("utf-8"):
            return True
    raise UserError(f"{file} exists already; remove it, or give another name.")
