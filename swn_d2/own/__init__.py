"""What users bring: data sets and code of their own, named on a command line and known to the run's
folder."""

from .arguments import add_import_argument, add_own_arguments, register_own, take_overrides
from .imports import import_file
from .notes import note_own, recall

__all__ = [
    "add_import_argument",
    "add_own_arguments",
    "import_file",
    "note_own",
    "recall",
    "register_own",
    "take_overrides",
]
