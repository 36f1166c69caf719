"""Python scripts in processes of their own, with files, signals and an exit status as a user has
them. They are forked from a process that has imported torch and Detectron2 but done nothing else,
and so each saves the seconds of that import; the environment is the one of the first of them."""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["swn_d2", "detectron2.engine", "torch.utils.tensorboard"])


def start(script, *arguments, stdout=os.devnull, stderr=os.devnull, cwd=None, environment=None):
    """The started process, whose output goes to the ends of these files; with more variables in
    its environment."""
    argv = [str(script), *map(str, arguments)]
    arguments = (argv, str(stdout), str(stderr), cwd, environment or {})
    process = _context.Process(target=_run, args=arguments)
    process.start()
    return process


def run(script, *arguments, cwd=None, environment=None):
    """What a script printed, and its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        files = {"stdout": out, "stderr": err}
        process = start(script, *arguments, **files, cwd=cwd, environment=environment)
        process.join()
        printed = out.read_text(), err.read_text()
    return subprocess.CompletedProcess([script, *arguments], process.exitcode, *printed)


def _run(argv, stdout, stderr, cwd, environment):
    os.environ.update(environment)
    # Which Python ignores where pytest itself was started in the background of a script.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # what processes of its own start with
    for number, file in ((1, stdout), (2, stderr)):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    if cwd is not None:
        os.chdir(cwd)
    sys.argv = argv
    sys.path.insert(0, os.path.dirname(os.path.abspath(argv[0])))
    try:
        runpy.run_path(argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
