"""The note on versions and machine that a training leaves."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import torch

import swn_d2
from swn_d2.engine.environment import ENVIRONMENT, surroundings, write_environment


def test_surroundings_name_the_machine_and_the_versions():
    around = surroundings(Path(__file__).parent)
    assert "cores of" in around["machine"]
    assert {"swn_d2", "detectron2", "torch", "python"} <= set(around["versions"])
    assert around["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))


def git(folder, *arguments):
    identity = ("-c", "user.name=n", "-c", "user.email=e")
    command = ["git", "-C", folder, *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_code(tmp_path):
    assert surroundings(tmp_path)["commit"] is None  # no checkout
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("1")
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "code.py").write_text("1")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "m")
    commit = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert surroundings(tmp_path)["commit"] == commit
    assert surroundings(tmp_path / "installed")["commit"] is None  # of something else
    (tmp_path / "code.py").write_text("2")
    assert surroundings(tmp_path)["commit"] == f"{commit} with local changes"


def test_the_note(tmp_path):
    folder = tmp_path / "new" / "run"
    write_environment(folder, device="cuda", num_processes=8)
    text = (folder / ENVIRONMENT).read_text()
    note = json.loads(text)
    assert (note["device"], note["processes"]) == ("cuda", 8)
    assert note["versions"]["swn_d2"] == swn_d2.__version__
    assert note["versions"]["torch"] == torch.__version__
    # It can be shown to others.
    names = (socket.gethostname(), str(tmp_path), str(Path.home()))
    assert not [name for name in names if name in text and len(name) > 3]
    write_environment(folder, device="cpu", num_processes=1)
    assert json.loads((folder / ENVIRONMENT).read_text())["processes"] == 1
