"""Pickles of arrays, as Detectron2's model zoo has them, read without running code in one."""

import pickle
from codecs import encode
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager

from .errors import UserError

__all__ = ["read_pickled_arrays"]


def read_pickled_arrays(path: str) -> dict[Any, Any]:
    """The dictionary in a pickle of numpy arrays, numbers and texts, from Python 2 or 3. No code in
    the file is run.

    Raises:
        UserError: the file can't be read, is damaged, or holds anything else.
    """
    try:
        with PathManager.open(path, "rb") as file:
            data = _Unpickler(file, encoding="latin1").load()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    except _Refused as error:
        raise UserError(
            f"{path} asks for {error}, and a pickle that asks for more than arrays of numbers can "
            "run any code; give one with a dictionary of arrays, as Detectron2's model zoo has "
            "them, or a .pth file."
        ) from error
    except Exception as error:  # a file of another kind can raise nearly everything
        raise UserError(f"{path} is not a pickle, or is damaged.") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, not a dictionary of arrays.")
    return data


class _Refused(Exception):
    """What a pickle must not ask for."""


class _Dtype:
    """Stands for numpy's, which would take a pickle's word that its numbers are addresses."""

    def __init__(self, code: Any, align: bool = False, copy: bool = False):
        self.of_numpy = np.dtype(code)
        if self.of_numpy.kind not in "biufc":
            raise _Refused(f"arrays of the type {code!r}")

    def __setstate__(self, state: Sequence[Any]) -> None:
        version, byte_order, *rest = state
        if rest != [None, None, None, -1, -1, 0]:
            raise _Refused("arrays of more than numbers")
        self.of_numpy = self.of_numpy.newbyteorder(byte_order)


class _Array(np.ndarray):
    def __setstate__(self, state: Sequence[Any]) -> None:
        version, shape, dtype, is_fortran, data = state
        super().__setstate__((version, shape, dtype.of_numpy, is_fortran, data))


def _empty_array(*_: Any) -> _Array:
    return _Array(0)  # its state follows


def _scalar(dtype: _Dtype, data: Any) -> Any:
    array = _Array(0)
    array.__setstate__((1, (), dtype, False, data))
    return array[()]


def _from_buffer(
    data: Any,
    dtype: _Dtype,
    shape: Sequence[int],
    order: str,
    axis_order: Sequence[int] | None = None,
) -> np.ndarray:
    array = np.frombuffer(data, dtype.of_numpy)
    if axis_order is None:
        return array.reshape(shape, order=order)
    return array.reshape(shape).transpose(axis_order)


_STAND_INS = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): None,  # an argument of the next; called, it would take addresses, too
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("collections", "OrderedDict"): OrderedDict,
    # Bytes, in a pickle that Python 2 could read; without an argument if there are none.
    ("_codecs", "encode"): encode,
    ("__builtin__", "bytes"): bytes,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            # numpy 2 has moved them.
            return _STAND_INS[module.replace("numpy._core.", "numpy.core."), name]
        except KeyError:
            raise _Refused(repr(f"{module}.{name}")) from None
