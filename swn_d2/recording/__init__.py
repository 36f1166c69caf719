"""The recording of a training: statistics and weights of some of its samples, and pictures.

It needs no Detectron2. docs/analysis.md describes what is written.
"""

from .crops import Pictures, cut_out, farthest_first
from .file import REASONS, RECORDING, Crop, Record, append_records, read_recording
from .samples import (
    SNAPSHOTS,
    first_weight,
    is_pictured,
    keep_parameters,
    make_record,
    sample_columns,
    weighters_of,
)

__all__ = [
    "REASONS",
    "RECORDING",
    "SNAPSHOTS",
    "Crop",
    "Pictures",
    "Record",
    "append_records",
    "cut_out",
    "farthest_first",
    "is_pictured",
    "keep_parameters",
    "first_weight",
    "make_record",
    "read_recording",
    "sample_columns",
    "weighters_of",
]
