"""Python files of a user's own, with weighters or data sets that register themselves."""

import importlib.util
import sys
from pathlib import Path

from ..errors import UserError, phase

__all__ = ["import_file", "imported_files", "is_imported"]

_imported: dict[str, str] = {}  # module -> the file as it was given, in this process


def import_file(file: str) -> None:
    """Run a Python file as the module of its name. Doing so twice does no harm.

    Files that are imported after it find it under that name.

    Raises:
        UserError: there is no such file, another module has its name, or it fails.
    """
    path = Path(file).expanduser().resolve()
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--import {file}: there is no such Python file.")
    name = path.stem
    spec = _find(name)
    if spec is not None and (not spec.origin or Path(spec.origin).resolve() != path):
        raise UserError(f"--import {file}: a module named {name} exists already; rename the file.")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            with phase(f"importing {file}"):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    _imported[name] = file


def _find(name: str):
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a name with a dot; __main__
        return None


def imported_files() -> list[str]:
    """The files that this process has imported, as they were given."""
    return list(_imported.values())


def is_imported(file: str) -> bool:
    """Whether a file of this name is imported, from wherever."""
    return Path(file).stem in sys.modules
