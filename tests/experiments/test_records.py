"""What is in a run's folder, and whether it is what the matrix asks for."""

import json
import os
import socket
import time

import pytest

from swn_d2 import UserError
from swn_d2.experiments import Runner, describe, load_matrix, records
from tests.experiments.test_results import APS, finish


@pytest.fixture
def matrix(write_matrix):
    return load_matrix(write_matrix())


def refusal(file):
    with pytest.raises(UserError) as error:
        describe(load_matrix(file), "train_net.py")
    return str(error.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"common": {"SOLVER.MAX_ITER": 5}}, "SOLVER.MAX_ITER 4, but the matrix now gives 5"),
        ({"train_net_args": ["--num-gpus", 2]}, "train_net_args [], but the matrix now says ['--n"),
        ({"environment": {"DETECTRON2_DATASETS": "x"}}, "environment {}, but"),
        ({"data": ["make data"]}, "data [], but"),
    ],
)
def test_a_changed_matrix_is_refused(write_matrix, changes, message):
    finish(load_matrix(write_matrix()), {("plain", 1): 50.0})
    text = refusal(write_matrix(**changes))
    assert message in text and "plain/seed_1 was run with" in text and "Delete or move" in text


def test_a_changed_config_file_is_refused(write_matrix, config_file, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(config_file.read_text())
    file = write_matrix(rows={"plain": {"config": str(mine)}})
    finish(load_matrix(file), {("plain", 1): 50.0})
    describe(load_matrix(file), "train_net.py")
    mine.write_text(config_file.read_text().replace("FC_DIM: 32", "FC_DIM: 31"))
    assert "MODEL.ROI_BOX_HEAD.FC_DIM 32, but the matrix now gives 31" in refusal(file)


def test_what_does_not_change_a_run_is_not_refused(write_matrix):
    matrix = load_matrix(write_matrix())
    finish(matrix, APS)
    # It was run by a version of this package that had one key less, and one more.
    file = matrix.runs[0].folder / "run.json"
    start = json.loads(file.read_text())
    del start["settings"]["config"]["MODEL.SWN.CLAMP"]
    start["settings"]["config"]["MODEL.SWN.GONE"] = 1
    # And whose default of a weighter that the run does not use was another.
    start["settings"]["config"]["MODEL.SAMPLE_WEIGHTER.IOUBALANCED.CLS_POWER"] = 7.0
    file.write_text(json.dumps(start))
    more = write_matrix(seeds=[3, 2, 1], title="Other", metrics=["bbox/APl"])
    assert sum(": done" in line for line in describe(load_matrix(more), "train_net.py")) == 4
    # But it is one where the matrix sets the new key to something else.
    text = refusal(write_matrix(common={"MODEL.SWN.CLAMP": 1.0}))
    assert "MODEL.SWN.CLAMP 2.0, but the matrix now gives 1.0" in text


def test_a_changed_default_of_its_own_weighter_is_refused(write_matrix):
    common = {"MODEL.SAMPLE_WEIGHTER.NAME": "IoUBalanced"}
    matrix = load_matrix(write_matrix(common=common))
    finish(matrix, APS)
    file = matrix.runs[0].folder / "run.json"
    start = json.loads(file.read_text())
    start["settings"]["config"]["MODEL.SAMPLE_WEIGHTER.IOUBALANCED.CLS_POWER"] = 7.0
    file.write_text(json.dumps(start))
    assert "IOUBALANCED.CLS_POWER 7.0, but the matrix now gives" in refusal(
        write_matrix(common=common)
    )


def test_another_checkpoint_is_refused(write_matrix, config_file):
    """What was evaluated, or started from, was trained again, or is gone."""
    rows = {
        "plain": {"config": str(config_file)},
        "soft": {"config": str(config_file), "evaluate": "plain"},
    }
    file = write_matrix(rows=rows, seeds=[1])
    matrix = load_matrix(file)
    finish(matrix, {("plain", 1): 50.0, ("soft", 1): 51.0})
    result = matrix.runs[0].folder / "result.json"
    content = json.loads(result.read_text())
    result.write_text(json.dumps({**content, "finished": "later"}))
    assert "soft/seed_1 was made from a checkpoint of 'plain, seed 1' that is no" in refusal(file)
    result.unlink()
    assert "soft/seed_1 was made from a checkpoint of 'plain, seed 1' that is no" in refusal(file)


def test_a_run_of_something_else_is_refused(write_matrix, matrix):
    matrix.runs[0].folder.mkdir(parents=True)
    (matrix.runs[0].folder / "last_checkpoint").write_text("model_final.pth")
    assert "plain/seed_1 holds a run of something else" in refusal(write_matrix())


@pytest.mark.parametrize("name", ["result.json", "run.json"])
@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not valid JSON"),
        ("{}", "is not what this tool writes"),
        ("[]", "is not what this tool writes"),
        ('{"settings": 5, "metrics": 5}', "is not what this tool writes"),
    ],
)
def test_damaged_record(write_matrix, matrix, name, text, message):
    finish(matrix, APS)
    (matrix.runs[0].folder / name).write_text(text)
    line = refusal(write_matrix())
    assert f"{name} {message}" in line and "Move its folder away." in line


