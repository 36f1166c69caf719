"""The tool as a user runs it: real trainings in processes, killed and started again."""

import importlib
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from swn_d2.data import make_digit_scenes
from swn_d2.errors import UserError
from swn_d2.experiments import Runner, load_matrix, records
from tests import processes
from tests.experiments.test_results import APS, finish

TOOL = Path(__file__).parents[2] / "tools" / "run_experiments.py"
sys.path.insert(0, str(TOOL.parent))
tool_here = importlib.import_module("run_experiments")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The arguments of train_net.py that name the data."""
    root = tmp_path_factory.mktemp("data") / "digits"
    make_digit_scenes(root, num_train=8, num_val=4, image_size=(96, 64))
    arguments = []
    for split in ("train", "val"):
        annotations = root / "annotations" / f"instances_{split}.json"
        arguments += ["--register-coco", f"mine_{split}", str(annotations), str(root / split)]
    return arguments


@pytest.fixture
def start(tmp_path):
    """Starts the tool, which writes into the file ``printed``; ends what is left of it."""
    tools = []
    printed = tmp_path / "printed"

    def start_tool(file, *arguments):
        printed.unlink(missing_ok=True)
        tools.append(processes.start(TOOL, file, *arguments, stdout=printed, stderr=printed))
        return tools[-1]

    yield start_tool
    for tool in tools:
        tool.terminate()  # so that it ends its own processes
        tool.join()


@pytest.fixture
def run_here(monkeypatch):
    """Runs the tool in this process, which saves a start of Python; gives its exit status."""

    def run_tool(file, *arguments):
        monkeypatch.setattr(sys, "argv", [str(TOOL), str(file), *arguments])
        try:
            tool_here.main()
        except SystemExit as exit:
            return exit.code
        return 0

    return run_tool


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pid_of(run):
    return int(re.match(r"process (\d+) on", records.holder(run).text)[1])


def test_killed_at_any_time_it_does_what_is_missing(
    write_matrix, config_file, data, start, run_here, tmp_path, capsys
):
    config = {"config": str(config_file)}
    file = write_matrix(
        seeds=[1],
        train_net_args=data,
        common={"SOLVER.MAX_ITER": 30},
        rows={
            "plain": config,
            "broken": {**config, "overrides": {"SOLVER.BASE_LR": 1e9, "SOLVER.WARMUP_ITERS": 0}},
            "on broken": {**config, "evaluate": "broken"},
            "evaluated": {**config, "evaluate": "plain"},
        },
    )
    matrix = load_matrix(file)
    plain, broken, on_broken, evaluated = matrix.runs
    printed = tmp_path / "printed"

    # The tool alone is killed. The training goes on, and nobody else starts it again.
    tool = start(file, "--gpus", "0")
    wait_until(lambda: (plain.folder / "model_0000003.pth").exists())
    tool.kill()
    tool.join()
    first = pid_of(plain)
    assert records.holder(plain).gpu == "0"
    os.killpg(first, signal.SIGSTOP)  # so that it is still there when the tool is
    tool = start(file)
    left = f"plain, seed 1: left to process {first} on"
    wait_until(lambda: printed.exists() and left in printed.read_text())
    # Now both are killed.
    os.killpg(first, signal.SIGKILL)
    tool.kill()
    tool.join()
    wait_until(lambda: records.holder(plain) is None)
    assert not (plain.folder / "model_final.pth").exists()

    assert run_here(file, "--jobs", "2") == 1
    text = "".join(capsys.readouterr())
    log = (plain.folder / "run.log").read_text()
    assert log.count("$ ") == 2
    assert int(re.findall(r"Starting training from iteration (\d+)", log)[-1]) >= 4
    assert "[0/4]" in text and "[2/4]" in text and "[3/4]" not in text
    assert re.search(r"broken, seed 1: FAILED: error: training has diverged .*\n +\(log: ", text)
    assert "on broken, seed 1: FAILED: not started, for it needs broken, seed 1" in text
    assert not on_broken.folder.exists()
    row = re.search(r"^\| plain \| 1 \| ([\d.]+) \| – \|$", text, re.M)
    assert f"| evaluated | 1 | {row[1]} | +0.00 |" in text  # the same detector
    assert "Missing: broken, seed 1; on broken, seed 1." in text
    assert text.count("FAILED") == 4  # when it happened, and at the end
    assert records.read_result(plain)["metrics"] == records.read_result(evaluated)["metrics"]
    assert records.read_result(plain)["iterations_per_second"] > 0
    assert (matrix.output / "results.png").exists()

    # What failed is tried again, and nothing else. SIGTERM ends it.
    processes = []

    def terminate():
        wait_until(lambda: records.holder(broken) and " on " in records.holder(broken).text)
        processes.append(pid_of(broken))
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    assert run_here(file) == 128 + signal.SIGTERM
    thread.join()
    text = capsys.readouterr().out
    assert "[2/4]" in text and "1 to run" not in text and "Stopped. The same command" in text
    with pytest.raises(ProcessLookupError):
        os.killpg(processes[0], 0)
    assert records.holder(broken) is None
    assert (plain.folder / "run.log").read_text() == log
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_data_first_then_jobs_with_a_gpu_each(write_matrix, tmp_path, monkeypatch):
    """With a script that notes what it was given, and fails, in the place of train_net.py."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time; start = time.time()\n"
        "e = os.environ; made = os.path.exists(e['MADE'])\n"
        "def number(): return len(open(e['STARTED']).readlines())\n"
        "with open(e['STARTED'], 'a') as started: started.write('one\\n')\n"
        "both = (number() + 1) // 2 * 2\n"  # the first of two waits for the second
        "while number() < both and time.time() < start + 30: time.sleep(0.02)\n"
        "time.sleep(0.5)\n"
        "print('noted', e['CUDA_VISIBLE_DEVICES'], e['OMP_NUM_THREADS'], made, end=' ')\n"
        "print(start, time.time())\n"
        "raise SystemExit(3)"
    )
    made = tmp_path / "made here"
    data = [f"touch '{made}'", f"touch '{made} for {{seed}}'"]
    environment = {"MADE": str(made), "STARTED": str(tmp_path / "started")}
    matrix = load_matrix(write_matrix(environment=environment, data=data))
    failed = Runner(matrix, script, gpus=["5", "7"]).run()
    assert set(failed) == {run.name for run in matrix.runs}
    assert all(Path(f"{made} for {seed}").exists() for seed in matrix.seeds)
    notes = [
        re.search(r"status 3; .*\n +noted (.*)", reason)[1].split() for reason in failed.values()
    ]
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert {tuple(note[1:3]) for note in notes} == {(str(threads), "True")}
    intervals = sorted((float(note[3]), float(note[4]), note[0]) for note in notes)
    for start, _, gpu in intervals:
        same_time = [other for other in intervals if other[0] <= start < other[1]]
        assert sum(other[2] == gpu for other in same_time) == 1
        assert len(same_time) <= 2
    assert intervals[1][0] < intervals[0][1]  # two at a time
    assert {gpu for _, _, gpu in intervals} == {"5", "7"}


