"""Whether the files of a data set exist, and its pictures have the size that is said."""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.file_io import PathManager
from PIL import Image

from swn_d2.errors import UserError
from swn_d2.files import check_is_file

__all__ = ["check_depth", "check_files_exist", "check_picture_size", "picture_fault"]

EXIF_ORIENTATION = 0x0112


def check_files_exist(listed_in: str | Path, paths: Sequence[str | Path]) -> None:
    """Check that all files exist.

    Args:
        listed_in: the file that names them, for the message.
        paths: the files.

    Raises:
        UserError: how many are missing, and the first.
    """
    # One listing per folder is far quicker than one look per file on a network disk.
    by_folder = defaultdict(list)
    for path in paths:
        folder, name = os.path.split(path)
        by_folder[folder].append(name)
    missing = []
    for folder, names in by_folder.items():
        present = set(PathManager.ls(folder)) if PathManager.isdir(folder) else ()
        missing += [os.path.join(folder, name) for name in names if name not in present]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} files that {listed_in} names do not exist; the first "
            f"is {missing[0]}."
        )


def check_picture_size(path: str, expected: tuple[int, int], source: str) -> None:
    """Check that a picture can be opened and has the size that is said.

    Args:
        path: the picture.
        expected: its width and height in pixels, upright: after the turn that EXIF asks for.
        source: who says so, for the message.

    Raises:
        UserError: the picture is unreadable, has another size, or more than 8 bits.
    """
    check_is_file(path)
    try:
        with PathManager.open(path, "rb") as stream, Image.open(stream) as picture:
            size, mode = _upright_size(picture), picture.mode
    except Exception as error:  # what is damaged can raise nearly everything
        raise UserError(f"Cannot read {path}, {source}: {error}.") from error
    check_depth(path, mode)
    if size != expected:
        raise UserError(
            f"{path} is {size[0]}x{size[1]} pixels, but {source} says {expected[0]}x{expected[1]}. "
            "Correct width and height, or put the original there."
        )


def picture_fault(path: str | Path) -> str | None:
    """Why a picture can't be read to its end, None if it can; 1 to 2 ms for a JPEG of 640x480."""
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (1, 1))  # of a JPEG an eighth, for which all of it is read
            picture.load()
    except Exception as error:  # what is damaged can raise nearly everything
        return getattr(error, "strerror", None) or str(error)
    return None


def check_depth(path: str | Path, mode: str) -> None:
    """Check that Detectron2 sees in a picture what is in it.

    Args:
        path: the picture, for the message.
        mode: Pillow's name for the kind of its pixels.

    Raises:
        UserError: it has more than 8 bits, which would be cut off.
    """
    if mode.startswith(("I", "F")):
        raise UserError(
            f"{path} has {'decimal numbers' if mode == 'F' else '16 bits or more'} for its pixels "
            f"(Pillow's mode {mode}), of which Detectron2 makes white or black; scale them to 0 to "
            "255 and save the picture with 8 bits."
        )


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    """(width, height) as Detectron2 sees it, which is after the turn that EXIF asks for."""
    try:
        orientation = picture.getexif().get(EXIF_ORIENTATION)
    except Exception:  # malformed EXIF fails in many ways; Detectron2 ignores it, too
        orientation = None
    lies_on_its_side = orientation in (5, 6, 7, 8)
    return picture.size[::-1] if lies_on_its_side else picture.size
