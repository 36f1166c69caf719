import sys

import pytest

from swn_d2.errors import UserError
from swn_d2.own.imports import import_file, imported_files, is_imported

pytestmark = pytest.mark.usefixtures("forget_imports")


def test_a_file_runs_once_and_is_a_module_for_the_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_parts.py").write_text("print('runs')\nvalue = 7\n")
    (tmp_path / "my_whole.py").write_text("from my_parts import value\n")
    for _ in range(2):
        import_file("my_parts.py")
    import_file(str(tmp_path / "my_whole.py"))
    assert sys.modules["my_whole"].value == 7
    assert imported_files() == ["my_parts.py", str(tmp_path / "my_whole.py")]
    assert is_imported("elsewhere/my_parts.py") and not is_imported("my_other.py")


def test_it_runs_once(tmp_path, capsys):
    (tmp_path / "my_print.py").write_text("print('runs')")
    for _ in range(2):
        import_file(str(tmp_path / "my_print.py"))
    assert capsys.readouterr().out == "runs\n"


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("none.py", None, "--import .*none.py: there is no such Python file"),
        ("text.txt", "x = 1", "there is no such Python file"),
        ("statistics.py", "x = 1", "a module named statistics exists already; rename the file"),
        ("my_mistake.py", "1 / 0", "importing .*my_mistake.py failed: ZeroDivisionError"),
        ("my_typo.py", "def f(:", "importing .*my_typo.py failed: .*SyntaxError"),
        ("my_exit.py", "import my_missing", "No module named 'my_missing'"),
    ],
)
def test_what_cannot_be_imported(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        import_file(str(tmp_path / name))
    assert imported_files() == [] and not is_imported("my_mistake.py")


def test_another_file_of_the_same_name(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my_twin.py").write_text("")
    import_file(str(tmp_path / "a" / "my_twin.py"))
    with pytest.raises(UserError, match="a module named my_twin exists already"):
        import_file(str(tmp_path / "b" / "my_twin.py"))