def test_damaged_lines_of_a_training_are_left_out(matrix):
    (run, *_) = matrix.runs
    run.folder.mkdir(parents=True)
    nested = "[" * 100_000
    (run.folder / "metrics.json").write_text(f'{{"iteration": 3}}\n[1]\n5\nnull\n{nested}\n')
    assert records.iterations_done(run) == 4


def test_lock_lasts_as_long_as_a_copy_of_it(matrix):
    run = matrix.runs[0]
    assert records.holder(run) is None and not run.folder.exists()  # asking makes nothing
    descriptor = records.lock(run)
    copy = os.dup(descriptor)
    assert records.lock(run) is None
    os.close(descriptor)
    assert records.holder(run) == records.Holder("another process", is_here=True, gpu=None)
    os.pwrite(copy, b"process 7 on another.machine, GPU 3", 0)
    text = "process 7 on another.machine, GPU 3"
    assert records.holder(run) == records.Holder(text, is_here=False, gpu="3")
    assert f"plain, seed 1: being run by {text}" in describe(matrix, "train_net.py")
    os.close(copy)
    assert records.holder(run) is None
    # The next one starts without that note, and makes its own.
    descriptor = records.lock(run)
    assert records.holder(run).text == "another process"
    records.note_holder(descriptor, 8, None)
    here = records.Holder(f"process 8 on {socket.gethostname()}", is_here=True, gpu=None)
    assert records.holder(run) == here
    os.close(descriptor)


def test_time_of_processes_that_were_killed_counts(matrix):
    run = matrix.runs[0]
    run.folder.mkdir(parents=True)
    assert records.write_start(run) == 0
    file = run.folder / "run.json"
    start = json.loads(file.read_text())
    file.write_text(json.dumps({**start, "started": time.time() - 100, "seconds_before": 30}))
    (run.folder / "run.log").touch()
    os.utime(run.folder / "run.log", (0, time.time() - 60))
    assert records.write_start(run) == pytest.approx(30 + 40, abs=1)  # the files' time is coarse


def test_how_far_a_training_is(matrix):
    run = matrix.runs[0]
    run.folder.mkdir(parents=True)
    assert records.iterations_done(run) == 0
    lines = ['{"iteration": 1, "time": 0.5}', '{"iteration": 2, "time": 0.25}', '{"iter']
    (run.folder / "metrics.json").write_text("\n".join(lines))
    assert records.iterations_done(run) == 3  # iterations are counted from 0
    result = records.write_result(run, {}, 1.0, {})
    assert result["iterations_per_second"] == pytest.approx(1 / 0.375, abs=5e-4)


@pytest.mark.parametrize("jobs, gpus", [(0, None), (3, ["0", "1"])])
def test_jobs_must_fit(matrix, jobs, gpus):
    with pytest.raises(UserError, match=f"--jobs is {jobs}, but it must be at least 1"):
        Runner(matrix, "train_net.py", jobs=jobs, gpus=gpus)
