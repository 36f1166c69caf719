"""Which versions, on what kind of machine: a note that every training leaves in its folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import detectron2
import torch
import torchvision

from ..files import write_text

__all__ = ["ENVIRONMENT", "surroundings", "write_environment"]

#: The file's name in the run's folder.
ENVIRONMENT = "environment.json"


def surroundings(code: Path) -> dict[str, Any]:
    """What ran it: the kind of machine, versions and, in a git checkout, the commit of ``code``.

    There are no names of machines, users or folders in it.
    """
    from .. import __version__  # not there yet while the package is being imported

    git = ["git", "--no-optional-locks", "-C", str(code)]
    # Installed into an environment that lies in a checkout of something else, it has no commit.
    is_tracked = _output(*git, "ls-files", "--", ".")
    commit = is_tracked and _output(*git, "rev-parse", "--short=12", "HEAD")
    if commit and _output(*git, "status", "--porcelain", "--untracked-files=no"):
        commit += " with local changes"
    return {
        "machine": _machine(),
        "versions": {
            "swn_d2": __version__,
            "detectron2": detectron2.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": sys.version.split()[0],
        },
        "commit": commit or None,
    }


def write_environment(folder: str | Path, *, device: str, num_processes: int) -> None:
    """Note in a run's folder what runs it; the note of an earlier start is replaced.

    Args:
        folder: the run's.
        device: "cpu" or "cuda".
        num_processes: on all machines.
    """
    note = {
        **surroundings(Path(__file__).parent),
        "device": device,
        "processes": num_processes,
    }
    write_text(Path(folder, ENVIRONMENT), json.dumps(note, indent=1))


def _machine() -> str:
    cores = len(os.sched_getaffinity(0))
    try:
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        model = None
    machine = f"{cores} cores of {model.group(1).strip() if model else 'an unknown processor'}"
    # Not by torch.cuda, which would take memory on the GPU for as long as the process runs.
    gpus = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
    for name in dict.fromkeys(gpus):
        machine += f", {gpus.count(name)} x {name.strip()}"
    return machine


def _output(*command: str) -> str:
    """What a command prints, "" if it fails or does not exist."""
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
