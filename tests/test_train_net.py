"""train_net.py as a user runs it: a process, real files, an exit status."""

import json
import os
import pickle
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from swn_d2.data import make_digit_scenes
from swn_d2.engine import resume_command
from swn_d2.errors import UserError
from tests import processes
from tests.pickles import Call
from tests.tiny import DETECTORS, tiny_config
from tests.voc import voc_object, write_voc

TRAIN_NET = Path(__file__).parents[1] / "train_net.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "digits"
    make_digit_scenes(root, num_train=8, num_val=4, image_size=(96, 64))
    return root


@pytest.fixture
def config_file(tmp_path):
    return write_config(tmp_path)


def write_config(tmp_path, detector="faster_rcnn"):
    """A tiny detector on the data of ``data``, as a config file."""
    cfg = tiny_config(
        *("DATASETS.TRAIN", ("mine_train",)),
        *("DATASETS.TEST", ("mine_val",)),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 10),
        *("MODEL.RETINANET.NUM_CLASSES", 10),
        *("INPUT.MASK_FORMAT", "bitmask"),
        *("INPUT.MIN_SIZE_TRAIN", (64,)),
        *("INPUT.MIN_SIZE_TEST", 64),
        *("DATALOADER.NUM_WORKERS", 0),
        *("SOLVER.IMS_PER_BATCH", 2),
        *("SOLVER.MAX_ITER", 4),
        *("SOLVER.STEPS", (3,)),
        *("SOLVER.CHECKPOINT_PERIOD", 2),
        *("OUTPUT_DIR", str(tmp_path / "run")),
        detector=detector,
    )
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    return path


def command(config_file, data, *arguments):
    """The script and its arguments."""
    return [
        *(str(TRAIN_NET), "--config-file", str(config_file)),
        *("--register-coco", "mine_train"),
        *(str(data / "annotations" / "instances_train.json"), str(data / "train")),
        *("--register-coco", "mine_val"),
        *(str(data / "annotations" / "instances_val.json"), str(data / "val")),
        *arguments,
    ]


def run(*args):
    return processes.run(*command(*args))


def succeed(*args):
    result = run(*args)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result


def ap_tables(text):
    """The figures of the last evaluations as they were printed, "Task: bbox" before its own."""
    return re.findall(r"copypaste: (Task: \w+|[\d.,nan]+)$", text, flags=re.MULTILINE)


@pytest.mark.parametrize("detector", DETECTORS)
def test_evaluation_alone_gives_what_the_training_gave(detector, data, tmp_path):
    config_file = write_config(tmp_path, detector)
    by_itself = [tmp_path / run / "inference" / "metrics.json" for run in ("run", "evaluated")]
    by_itself[0].parent.mkdir(parents=True)
    by_itself[0].write_text("{}")  # of an evaluation before the training's
    trained = succeed(config_file, data)
    evaluated = succeed(
        *(config_file, data, "--eval-only"),
        *("MODEL.WEIGHTS", str(tmp_path / "run" / "model_final.pth")),
        *("OUTPUT_DIR", str(tmp_path / "evaluated")),
    )
    tables = ap_tables(evaluated.stdout)
    assert tables and tables == ap_tables(trained.stdout)
    assert ("Task: segm" in tables) == ("mask" in detector)
    assert not by_itself[0].exists()  # the training's metrics.json has it
    metrics = json.loads(by_itself[1].read_text())
    assert "bbox/AP" in metrics and ("segm/AP" in metrics) == ("mask" in detector)
    first, second = (
        json.loads((tmp_path / run / "inference" / "coco_instances_results.json").read_text())
        for run in ("run", "evaluated")
    )
    assert first and second == first
    saved, of_evaluation = (
        yaml.safe_load((tmp_path / run / "config.yaml").read_text()) for run in ("run", "evaluated")
    )
    assert of_evaluation["OUTPUT_DIR"] == str(tmp_path / "evaluated")
    assert "SWN" in saved["MODEL"]["ROI_HEADS"]["NAME"] + saved["MODEL"]["META_ARCHITECTURE"]