def test_data_that_cannot_be_made_stops_all(write_matrix):
    matrix = load_matrix(write_matrix(data=["false"]))
    with pytest.raises(UserError, match="failed with exit status 1"):
        Runner(matrix, TOOL).run()
    matrix = load_matrix(write_matrix(data=["no-such-command"]))
    with pytest.raises(UserError, match="cannot run 'no-such-command'"):
        Runner(matrix, TOOL).run()
    assert [file.name for file in matrix.output.iterdir()] == [".data.lock"]


def test_another_start_makes_the_data(write_matrix, tmp_path, capsys):
    made = tmp_path / "made"
    matrix = load_matrix(write_matrix(data=[f"mkdir '{made}'", "false"]))
    lock = records.lock_data(matrix)

    def end():
        assert not made.exists()
        os.close(lock)

    timer = threading.Timer(0.5, end)
    timer.start()
    with pytest.raises(UserError, match="failed with exit status 1"):
        Runner(matrix, TOOL).run()
    timer.join()
    assert made.exists() and "another start of this tool" in capsys.readouterr().out
    os.close(records.lock_data(matrix))  # nobody has it any longer


def test_a_gpu_without_a_name(write_matrix, run_here, capsys):
    assert run_here(write_matrix(), "--gpus", "0,") == 2
    assert "'0,' has an empty entry; write it like 0,1" in capsys.readouterr().err


def test_dry_run_and_table_run_nothing(write_matrix, run_here, capsys):
    file = write_matrix(seeds=[1], data=["touch x"], environment={"DETECTRON2_DATASETS": "my data"})
    assert run_here(file, "--dry-run") == 0
    made, *lines = capsys.readouterr().out.splitlines()
    assert made == "data: env 'DETECTRON2_DATASETS=my data' touch x"
    assert lines[0] == "plain, seed 1: train" and lines[2] == "lambda 0.1, seed 1: train"
    assert "train_net.py --config-file" in lines[1] and "--resume" in lines[1]
    words = shlex.split(lines[1])  # as a shell reads what is pasted
    assert words[:2] == ["env", "DETECTRON2_DATASETS=my data"]
    run, train_net = load_matrix(file).runs[0], os.path.relpath(TOOL.parents[1] / "train_net.py")
    assert words[2:] == ["python", train_net, *run.arguments()]
    assert run_here(file, "--table").endswith("output has no results yet.")
    assert not load_matrix(file).output.exists()


def test_known_runs_are_in_the_table(write_matrix, run_here, tmp_path, capsys):
    file = write_matrix()
    matrix = load_matrix(file)
    finish(matrix, APS)
    assert run_here(file, "--table") == 0
    kept = tmp_path / "my runs.csv"
    shutil.move(matrix.output / "runs.csv", kept)
    shutil.rmtree(matrix.output)
    capsys.readouterr()
    assert run_here(file, "--dry-run", "--known", str(kept)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(line.endswith(f"(in {kept})") for line in lines)
    assert run_here(file, "--known", str(kept)) == 0  # nothing is left to run
    assert run_here(file, "--table", "--known", str(kept)) == 0
    text = capsys.readouterr().out
    assert "| lambda 0.1 | 2 | 53.00 ± 2.83 | +2.00 [−10.71, +14.71] |" in text
    assert f"run_experiments.py {file} --known '{kept}'\n" in text
    kept.write_text(kept.read_text().replace("settings", "other"))
    assert run_here(file, "--table", "--known", str(kept)).endswith("has no results yet.")
    assert "4 of 4 lines not used, such as plain, seed 1: it does not" in capsys.readouterr().out
