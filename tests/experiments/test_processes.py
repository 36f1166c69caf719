"""Processes, locks and files that change meanwhile: scripts stand in the place of train_net.py."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from swn_d2.experiments import Runner, load_matrix, records
from tests.experiments.test_results import CONTEXT

#: What a script prints that has evaluated a detector.
EVALUATION = """
print("Evaluation results for mine_val in csv format:")
print("copypaste: Task: bbox")
print("copypaste: AP,AP50")
print("copypaste: 50.0,60.0", flush=True)
"""


@pytest.fixture
def write_script(tmp_path):
    def write(text):
        script = tmp_path / "script.py"
        script.write_text(text)
        return script

    return write


@pytest.fixture
def ignore_hangup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def heed_interrupts():
    """Which Python ignores where pytest itself was started in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def has_ended(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_config_that_changes_meanwhile(write_matrix, write_script, config_file, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(config_file.read_text())
    rows = {"plain": {"config": str(config_file)}, "changed": {"config": str(mine)}}
    # Data come after the matrix is read, and before the first run.
    data = [f"sed -i 's/FC_DIM: 32/FC_DIM: 31/' '{mine}'"]
    matrix = load_matrix(write_matrix(seeds=[1], rows=rows, data=data))
    failed = Runner(matrix, write_script(EVALUATION)).run()
    assert list(failed) == ["changed, seed 1"]
    assert (
        "mine.yaml has changed since the tool read it: MODEL.ROI_BOX_HEAD.FC_DIM was 32 and"
        in (failed["changed, seed 1"])
    )
    plain, changed = matrix.runs
    assert records.read_result(plain)
    assert not (changed.folder / "run.json").exists()  # so that the next start can run it


def test_a_folder_that_can_not_be_used_stops_no_other_run(write_matrix, write_script):
    # The result of row lambda can't be written, as on a full disk: a folder has its name.
    script = write_script(
        f"import os, sys{EVALUATION}"
        "if 'lambda' in sys.argv[-1]: os.mkdir(sys.argv[-1] + '/result.json')"
    )
    matrix = load_matrix(write_matrix(seeds=[1, 2, 3]))
    runner = Runner(matrix, script)
    taken, _, locked, _, plain, _ = matrix.runs
    taken.folder.parent.mkdir(parents=True)
    taken.folder.touch()
    (locked.folder / "lock").mkdir(parents=True)
    failed = runner.run()
    for run in (taken, locked):
        assert f"cannot use {run.folder} as an output" in failed.pop(run.name)
    assert set(failed) == {f"lambda 0.1, seed {seed}" for seed in (1, 2, 3)}
    assert all("cannot write" in why and "result.json" in why for why in failed.values())
    assert records.read_result(plain) and not runner.running


def test_the_commit_is_that_of_the_runs_start(write_matrix, write_script, tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=me", "-c", "user.email=me@here"]
    commit = [*git, "commit", "--quiet", "--allow-empty", "-m", "change"]
    matrix = load_matrix(write_matrix(seeds=[1]))
    script = write_script(f"import subprocess\nsubprocess.run({commit}, check=True)\n{EVALUATION}")
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", script.name], check=True)
    subprocess.run(commit, check=True)
    assert Runner(matrix, script).run() == {}
    log = subprocess.run(
        [*git, "log", "--reverse", "--format=%h", "--abbrev=12"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    commits = log.stdout.split()
    assert [records.read_result(run)["commit"] for run in matrix.runs] == commits[:2]
    assert len(commits) == 3


def test_another_tool_meanwhile(write_matrix, write_script, config_file, capsys):
    """After this tool has looked at the folders, another one starts all runs. It completes the
    first two and is cut in the third; in the last two it has another matrix."""
    names = ("plain", "completed", "cut")
    row = {"config": str(config_file)}
    matrix = load_matrix(write_matrix(seeds=[1], rows=dict.fromkeys(names, row)))
    runner = Runner(matrix, write_script(EVALUATION))
    other_row = {**row, "overrides": {"SOLVER.MAX_ITER": 5}}
    rows = {"plain": row, "completed": other_row, "cut": other_row}
    plain, completed, cut = load_matrix(write_matrix(seeds=[1], rows=rows)).runs
    locks = [records.lock(plain), records.lock(completed)]
    for run in (plain, completed, cut):
        records.write_start(run)

    def complete():
        deadline = time.monotonic() + 10
        while not {plain.name, completed.name} <= runner.elsewhere and time.monotonic() < deadline:
            time.sleep(0.02)
        for run in (plain, completed):
            records.write_result(run, {"bbox/AP": 50.0}, 1.0, CONTEXT)

    thread = threading.Thread(target=complete)
    thread.start()
    failed = runner.run()
    thread.join()
    for lock in locks:
        os.close(lock)
    assert "plain, seed 1: done elsewhere, bbox/AP 50.00" in capsys.readouterr().out
    assert set(failed) == {completed.name, cut.name}
    for reason in failed.values():
        assert "was run with SOLVER.MAX_ITER 5, but the matrix now gives 4" in reason
    assert not (cut.folder / "run.log").exists()


def test_under_nohup_a_hangup_is_ignored(write_matrix, write_script, ignore_hangup):
    matrix = load_matrix(write_matrix(seeds=[1]))
    script = write_script(f"import os, signal\nos.kill(os.getppid(), signal.SIGHUP)\n{EVALUATION}")
    assert Runner(matrix, script).run() == {}
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("is_here", [True, False])
def test_what_an_orphan_holds(write_matrix, write_script, config_file, tmp_path, is_here):
    """A run whose tool was killed goes on with GPU 0: here, or on another machine."""
    rows = {name: {"config": str(config_file)} for name in ("plain", "second", "third")}
    notes = tmp_path / "notes"
    environment = {"NOTES": str(notes)}
    matrix = load_matrix(write_matrix(seeds=[1], rows=rows, environment=environment))
    orphans_run = matrix.runs[0]
    lock = records.lock(orphans_run)
    orphan = subprocess.Popen(["sleep", "60"], pass_fds=[lock], start_new_session=True)
    host = socket.gethostname() if is_here else "another.machine"
    os.pwrite(lock, f"process {orphan.pid} on {host}, GPU 0".encode(), 0)
    os.close(lock)
    # The others note their GPU and wait for a second one; the last one ends the orphan.
    seconds = 1 if is_here else 30
    script = write_script(
        "import os, signal, time\n"
        "def lines(): return open(os.environ['NOTES']).read().splitlines()\n"
        "with open(os.environ['NOTES'], 'a') as notes:\n"
        "    notes.write(os.environ['CUDA_VISIBLE_DEVICES'] + '\\n')\n"
        f"deadline = time.time() + {seconds}\n"
        "while len(lines()) < 2 and time.time() < deadline: time.sleep(0.02)\n"
        "print('alone' if len(lines()) < 2 else 'not alone')\n"
        f"if len(lines()) == 2: os.kill({orphan.pid}, signal.SIGKILL)\n" + EVALUATION
    )
    try:
        assert Runner(matrix, script, gpus=["0", "1"]).run() == {}
    finally:
        orphan.kill()
        orphan.wait()
    gpus = notes.read_text().split()
    logs = [(run.folder / "run.log").read_text() for run in matrix.runs[1:]]
    alone = [re.search("^(not )?alone", log, re.M)[0] for log in logs]
    if is_here:
        assert gpus[:2] == ["1", "1"] and alone == ["alone", "not alone"]
    else:
        assert set(gpus[:2]) == {"0", "1"} and alone == ["not alone", "not alone"]
    assert len(gpus) == 3  # the orphan's run is taken up in the end


def test_a_run_on_another_gpu_takes_no_place(write_matrix, write_script, config_file):
    """Of a start with GPU 7, which ends when all of this one's, with GPU 0, have been run."""
    rows = {name: {"config": str(config_file)} for name in ("plain", "second", "third")}
    matrix = load_matrix(write_matrix(seeds=[1], rows=rows))
    lock = records.lock(matrix.runs[0])
    other = subprocess.Popen(["sleep", "60"], pass_fds=[lock], start_new_session=True)
    os.pwrite(lock, f"process {other.pid} on {socket.gethostname()}, GPU 7".encode(), 0)
    os.close(lock)
    script = write_script(
        "import os, signal, sys\n"
        f"if 'third' in sys.argv[-1]: os.kill({other.pid}, signal.SIGKILL)\n" + EVALUATION
    )
    started = time.monotonic()
    try:
        assert Runner(matrix, script, gpus=["0"]).run() == {}
    finally:
        other.kill()
        other.wait()
    assert time.monotonic() - started < 50


def test_what_has_been_evaluated_and_then_failed_is_not_done(write_matrix, write_script):
    matrix = load_matrix(write_matrix(seeds=[1]))
    failed = Runner(matrix, write_script(f"{EVALUATION}raise SystemExit(3)")).run()
    assert set(failed) == {run.name for run in matrix.runs}
    assert all("exit status 3" in reason for reason in failed.values())
    assert not any(records.read_result(run) for run in matrix.runs)


def test_nothing_detected_is_0_in_every_task(write_matrix, write_script):
    """Detectron2 then evaluates boxes alone, and gives no number."""
    metrics = ["segm/AP", "bbox/AP"]
    common = {"MODEL.MASK_ON": True}
    matrix = load_matrix(write_matrix(seeds=[1], metrics=metrics, common=common))
    script = write_script(EVALUATION.replace("50.0,60.0", "nan,nan"))
    assert Runner(matrix, script).run() == {}
    for run in matrix.runs:
        found = records.read_result(run)["metrics"]
        assert found == {"segm/AP": 0.0, "bbox/AP": 0.0, "bbox/AP50": 0.0}
    other = load_matrix(write_matrix(seeds=[2], metrics=metrics, common=common))
    failed = Runner(other, write_script(EVALUATION)).run()
    assert all("gave no segm/AP, but bbox/AP" in reason for reason in failed.values())
    assert len(failed) == 2


def test_jobs_that_share_a_gpu(write_matrix, write_script, tmp_path):
    """Each of four runs ends only when it has seen the three others, all on GPU 0."""
    notes = tmp_path / "notes"
    matrix = load_matrix(write_matrix(environment={"NOTES": str(notes)}))
    script = write_script(
        "import os, time\n"
        "with open(os.environ['NOTES'], 'a') as notes:\n"
        "    notes.write(os.environ['CUDA_VISIBLE_DEVICES'] + '\\n')\n"
        "deadline = time.time() + 30\n"
        "while len(open(os.environ['NOTES']).readlines()) < 4:\n"
        "    assert time.time() < deadline, 'alone'\n"
        "    time.sleep(0.02)\n" + EVALUATION
    )
    assert Runner(matrix, script, gpus=["0"] * 4).run() == {}
    assert notes.read_text().split() == ["0"] * 4


def test_a_signal_while_data_are_made(write_matrix, tmp_path, heed_interrupts):
    made = tmp_path / "made"
    slow = "sh -c 'kill -INT $PPID; exec sleep 60'"
    matrix = load_matrix(write_matrix(data=[slow, f"touch '{made}'"]))
    begin = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        Runner(matrix, "train_net.py").run()
    assert time.monotonic() - begin < 30
    assert stopped.value.code == 128 + signal.SIGINT
    assert not made.exists() and list(matrix.output.iterdir()) == [matrix.output / ".data.lock"]


def test_all_that_a_run_prints_is_read(write_matrix, write_script, monkeypatch):
    """Also what it prints while this process is slow, here until the run has ended."""

    class SlowPopen(subprocess.Popen):
        def __init__(self, command, *args, **kwargs):
            super().__init__(command, *args, **kwargs)
            if command[0] == sys.executable:
                self.wait()

    monkeypatch.setattr(subprocess, "Popen", SlowPopen)
    matrix = load_matrix(write_matrix(seeds=[1]))
    assert Runner(matrix, write_script(EVALUATION)).run() == {}


def test_what_outlives_a_run_is_killed(write_matrix, write_script):
    script = write_script(
        "import subprocess\n"
        "print('left', subprocess.Popen(['sleep', '30']).pid)\n"
        "raise SystemExit(3)"
    )
    matrix = load_matrix(write_matrix(seeds=[1]))
    failed = Runner(matrix, script).run()
    left = [int(re.search(r"left (\d+)", reason)[1]) for reason in failed.values()]
    assert len(left) == 2
    deadline = time.monotonic() + 10
    while not all(map(has_ended, left)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