def test_two_processes_without_a_gpu(config_file, data, tmp_path):
    trained = succeed(config_file, data, "--num-gpus", "2", "--dist-url", "auto")
    assert "Device: the CPU (there is no GPU), 2 processes" in trained.stdout
    assert (tmp_path / "run" / "model_final.pth").exists()
    assert (tmp_path / "run" / "log.txt.rank1").exists()


def test_killed_in_the_middle_and_resumed(config_file, data, tmp_path):
    output = tmp_path / "run"
    long = ["SOLVER.MAX_ITER", "5000"]
    process = processes.start(*command(config_file, data, *long))
    try:
        deadline = time.monotonic() + 120
        while not (output / "model_0000003.pth").exists():
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL

    last = int(re.search(r"\d+", (output / "last_checkpoint").read_text()).group())
    resumed = succeed(config_file, data, "--resume", "SOLVER.MAX_ITER", str(last + 4))
    assert f"Starting training from iteration {last + 1}" in resumed.stdout
    assert (output / "model_final.pth").exists()

    # And without --resume it refuses to write over it.
    again = run(config_file, data)
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1].startswith(f"error: {output} already holds a run")
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize("number, is_two", [("SIGTERM", True), ("SIGINT", False)])
def test_stopped_by_a_signal(config_file, data, tmp_path, number, is_two):
    """Of two processes, only the second one gets it."""
    output, number = tmp_path / "run", signal.Signals[number]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started = []
    for rank in range(1 + is_two):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started.append(
            processes.start(
                *command(config_file, data, "SOLVER.MAX_ITER", "5000"),
                *("SOLVER.CHECKPOINT_PERIOD", "4000", "DATALOADER.NUM_WORKERS", "1"),
                environment={n: str(v) for n, v in place.items()} if is_two else None,
            )
        )
    try:
        deadline = time.monotonic() + 120
        while not (output / "samples.jsonl").exists():
            assert all(p.is_alive() for p in started) and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(started[-1].pid, number)
        for process in started:
            process.join(60)
            assert process.exitcode == 128 + number
    finally:
        for process in started:
            process.kill()
    last = (output / "last_checkpoint").read_text()
    (line,) = (line for line in (output / "log.txt").read_text().splitlines() if "Stopped" in line)
    words = shlex.split(line.split("to go on from: ")[1])  # as a shell reads what is pasted
    assert Path(words[0]).resolve() == Path(sys.executable).resolve() or words[0] == "python"
    assert f"Stopped by {number.name} after iteration" in line and last in line
    assert f"{TRAIN_NET} --resume --config-file" in line
    iteration = int(re.search(r"\d+", last).group())
    resumed = succeed(config_file, data, "--resume", "SOLVER.MAX_ITER", str(iteration + 2))
    assert f"Starting training from iteration {iteration + 1}" in resumed.stdout


