"""Pickles of arrays are read, whoever wrote them; what else a pickle can do is not done."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from swn_d2.errors import UserError
from swn_d2.pickled_arrays import read_pickled_arrays
from tests.pickles import Call


@pytest.fixture
def file(tmp_path):
    return tmp_path / "some.pkl"


ARRAYS = {
    "rows": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "part": np.arange(12).reshape(3, 4)[::2, ::3],
    "turned": np.arange(24, dtype=np.float16).reshape(2, 3, 4).transpose(1, 0, 2),
    "big endian": np.array([1, -2], dtype=">i4"),
    "booleans": np.array([True, False]),
    "empty": np.zeros((2, 0)),
    "one number": np.array(3.0),
    "scalar": np.float32(2.5),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("numpys_name", ["numpy._core.", "numpy.core."])
def test_arrays_texts_and_numbers_of_every_protocol(file, protocol, numpys_name):
    written = pickle.dumps(
        {"model": OrderedDict(ARRAYS), "__author__": "Zoë", "ids": [1, "2", None]}, protocol
    )
    if protocol < 4:  # a name has its length before it in a later one
        written = written.replace(b"numpy._core.", numpys_name.encode())
    file.write_bytes(written)
    data = read_pickled_arrays(str(file))
    assert (data["__author__"], data["ids"]) == ("Zoë", [1, "2", None])
    assert list(data["model"]) == list(ARRAYS)
    for name, expected in pickle.loads(written)["model"].items():
        np.testing.assert_array_equal(data["model"][name], expected, strict=True)


# {"conv1_w": an array, "scale": a scalar} as Python 2 wrote it: all texts are bytes.
DTYPE = (
    b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)
PYTHON_2 = (
    b"\x80\x02}(U\x07conv1_wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
    b"\x87R(K\x01K\x02\x85" + DTYPE + b"\x89U\x08\x00\x00\xc0\xbf\x00\x00\x80\x3ftb"
    b"U\x05scalecnumpy.core.multiarray\nscalar\n" + DTYPE + b"U\x04\x00\x00\xc0\xbf\x86Ru."
)


def test_a_file_of_python_2(file):
    file.write_bytes(PYTHON_2)
    data = read_pickled_arrays(str(file))
    assert list(data) == ["conv1_w", "scale"]
    assert data["conv1_w"].tolist() == [-1.5, 1.0] and data["conv1_w"].dtype == np.float32
    assert data["scale"] == -1.5


def global_of(module, name):
    """The pickle of a dictionary with what a name stands for."""
    texts = (b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    return b"\x80\x04}\x8c\x01x" + b"".join(texts) + b"\x93s."


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_call_is_refused_by_its_name(file, tmp_path, protocol):
    made = tmp_path / "made"
    file.write_bytes(pickle.dumps({"model": Call(os.mkdir, str(made))}, protocol))
    with pytest.raises(UserError, match=r"some.pkl asks for 'posix.mkdir', and .*; give") as error:
        read_pickled_arrays(str(file))
    assert "\n" not in str(error.value)
    assert not made.exists()


@pytest.mark.parametrize(
    "module, name",
    [
        ("builtins", "eval"),
        ("collections", "abc.sys.modules"),
        ("numpy", "load"),
        ("numpy", "dtype.newbyteorder"),
        ("numpy._core.multiarray", "fromfile"),
        ("numpy.core.numeric", "sys"),
        ("codecs", "open"),
        ("torch", "load"),
        ("swn_d2.pickled_arrays", "_Array"),
    ],
)
def test_other_names_are_refused(file, module, name):
    file.write_bytes(global_of(module, name))
    with pytest.raises(UserError, match=f"some.pkl asks for '{module}.{name}'"):
        read_pickled_arrays(str(file))


def test_a_name_does_not_break_the_line(file):
    file.write_bytes(global_of("os\n\x1b[2J", "system"))
    with pytest.raises(UserError) as error:
        read_pickled_arrays(str(file))
    assert str(error.value).isprintable()


def array_of(dtype):
    """One item of eight bytes, as numpy pickles it."""
    (reconstruct, arguments, _) = np.empty(0).__reduce__()
    return Call(reconstruct, *arguments, state=(1, (1,), dtype, False, b"AAAAAAAA"))


@pytest.mark.parametrize(
    "array",
    [
        array_of(
            Call(
                *(np.dtype, "V8", False, True),
                state=(3, "|", None, ("x",), {"x": (np.dtype("O"), 0)}, 8, 1, 0),
            )
        ),
        array_of(Call(np.dtype, "f8", False, True, state=(3, "<", *3 * [None], -1, -1, 63))),
        array_of(
            Call(
                *(np.dtype, "f8", False, True),
                state=(3, "<", (np.dtype("f8"), (99,)), None, None, -1, -1, 0),
            )
        ),
        Call(np.ndarray, (1,), "O", b"AAAAAAAA"),
    ],
)
def test_numbers_are_not_taken_for_addresses(file, array):
    """As numpy itself takes those of the first and the last, of which printing ends the process."""
    file.write_bytes(pickle.dumps({"x": array}))
    with pytest.raises(UserError, match="some.pkl (asks for arrays of|is not a pickle, or)"):
        read_pickled_arrays(str(file))


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "^cannot read .*some.pkl: "),
        (b"", "some.pkl is not a pickle, or is damaged"),
        (b"PK\x03\x04", "some.pkl is not a pickle, or is damaged"),
        (PYTHON_2[:-20], "some.pkl is not a pickle, or is damaged"),
        (pickle.dumps([1]), "some.pkl holds a list"),
        (pickle.dumps({"x": np.array(["a"])}), "some.pkl asks for arrays of the type 'U1'"),
        (pickle.dumps({"x": np.array([{}])}), "some.pkl asks for arrays of the type 'O8'"),
    ],
)
def test_what_holds_no_dictionary_of_arrays(file, content, message):
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_pickled_arrays(str(file))
