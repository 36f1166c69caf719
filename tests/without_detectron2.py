"""A fresh interpreter that can't find Detectron2."""

import subprocess
import sys

_HIDE = """
import importlib.abc, importlib.util, sys

class NoDetectron2(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "detectron2":
            raise ModuleNotFoundError(name)

found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "detectron2" else found(name, *a)
sys.meta_path.insert(0, NoDetectron2())
"""


def run_without_detectron2(code):
    """Runs Python code; its standard output."""
    code = f"{_HIDE}\n{code}\nassert 'detectron2' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