def test_torchrun_starts_a_failed_job_again(config_file, data, tmp_path):
    """One of its processes is killed; without --resume, the run goes on."""
    output = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--standalone", "--max-restarts", "1", *command(config_file, data)]
    log = open(tmp_path / "log.txt", "w")
    job = subprocess.Popen([*torchrun, "SOLVER.MAX_ITER", "30"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not (output / "model_0000003.pth").exists():
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        assert job.wait(240) == 0
    finally:
        job.terminate()
        log.close()
    starts = re.findall(r"Starting training from iteration (\d+)", (output / "log.txt").read_text())
    assert len(starts) == 2 and starts[0] == "0" and int(starts[1]) > 3


def test_the_config_is_that_of_the_training(config_file, data, tmp_path):
    """It is replaced only where the training goes on."""
    output, made = tmp_path / "run", tmp_path / "made"
    succeed(config_file, data, "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)")
    before = (output / "config.yaml").read_bytes()
    code = tmp_path / "code.pkl"
    code.write_bytes(pickle.dumps({"model": Call(os.mkdir, str(made)), "__author__": "me"}))
    final = ["--eval-only", "MODEL.WEIGHTS", str(output / "model_final.pth")]
    wider = ["MODEL.RESNETS.WIDTH_PER_GROUP", "8"]
    for arguments, message in (
        (["--resume", *wider], "does not fit this model"),
        ([*final, *wider], "does not fit this model"),
        (["--eval-only", "MODEL.WEIGHTS", str(code)], "code.pkl asks for 'posix.mkdir'"),
    ):
        result = run(config_file, data, *arguments)
        assert result.returncode == 1
        assert re.search(f"^error: .*{message}", result.stderr.splitlines()[-1])
        assert (output / "config.yaml").read_bytes() == before
    assert not made.exists()
    of_evaluation = output / "inference" / "config.yaml"
    assert of_evaluation.read_bytes() == before
    succeed(config_file, data, *final, "MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.6")
    assert (output / "config.yaml").read_bytes() == before
    evaluated = of_evaluation.read_bytes()
    assert yaml.safe_load(evaluated)["MODEL"]["ROI_HEADS"]["NMS_THRESH_TEST"] == 0.6
    longer = ["--resume", "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "(1,)", "DATASETS.TEST", "()"]
    succeed(config_file, data, *longer)  # does not evaluate
    assert of_evaluation.read_bytes() == evaluated
    succeed(config_file, data, "--resume")
    assert yaml.safe_load((output / "config.yaml").read_text())["SOLVER"]["MAX_ITER"] == 4


WEIGHTER = """
import torch
from swn_d2.weighting import SAMPLE_WEIGHTER_REGISTRY, SampleWeighter, SampleWeights

@SAMPLE_WEIGHTER_REGISTRY.register()
class WellPlaced(SampleWeighter):
    KEYS = {"OFFSET": 0.5}

    def __init__(self, offset):
        super().__init__()
        self.offset = offset

    def forward(self, statistics):
        return SampleWeights(cls=torch.ones_like(statistics.iou), box=self.offset + statistics.iou)
"""


def test_a_run_knows_its_data_and_asks_for_its_code(config_file, tmp_path, clean_catalog):
    """From whichever folder; a VOC folder and a weighter that this package does not have."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir(), elsewhere.mkdir()
    (home / "my_weighter.py").write_text(WEIGHTER)
    dog, cat = voc_object("dog", (5, 5, 40, 40)), voc_object("cat", (30, 10, 80, 50))
    for split in ("train", "val"):
        images = {f"{split}{i}": [dog, cat] for i in range(3)}
        write_voc(home / "pets", images, split, size=(96, 64))
    code = ["--import", "my_weighter.py"]
    trained = processes.run(
        *(TRAIN_NET, "--config-file", config_file, *code),
        *("--register-voc", "pets_val", "pets", "val", "dog", "cat"),
        *("--register-voc", "pets_train", "pets", "train", "dog", "cat"),
        *("DATASETS.TRAIN", "pets_train", "DATASETS.TEST", "pets_val"),
        *("MODEL.ROI_HEADS.NUM_CLASSES", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)"),
        *("MODEL.SAMPLE_WEIGHTER.NAME", "WellPlaced", "RECORDING.PERIOD", "1"),
        *("MODEL.SAMPLE_WEIGHTER.WELLPLACED.OFFSET", "0.75", "OUTPUT_DIR", "run"),
        cwd=home,
    )
    assert trained.returncode == 0, trained.stderr[-4000:]
    run = home / "run"
    recorded = (run / "samples.jsonl").read_text().splitlines()[1]
    columns = json.loads(recorded)["positives"]
    assert columns["box_weight"] == pytest.approx([0.75 + iou for iou in columns["iou"]], abs=1e-3)

    evaluate = [TRAIN_NET, "--config-file", run / "config.yaml", "--eval-only"]
    checkpoint = ["MODEL.WEIGHTS", run / "model_final.pth", "OUTPUT_DIR", "evaluated"]
    refused = processes.run(*evaluate, *checkpoint, cwd=elsewhere)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].endswith("give --import my_weighter.py again.")
    code[1] = str(home / "my_weighter.py")
    evaluated = processes.run(*evaluate, *code, *checkpoint, cwd=elsewhere)
    assert evaluated.returncode == 0, evaluated.stderr[-4000:]
    assert ap_tables(evaluated.stdout) and ap_tables(evaluated.stdout) == ap_tables(trained.stdout)
    known = json.loads((elsewhere / "evaluated" / "registered.json").read_text())
    assert known["data_sets"]["pets_val"]["classes"] == ["dog", "cat"]

    (home / "pets").rename(home / "moved")
    lost = processes.run(*evaluate, *code, *checkpoint, cwd=elsewhere)
    assert lost.returncode == 1
    line = lost.stderr.splitlines()[-1]
    assert f"pets_val of {run} is not where it was, {home / 'pets'}; say where it is with" in line
    again = ["--register-voc", "pets_val", home / "moved", "val", "dog", "cat"]
    found = processes.run(*evaluate, *code, *again, *checkpoint, cwd=elsewhere)
    assert ap_tables(found.stdout) == ap_tables(trained.stdout)


def test_which_run_goes_on_and_what_is_evaluated_of_it(config_file, tmp_path):
    """From whichever folder, and after it has moved; else its OUTPUT_DIR is another one."""
    script = runpy.run_path(str(TRAIN_NET))
    run = tmp_path / "moved"
    run.mkdir()
    shutil.copy(config_file, run)

    def setup(*arguments):
        arguments = ["--config-file", str(run / "config.yaml"), *map(str, arguments)]
        cfg = script["setup"](script["argument_parser"]().parse_args(arguments))
        return cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS

    written = str(tmp_path / "run")
    assert setup("--resume") == (written, "")  # moved has no run
    for name in ("model_0000001.pth", "last_checkpoint"):
        (run / name).write_text("model_0000001.pth")
    assert setup("--resume") == (str(run), "")
    assert setup("--resume", "OUTPUT_DIR", "mine") == ("mine", "")
    assert setup() == (written, "")
    last = str(run / "model_0000001.pth")
    start = "MODEL.WEIGHTS", "start.pth"
    assert setup("--eval-only", "--resume", *start) == (str(run), last)
    assert setup("--eval-only", *start) == (written, "start.pth")
    # Where there is no checkpoint, what Detectron2's own script takes, if it is given.
    assert setup("--eval-only", "--resume", *start, "OUTPUT_DIR", "mine") == ("mine", "start.pth")
    with pytest.raises(UserError, match="mine has no last_checkpoint to evaluate; give MODEL.WEIG"):
        setup("--eval-only", "--resume", "OUTPUT_DIR", "mine")
    # A new run by this config is not the one that it is of, and says so.
    words = resume_command(["t.py", "--config-file", "moved/config.yaml", "SEED", "2"], "my run")
    assert words.endswith(
        "t.py --resume --config-file moved/config.yaml SEED 2 OUTPUT_DIR 'my run'"
    )
    assert resume_command(["t.py", "OUTPUT_DIR", "x"], "y").endswith("t.py --resume OUTPUT_DIR x")


@pytest.fixture
def run_here(monkeypatch, clean_catalog):
    """Runs the script in this process, which takes a tenth of the time of one of its own: for what
    it finds before it starts processes itself. Gives the text that it exits with, which Python
    prints, with exit status 1."""

    def run_script(*args):
        argv = command(*args)
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(argv[0], run_name="__main__")
        return exit_info.value.code

    return run_script


def test_bad_input_in_a_process_of_its_own(config_file, data):
    """A new Python, which imports everything itself."""
    words = [sys.executable, *command(config_file, data, "MODEL.SWN.LAMBDA_CLS", "-1.0")]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: MODEL.SWN.LAMBDA_CLS is -1.0")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["MODEL.SWN.LAMDA_CLS", "0.1"], "MODEL.SWN.LAMDA_CLS.*mean MODEL.SWN.LAMBDA_CLS"),
        (["MODEL.SWN.LAMBDA_CLS", "-1.0"], "LAMBDA_CLS is -1.0.*at least 0"),
        (["MODEL.SAMPLE_WEIGHTER.NAME", "OHME"], "OHME.*SWN.*Uniform"),
        (["MODEL.WEIGHTS", "no/such.pth"], "no/such.pth"),
        (["SOLVER.AMP.ENABLED", "True"], "AMP.*GPU"),
        (["SOLVER.BASE_LR", "fast"], "not valid.*BASE_LR"),
        (["SOLVER.BASE_LR"], "command line"),
        (["DATASETS.TEST", "('mine_vla',)"], "mine_vla.*mine_val"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "3"], "10.*NUM_CLASSES 10"),
        (["--register-coco", "other", "no.json", "images"], "no.json"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
        (["MODEL.ROI_HEADS.NAME", "SWNROIHead"], "did you mean SWNROIHeads"),
        (["MODEL.SWN.STRENGTH", "1"], "MODEL.SWN.STRENGTH is 1, .*number like 1.0"),
        (["MODEL.SWN.EASE_IN", "[0.9,0.2]"], r"EASE_IN is \[0.9, 0.2\].*start <= end"),
        (["OUTPUT_DIR", "/dev/null/x"], "OUTPUT_DIR /dev/null/x"),
        (["--num-gpus", "0"], "at least 1"),
        (["--eval-only"], "give MODEL.WEIGHTS"),
        (["--num-gpus", "3", "MODEL.DEVICE", "cpu"], "IMS_PER_BATCH 2.*3 processes"),
    ],
)
def test_bad_input_is_one_line(run_here, config_file, data, tmp_path, arguments, message):
    line = run_here(config_file, data, *arguments)
    assert "\n" not in line and line.startswith("error: ") and re.search(message, line)
    assert not list((tmp_path / "run").glob("*.pth"))


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "mine.yaml: No such file"),
        ("MODEL: [", "mine.yaml is not a plain YAML"),
        ("MODEL: !!python/object/apply:os.system ['true']", "mine.yaml is not a plain YAML"),
        ("MODLE: {}", "MODLE"),
        ("", "mine.yaml"),
        ("- 1", "mine.yaml"),
    ],
)
def test_bad_config_files(run_here, data, tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    line = run_here(path, data)
    assert "\n" not in line and re.search("^error: .*" + message, line)


def test_help_names_every_argument():
    result = processes.run(TRAIN_NET, "--help")
    assert result.returncode == 0
    for argument in (
        *("--config-file", "--resume", "--eval-only", "--num-gpus", "--num-machines"),
        *("--machine-rank", "--dist-url", "--register-coco", "--register-voc", "--import", "opts"),
    ):
        assert argument in result.stdout


ON_A_FULL_DISK = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_full_disk_is_one_line_and_loses_nothing(config_file, data, tmp_path):
    """A limit on the size of files, which the kernel enforces as it does a full disk."""
    succeed(config_file, data, "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)")
    output = tmp_path / "run"
    before = (output / "model_final.pth").read_bytes()
    script = tmp_path / "on_a_full_disk.py"
    script.write_text(ON_A_FULL_DISK)
    result = processes.run(script, len(before) // 2, *command(config_file, data, "--resume"))
    assert result.returncode == 1
    assert re.search(r"^error: cannot write .*--resume; the last good", result.stderr, re.M)
    assert "Traceback" not in result.stdout + result.stderr
    assert (output / "model_final.pth").read_bytes() == before
    assert "Starting training from iteration 2" in succeed(config_file, data, "--resume").stdout


def test_a_damaged_picture_is_named(config_file, data, tmp_path):
    """Its header is whole, so that only training notices; in a data loader's process."""
    mine = tmp_path / "mine"
    shutil.copytree(data, mine)
    for picture in (mine / "train").glob("*.jpg"):
        picture.write_bytes(picture.read_bytes()[:-200])
    result = run(config_file, mine, "DATALOADER.NUM_WORKERS", "1")
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert re.search(r"^error: cannot use image .*\.jpg \(image id \d+\)", last), result.stderr


def test_divergence_is_one_line(config_file, data):
    result = run(config_file, data, "SOLVER.BASE_LR", "1e9", "SOLVER.WARMUP_ITERS", "0")
    assert result.returncode == 1
    assert re.search("^error: training has diverged .*BASE_LR", result.stderr, re.M)
    assert "Traceback" not in result.stdout + result.stderr


def test_the_script_is_executable():
    assert os.access(TRAIN_NET, os.X_OK)
