"""Files: one sentence where they can't be read, and whole or not at all where written."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError

__all__ = [
    "cannot_write",
    "check_is_file",
    "check_outputs",
    "read_bytes",
    "read_json",
    "read_text",
    "read_yaml",
    "write_bytes",
    "write_new",
    "write_text",
    "write_together",
    "write_whole",
]


def check_is_file(file: str | Path) -> None:
    """Raise a :class:`UserError` if a path leads to a pipe or a device, which may never end."""
    if os.path.exists(file) and not (os.path.isfile(file) or os.path.isdir(file)):
        raise UserError(f"cannot read {file}: it is a pipe or a device; give a file.")


def read_bytes(file: str | Path) -> bytes:
    """What is in a file, or at a URL.

    Raises:
        UserError: it can't be read.
    """
    from detectron2.utils.file_io import PathManager  # which not everybody here has

    check_is_file(file)
    try:
        with PathManager.open(str(file), "rb") as stream:
            return stream.read()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}.") from error


def read_text(file: str | Path) -> str:
    """The text in a file, or at a URL.

    Raises:
        UserError: it can't be read, or is not in UTF-8.
    """
    try:
        return read_bytes(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not a text file, or not in UTF-8; if it is text, save it again in UTF-8."
        ) from error


def read_json(file: str | Path) -> Any:
    """What a JSON file has in it.

    Raises:
        UserError: it can't be read, is not JSON, or is JSON that Detectron2 would not read.
    """
    text = read_text(file)
    if text.startswith("\ufeff"):
        raise UserError(
            f"{file} begins with a byte-order mark, which JSON must not; save it again in UTF-8 "
            "without one (BOM)."
        )
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise UserError(f"{file} is nested too deeply to be read; is it damaged?") from error


def read_yaml(file: str | Path) -> Any:
    """What a YAML file without Python objects has in it.

    Raises:
        UserError: it can't be read, is not such a file, or has a key twice.
    """
    text = read_text(file)
    try:
        return yaml.load(text, _UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the second: no such date
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is not a plain YAML file: {reason}") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML's own loader drops one."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"the key {key.value!r} stands there again in line {line}")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def write_text(file: Path, text: str) -> None:
    """Write a file, and its folder if there is none. It appears, or replaces the one before it,
    whole or not at all.

    Raises:
        UserError: it can't be written.
    """
    write_together({file: text})


def write_bytes(file: Path, content: bytes) -> None:
    """As :func:`write_text`, for what is no text."""
    write_together({file: content})


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """As :func:`write_text`, for several files: all of them are there before the first replaces the
    one before it, so that a full disk leaves the earlier ones as they are.

    Raises:
        UserError: one can't be written.
    """
    # Several processes may write one file, the tables of a matrix for instance.
    partials = {file: file.with_name(f"{file.name}.{os.getpid()}.partial") for file in contents}
    try:
        for file, content in contents.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            partials[file].write_bytes(_encoded(content))
        for file in contents:
            os.replace(partials[file], file)
    except OSError as error:
        for partial in partials.values():
            with contextlib.suppress(OSError):
                partial.unlink()
        raise cannot_write(file, error) from error


def _encoded(content: str | bytes) -> bytes:
    """In UTF-8; the bytes of a file's name that are not, as Python keeps them, are spelled out."""
    return (
        content
        if isinstance(content, bytes)
        else content.encode("utf-8", errors="backslashreplace")
    )


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """As :func:`write_text`, for a function that writes to the path that it is given. There must be
    one writer at a time: what one left that was killed is overwritten by the next.

    Raises:
        UserError: it can't be written.
    """
    partial = file.with_name(f"{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        os.replace(partial, file)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise cannot_write(file, error) from error


def cannot_write(file: Path, error: Exception) -> UserError:
    """What to raise for an error of making a file's folder, or the file."""
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, FileExistsError):
        reason = f"{file.parent} is not a folder"
    elif isinstance(error, RuntimeError):  # of torch's writer, on positions in the file
        reason = (
            f"not all of it could be written; the disk may be full ({str(error).splitlines()[0]})"
        )
    return UserError(f"cannot write {file}: {reason}.")


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
        if file.read_bytes() == _encoded(text):
            return True
    raise UserError(f"{file} exists already; remove it, or give another name.")
