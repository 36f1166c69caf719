"""What a run shows on a terminal, and what is left to its log.txt."""

import itertools
import json
import logging
import os
import re
import threading
from pathlib import Path

import pytest
from detectron2.utils.events import EventStorage

from swn_d2.data import make_digit_scenes
from swn_d2.engine.console import ProgressPrinter, describe_results
from tests import processes
from tests.tiny import tiny_config

TRAIN_NET = Path(__file__).parents[2] / "train_net.py"
COLOUR = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Category ids with a gap, of which Detectron2 warns for each data set that it loads."""
    folder = make_digit_scenes(
        tmp_path_factory.mktemp("data") / "digits", num_train=4, num_val=2, image_size=(96, 64)
    )
    for file in (folder / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        content["categories"][-1]["id"] = 99
        for annotation in content["annotations"]:
            annotation["category_id"] = {10: 99}.get(*[annotation["category_id"]] * 2)
        file.write_text(json.dumps(content))
    return folder


def train(data, output, **streams):
    cfg = tiny_config(
        *("DATASETS.TRAIN", ("mine_train",), "DATASETS.TEST", ("mine_val",)),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 10, "SOLVER.IMS_PER_BATCH", 2),
        *("SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS", 1, "SOLVER.STEPS", (1, 5)),
        *("DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(output)),
    )
    output.mkdir()
    file = output / "mine.yaml"
    file.write_text(cfg.dump())
    registered = [
        str(text)
        for part in ("train", "val")
        for text in (
            *("--register-coco", f"mine_{part}"),
            *(data / "annotations" / f"instances_{part}.json", data / part),
        )
    ]
    process = processes.start(TRAIN_NET, "--config-file", file, *registered, **streams)
    process.join()
    assert process.exitcode == 0
    return (output / "log.txt").read_text()


def on_a_terminal(data, output):
    """What a training shows on a terminal, and its log.txt."""
    master, slave = os.openpty()
    shown = []

    def read():
        while True:
            try:
                shown.append(os.read(master, 65536))
            except OSError:  # all of the other side is closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        log = train(data, output, stdout=os.ttyname(slave), stderr=output.with_name("err"))
    finally:
        os.close(slave)
        reader.join()
        os.close(master)
    return b"".join(shown).decode().splitlines(), log


def in_a_file(data, output):
    log = train(data, output, stdout=output.with_name("out"), stderr=output.with_name("err"))
    return output.with_name("out").read_text().splitlines(), log


def test_a_terminal_gets_what_a_person_wants_to_know(data, tmp_path):
    lines, log = on_a_terminal(data, tmp_path / "run")
    text = "\n".join(lines)
    before = list(itertools.takewhile(lambda line: " iter " not in line, lines))
    assert len(before) < 15, text
    for words in (
        "Training GeneralizedRCNN with SWNROIHeads, weighted by SWN",
        "Losses are as SWN weights them",
        "Data: mine_train, tested on mine_val",
        f"Folder: {tmp_path / 'run'}",
        "4 iterations of 2 pictures: 2.0 epochs of 4 pictures",
    ):
        assert text.count(words) == 1, words
    warnings = [COLOUR.sub("", line) for line in lines if "WARNING" in line]
    assert warnings and len(warnings) == len(set(warnings))
    assert len(re.findall("Category ids in annotations are not in", text)) == 1
    assert len(re.findall("does not fall at 5", text)) == 1
    assert "\x1b[" in text
    (progress,) = (line for line in lines if " iter " in line)
    assert re.match(r"[\d:]{8}  iter 4/4  eta 0:00:00  cls [\d.]+  ", progress), progress
    assert len(progress) <= 80 and "total" not in progress and "swn" not in progress
    assert re.search(r"  mine_val: bbox (AP [\d.]+, AP50 .*|nothing found)$", text, re.M)
    assert "copypaste" not in text and "Average Precision" not in text
    assert lines[-2].endswith(f"  Done: {tmp_path / 'run'}/model_final.pth")
    assert re.search(r"  A report: python \S*tools/report.py \S+/run$", lines[-1])

    for words in ("Running with full config", "Environment info", "(roi_heads): SWNROIHeads"):
        assert words in log
    assert "total_loss: " in log and "copypaste" in log and " iter 4/4" not in log
    assert not COLOUR.search(log)


def test_a_file_gets_plain_lines_and_those_that_scripts_look_for(data, tmp_path):
    lines, _ = in_a_file(data, tmp_path / "run")
    text = "\n".join(lines)
    assert not COLOUR.search(text) and " iter 4/4  " in text
    assert text.count("copypaste: Task: bbox") == 1
    assert text.count("Evaluation results for mine_val in csv format") == 1


def progress_line(caplog, losses, max_iter=90_000):
    with EventStorage(max_iter - 21) as storage, caplog.at_level(logging.INFO, "swn_d2.progress"):
        storage.put_scalars(total_loss=9.0, loss_swn_box=-0.1, time=1.5, lr=0.00123, **losses)
        ProgressPrinter(max_iter).write()
    (record,) = (record for record in caplog.records if record.name == "swn_d2.progress")
    return record.getMessage()


def test_the_longest_line_of_progress_fits(caplog):
    losses = {f"loss_{n}_stage{i}": 0.5 for n in ("cls", "box_reg") for i in range(3)}
    line = progress_line(
        caplog, {**losses, "loss_mask": 0.7, "loss_rpn_cls": 0.25, "loss_rpn_loc": 0.5}
    )
    assert line == (
        "iter 89980/90000  eta 0:00:30  cls 1.500  box 1.500  mask 0.700  rpn 0.750  lr 0.0012"
    )
    assert len("00:00:00  " + line) <= 100


def test_a_training_that_is_stopped_says_so_last(caplog):
    with EventStorage(40) as storage, caplog.at_level(logging.INFO, "swn_d2.progress"):
        storage.put_scalars(loss_cls=1.0, lr=0.1)
        ProgressPrinter(100).write()
    assert "swn_d2.progress" not in [record.name for record in caplog.records]


def test_results_in_a_line():
    nan = float("nan")
    of_box, of_mask = {"AP": 1.234, "AP50": 5.0, "AP75": nan, "APs": 7.0}, {"AP": 2.0}
    assert describe_results("mine", {"bbox": of_box, "segm": of_mask}) == (
        "mine: bbox AP 1.23, AP50 5.00, AP75 nan; segm AP 2.00"
    )
    assert describe_results("mine", {"bbox": {"AP": nan, "AP50": nan}}) == (
        "mine: bbox: nothing found"
    )
