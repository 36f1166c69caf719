"""What a user can get wrong, in one table: each ends in one sentence that says what to mend, before
any training, and whatever run is in the output folder stays as it is.

How the rows are made wrong stands in the tables; the scripts run in this process, which saves the
seconds of importing torch for each of them.
"""

import json
import math
import os
import pickle
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from PIL import Image

from swn_d2 import SWNTrainer
from swn_d2.data import make_digit_scenes, register_coco
from swn_d2.engine import SafeCheckpointer, start
from swn_d2.errors import UserError
from tests.pickles import Call
from tests.tiny import tiny_config, tiny_model

ROOT = Path(__file__).parents[1]
#: What a training leaves, and what may be added to when something is tried in its folder.
LOG = "log.txt"


def config(**kwargs):
    return tiny_config(
        *("DATASETS.TRAIN", ("mine_train",), "DATASETS.TEST", ("mine_val",)),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 10, "MODEL.RETINANET.NUM_CLASSES", 10),
        *("INPUT.MASK_FORMAT", "bitmask", "SOLVER.IMS_PER_BATCH", 2),
        *("DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", "run"),
        **kwargs,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with data, two configs and a run."""
    folder = tmp_path_factory.mktemp("made")
    make_digit_scenes(folder / "digits", num_train=4, num_val=2, image_size=(96, 64))
    for detector in ("faster_rcnn", "retinanet"):
        (folder / f"{detector}.yaml").write_text(config(detector=detector).dump())
    cfg = config()
    run = folder / "run"
    (run / "inference").mkdir(parents=True)
    SafeCheckpointer(tiny_model(cfg), str(run)).save("model_final", iteration=1)
    (run / "config.yaml").write_text(cfg.dump())
    (run / "metrics.json").write_text('{"iteration": 0, "total_loss": 1.0}\n')
    (run / "inference" / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch, clean_catalog):
    """A copy of it, as the current folder."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    # Detectron2's loggers would keep writing to this folder, and hide what other tests look for.
    monkeypatch.setattr(start, "setup_logger", lambda *args, **kwargs: None)
    return tmp_path / "here"


@pytest.fixture
def fails(here, monkeypatch, capfd):
    """Runs a script, and gives the sentence that it ends with."""

    def run(script, *arguments):
        before = files_of_the_run()
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.syspath_prepend(ROOT / "tools")  # which import one another
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        line = exit_info.value.code  # a text, which Python prints, and exits with 1
        assert isinstance(line, str) and line.startswith("error: ") and "\n" not in line, line
        printed = "".join(capfd.readouterr())
        assert "error: " not in printed and "Traceback" not in printed
        now = files_of_the_run()
        assert {file: now.get(file) for file in before} == before
        return line

    return run


def files_of_the_run():
    return {
        file: file.read_bytes()
        for file in Path("run").rglob("*")
        if file.is_file() and file.name != LOG
    }


def train(*arguments, config_file="faster_rcnn.yaml"):
    """The arguments of a training that is resumed."""
    names = (("mine_train", "train"), ("mine_val", "val"))
    data = [
        text
        for name, part in names
        for text in (
            *("--register-coco", name),
            *(f"digits/annotations/instances_{part}.json", f"digits/{part}"),
        )
    ]
    return ["train_net.py", "--config-file", config_file, *data, *arguments]


def says(line, words):
    for word in words.split(" & "):
        assert word in line, line


# Config files: content -> words of the sentence. "mine.yaml" is the file.

CONFIG_FILES = {
    "_BASE_: mine.yaml": "mine.yaml includes itself",
    "_BASE_: other/../mine.yaml": "mine.yaml includes itself",
    "_BASE_: 3": "_BASE_ in mine.yaml is 3 & path of a config",
    "_BASE_: [faster_rcnn.yaml, 3]": "_BASE_ in mine.yaml is 3",
    "_BASE_: nowhere.yaml": "cannot read nowhere.yaml & _BASE_ of mine.yaml",
    "_BASE_: https://nowhere.invalid/x.yaml": "cannot read https & _BASE_ of mine.yaml",
    "": "mine.yaml is empty",
    "- 1": "mine.yaml holds a list",
    "text": "mine.yaml holds a str",
    "SOLVER: {BASE_LR: 0.1}\nSOLVER: {GAMMA: 0.1}": "'SOLVER' stands there again in line 2",
    "SOLVER: [1]": "SOLVER in mine.yaml is a section & [1] stands there",
    "SOLVER:": "SOLVER in mine.yaml is a section & nothing stands there",
    "MODEL: {RPN: 3}": "MODEL.RPN in mine.yaml is a section & 3 stands there",
    "SOLVER: {BASE_LR: {X: 1}}": "SOLVER.BASE_LR in mine.yaml is a key with a value",
    "1: 2": "1 in mine.yaml is no config key",
    "[" * 5000: "mine.yaml is not a plain YAML file",
    "SOLVER: {BASE_LR: fast}": "SOLVER.BASE_LR is fast & must be a number & mine.yaml",
    "MODEL: !!python/name:os.system {}": "mine.yaml is not a plain YAML file",
    "_BASE_: faster_rcnn.yaml\nSOLVER: {BASE_LR: null}": "SOLVER.BASE_LR has no value",
    b"\xff\xd8\xff\xe0\0\x10JFIF": "mine.yaml is not a text file",
    b"PK\x03\x04\xff\xff": "mine.yaml is not a text file",
    "SOLVER: {}".encode("utf-16"): "mine.yaml is not a text file, or not in UTF-8",
}


@pytest.mark.parametrize("content", CONFIG_FILES, ids=lambda content: str(content)[:40])
def test_config_files(fails, content):
    Path("mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    says(fails(*train("--resume", config_file="mine.yaml")), CONFIG_FILES[content])


# The command line: arguments -> words.

ARGUMENTS = {
    "SOLVER.BASE_LR=0.1": "SOLVER.BASE_LR=0.1: give KEY VALUE with a space",
    "SOLVER.BASE_LR": "no pairs of KEY VALUE",
    "SOLVER.BASE_LR 0.1 --resume": "--resume stands behind & : --resume ... SOLVER.BASE_LR 0.1",
    "SOLVER.BASE_LR.X 1": "no config key SOLVER.BASE_LR.X & mean SOLVER.BASE_LR",
    "SOLVER 1": "SOLVER is 1 & a section",
    "--num-machines 2 OUTPUT_DIR new": "say where the machines meet: --dist-url tcp://HOST:PORT",
    "--num-machines 2 --machine-rank 2": "--machine-rank is 2 & less than --num-machines",
    "--machine-rank -1": "--machine-rank is -1",
    "--register-coco x https://nowhere.invalid/x.json digits": "is a URL",
    "--register-coco x digits digits": "no annotation file digits",
    "DATASETS.TRAIN (7,)": "DATASETS has 7",
    "DATASETS.TEST ('',)": "DATASETS has ''",
    "DATASETS.TRAIN mine_trian": "no data set named mine_trian & mean mine_train",
    "DATASETS.TRAIN 7": "DATASETS.TRAIN is 7 & a tuple & ('a',) for one",
    "DATASETS.TEST digit_scenes_val": "TEST has digit_scenes_val & DATASETS.TEST mine_val,",
    "--register-voc x digits": "--register-voc x digits: give a name, a folder and a split",
    "--register-voc x digits train SEED 1": "no file digits/ImageSets/Main/train.txt",
    "--import nowhere.py": "--import nowhere.py: there is no such Python file",
    "--import faster_rcnn.yaml": "--import faster_rcnn.yaml: there is no such Python file",
    "MODEL.SAMPLE_WEIGHTER.NAME Mine": "is 'Mine' & with --import FILE.py",
    "MODEL.SAMPLE_WEIGHTER.MINE.POWER 2.0": "no config key & --import FILE.py",
    "OUTPUT_DIR https://nowhere.invalid/x": "is a URL",
    "MODEL.DEVICE gpu": "MODEL.DEVICE is 'gpu' & cuda & cpu",
    "MODEL.DEVICE cuda:x": "MODEL.DEVICE is 'cuda:x'",
    "MODEL.RESNETS.DEPTH 51": "MODEL.RESNETS.DEPTH is 51 & 50, 101",
    "MODEL.RESNETS.NORM BatchNorm": "MODEL.RESNETS.NORM is 'BatchNorm' & FrozenBN",
    "MODEL.FPN.NORM bn": "MODEL.FPN.NORM is 'bn'",
    "SOLVER.BASE_LR -0.1": "SOLVER.BASE_LR is -0.1 & at least 0",
    "SOLVER.BASE_LR float('nan')": "SOLVER.BASE_LR is float('nan') & a number",
    "SOLVER.BASE_LR 1e999": "SOLVER.BASE_LR is inf & finite",
    "SOLVER.MOMENTUM -1.0": "SOLVER.MOMENTUM is -1.0",
    "SOLVER.GAMMA -1.0": "SOLVER.GAMMA is -1.0",
    "SOLVER.WEIGHT_DECAY -1.0": "SOLVER.WEIGHT_DECAY is -1.0",
    "SOLVER.LR_SCHEDULER_NAME Cosine": "SOLVER.LR_SCHEDULER_NAME has 'Cosine' & WarmupCosineLR",
    "SOLVER.WARMUP_METHOD fast": "SOLVER.WARMUP_METHOD has 'fast' & linear",
    "SOLVER.WARMUP_ITERS -1": "SOLVER.WARMUP_ITERS is -1",
    "SOLVER.WARMUP_FACTOR 2.0": "SOLVER.WARMUP_FACTOR is 2.0",
    "SOLVER.STEPS (9,3)": "SOLVER.STEPS is (9, 3) & rise",
    "SOLVER.STEPS ('a',)": "SOLVER.STEPS is ('a',) & rise",
    "SOLVER.CHECKPOINT_PERIOD 0": "SOLVER.CHECKPOINT_PERIOD is 0 & at least 1",
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE max": "CLIP_TYPE has 'max' & norm",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE -1.0": "CLIP_VALUE is -1.0 & greater than 0",
    "DATALOADER.SAMPLER_TRAIN Random": "SAMPLER_TRAIN has 'Random' & TrainingSampler",
    "DATALOADER.NUM_WORKERS -1": "DATALOADER.NUM_WORKERS is -1",
    "INPUT.MIN_SIZE_TRAIN ()": "INPUT.MIN_SIZE_TRAIN is () & pixels",
    "INPUT.FORMAT RGBA": "INPUT.FORMAT has 'RGBA'",
    "MODEL.PIXEL_STD [0.0,1.0,1.0]": "MODEL.PIXEL_STD is [0.0, 1.0, 1.0]",
    "MODEL.ROI_HEADS.NUM_CLASSES 0": "MODEL.ROI_HEADS.NUM_CLASSES is 0",
    "MODEL.RPN.BBOX_REG_LOSS_TYPE l1": "BBOX_REG_LOSS_TYPE has 'l1'",
    "INPUT.CROP.TYPE x": "INPUT.CROP.TYPE has 'x' & absolute",
    "INPUT.CROP.ENABLED True INPUT.CROP.SIZE [2.0,2.0]": "INPUT.CROP.SIZE is [2.0, 2.0] & up to 1",
    "SEED 99999999999": "SEED is 99999999999",
    "TEST.EXPECTED_RESULTS [[1]]": "TEST.EXPECTED_RESULTS is [[1]]",
    "MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS [0,0,0,0,0,0,0,0,0,0]": "CLASS_WEIGHTS are all 0",
    "MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS [1]": "1 weights & ROI_HEADS.NUM_CLASSES is 10",
    "OUTPUT_DIR new MODEL.WEIGHTS run": "no file run (MODEL.WEIGHTS).",
    "OUTPUT_DIR new MODEL.WEIGHTS pretrained/resnet18.pth MODEL.TIMM.NAME resnet18": (
        "get_backbone.py resnet18"
    ),
    "SOLVER.IMS_PER_BATCH 4 SOLVER.REFERENCE_WORLD_SIZE 3": "divided by SOLVER.REFERENCE_WORLD",
    "MODEL.KEYPOINT_ON True MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS 3": "SIGMAS is [] & 3 numbers",
    "OUTPUT_DIR ''": "OUTPUT_DIR '' is empty",
    "OUTPUT_DIR ~/run": "OUTPUT_DIR '~/run' begins with ~",
    f"OUTPUT_DIR {'x' * 300}": "cannot make OUTPUT_DIR xxx & too long",
    "MODEL.ANCHOR_GENERATOR.SIZES [[]]": "SIZES is [[]] & lists of numbers above 0",
    "MODEL.ANCHOR_GENERATOR.SIZES [[-16],[32]]": "SIZES is [[-16], [32]] & above 0",
    "MODEL.ANCHOR_GENERATOR.SIZES [0,32]": "SIZES is [0, 32] & above 0",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS [[0]]": "ASPECT_RATIOS is [[0]] & above 0",
    "MODEL.RPN.BBOX_REG_WEIGHTS (1.0,1.0)": "(1.0, 1.0) & four numbers above 0",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS (0.0,1.0,1.0,1.0)": "four numbers above 0",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS [2.0]": "[2.0] & numbers from 0 to 1",
    "MODEL.RPN.IOU_THRESHOLDS []": "[] & numbers from 0 to 1",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST 2.0": "SCORE_THRESH_TEST is 2.0 & from 0 to 1",
    "MODEL.RETINANET.PRIOR_PROB 1.0": "PRIOR_PROB is 1.0 & below 1",
    "MODEL.RPN.LOSS_WEIGHT -1.0": "MODEL.RPN.LOSS_WEIGHT is -1.0",
    "MODEL.ROI_BOX_HEAD.FC_DIM 0": "FC_DIM is 0 & at least 1",
    "MODEL.ROI_BOX_HEAD.NUM_CONV -1": "NUM_CONV is -1 & at least 0",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION -1": "POOLER_RESOLUTION is -1 & at least 1",
    "MODEL.FPN.OUT_CHANNELS 0": "OUT_CHANNELS is 0 & at least 1",
    "SOLVER.STEPS (1.5,)": "SOLVER.STEPS is (1.5,) & whole numbers",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING range INPUT.MIN_SIZE_TRAIN (80,60)": "(80, 60) & that rise",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING range": "INPUT.MIN_SIZE_TRAIN is (800,) & two numbers",
    "INPUT.CROP.ENABLED True INPUT.CROP.SIZE [0.5]": "INPUT.CROP.SIZE is [0.5] & two shares",
    "INPUT.CROP.ENABLED True INPUT.CROP.SIZE ['a',1]": "INPUT.CROP.SIZE is ['a', 1]",
    "INPUT.CROP.ENABLED True INPUT.CROP.TYPE absolute": "[0.9, 0.9] & whole numbers of pixels",
    "TEST.AUG.ENABLED True": "TEST.AUG.ENABLED is True & without test-time augmentation",
    # What no check knows: the phase and Python's words.
    "--resume MODEL.RPN.IN_FEATURES ['p9']": "building the model failed: & p9 & --debug",
    "--resume MODEL.ROI_BOX_HEAD.POOLER_TYPE x": "building the model failed: & --debug",
    "--resume MODEL.RPN.IOU_THRESHOLDS [0.7,0.3]": "building the model failed: & matcher.py, line",
    "OUTPUT_DIR new MODEL.META_ARCHITECTURE SemanticSegmentor": "the first iteration failed:",
    "--resume MODEL.PIXEL_MEAN [1.0]": "building the model failed: & different shapes",
    "--resume MODEL.RESNETS.WIDTH_PER_GROUP 8": "does not fit this model",
}


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments(fails, arguments):
    resume = [] if "--" in arguments else ["--resume"]
    says(fails(*train(*resume, *arguments.split())), ARGUMENTS[arguments])


def test_a_retinanet_has_no_masks(fails):
    line = fails(*train("--resume", "MODEL.MASK_ON", "True", config_file="retinanet.yaml"))
    says(line, "MODEL.MASK_ON is True & SWNRetinaNet has no masks")


# Annotations: what is done to the file's content -> words.


def of_all(**values):
    """Every annotation gets these; a function is given the annotation."""

    def spoil(content):
        for annotation in content["annotations"]:
            for key, value in values.items():
                annotation[key] = value(annotation) if callable(value) else value

    return spoil


def as_shares(annotation):
    x, y, width, height = annotation["bbox"]
    return [x / 96, y / 64, width / 96, height / 64]


def as_corners(annotation):
    x, y, width, height = annotation["bbox"]
    return [x, y, x + width, y + height]


def without_objects(content):
    content["annotations"] = []


def numbers_for_names(content):
    for category in content["categories"]:
        category["name"] = category["id"]


def hashes_for_ids(content):
    """Some of the pictures have ids that need all of 64 bits."""
    ids = {
        image["id"]: image["id"] + (2**64 - 999 if i % 2 else 0)
        for i, image in enumerate(content["images"])
    }
    for image in content["images"]:
        image["id"] = ids[image["id"]]
    for annotation in content["annotations"]:
        annotation["image_id"] = ids[annotation["image_id"]]


def another_class(content):
    content["categories"].append({"id": 99, "name": "other"})


TRAINING_SETS = [
    (of_all(bbox=as_shares), "look like shares of the picture"),
    (of_all(bbox=as_corners), "fit into it as the corners x1, y1, x2, y2"),
    (of_all(bbox=[1, 1, 0, 5]), "no annotation to train on & a box without area"),
    (of_all(bbox=[1, 1, "2", 5]), "a bbox that is not four finite numbers"),
    (of_all(iscrowd="0"), '"iscrowd" that is not 0 or 1'),
    (of_all(iscrowd=None), '"iscrowd" that is not 0 or 1'),
    (of_all(iscrowd=math.nan), '"iscrowd" that is not 0 or 1'),
    (of_all(iscrowd=1), "no annotation to train on"),
    (of_all(ignore=1), '"ignore" that is not 0'),
    (of_all(keypoints="1,2,2"), '"keypoints" that is not a list of numbers'),
    (of_all(keypoints=["1", 2, 2]), '"keypoints" that is not a list of numbers'),
    (of_all(sample_weight=0), "a sample_weight of 0 throughout"),
    (of_all(sample_weight=1e38), "sample_weight that is not a number from 0 to 1000000"),
    (of_all(label_weight=0), "a label_weight of 0 throughout & no class is learned"),
    (of_all(box_weight=0), "a box_weight of 0 throughout & no box is learned"),
    (of_all(box_weight="1"), "a box_weight that is not a number from 0 to 1000000"),
    (without_objects, "no annotation to train on"),
    (numbers_for_names, 'a "name" that is not a text'),
    (another_class, "mine_train and mine_val differ in their categories & 11 & 10"),
]
TEST_SETS = [
    (of_all(id=lambda annotation: f"a{annotation['id']}"), "an id that & take for a whole number"),
    (of_all(id=lambda annotation: annotation["id"] + 0.5), "an id that & take for a whole number"),
    (of_all(id=lambda annotation: -annotation["id"]), "an id that & take for a whole number"),
    (hashes_for_ids, '"images" are not kept by COCO & 2^63'),
    (of_all(area="9"), '"area" that is not a finite number'),
    (of_all(area=None), '"area" that is not a finite number'),
    (of_all(area=math.nan), '"area" that is not a finite number'),
    (of_all(area=0), '"area" of 0 throughout'),
    (of_all(iscrowd="0"), '"iscrowd" that is not 0 or 1'),
    (of_all(iscrowd=1), "no object to find"),
    (of_all(bbox=as_corners), "fit into it as the corners"),
    (of_all(bbox=[1, 1, 0, 5]), "no object to find"),
    (without_objects, "no object to find"),
]


@pytest.mark.parametrize(
    "part, spoil, words",
    [("train", *row) for row in TRAINING_SETS] + [("val", *row) for row in TEST_SETS],
)
def test_annotations(fails, part, spoil, words):
    file = Path(f"digits/annotations/instances_{part}.json")
    content = json.loads(file.read_text())
    spoil(content)
    file.write_text(json.dumps(content))
    line = fails(*train("--resume"))
    says(line, words)
    assert file.name in line or "mine_train" in line


def test_weights_that_the_detector_does_not_look_at(fails):
    file = Path("digits/annotations/instances_train.json")
    content = json.loads(file.read_text())
    of_all(sample_weight=2)(content)
    file.write_text(json.dumps(content))
    stock = ["MODEL.ROI_HEADS.NAME", "StandardROIHeads"]
    says(fails(*train("--resume", *stock)), "has no effect on & StandardROIHeads & SWN")


# Files: what is done to one -> words. Of "digits" the first training picture and its annotations.

ANNOTATIONS = Path("digits/annotations/instances_train.json")
PICTURE = Path("digits/train/000001.jpg")


def nothing():
    pass


def recode(encoding):
    return lambda: ANNOTATIONS.write_text(ANNOTATIONS.read_text(), encoding=encoding)


def picture(mode, dtype, **kwargs):
    def write():
        pixels = np.zeros((64, 96), dtype)
        Image.fromarray(pixels, **kwargs).save(PICTURE, format="TIFF")

    return write


def huge_picture():
    Image.new("1", (20_000, 10_000)).save(PICTURE, format="PNG")


def note(text):
    return lambda: Path("run/last_checkpoint").write_text(text)


def folder_in_place_of(name):
    def make():
        Path(name).unlink(missing_ok=True)
        Path(name).mkdir()

    return make


def file_in_place_of(name):
    def make():
        shutil.rmtree(name, ignore_errors=True)
        Path(name).write_text("")

    return make


def pipe(name):
    """Which nobody writes to: whoever reads it waits for ever."""

    def make():
        Path(name).unlink(missing_ok=True)
        os.mkfifo(name)

    return make


def device(name):
    """Which never ends."""

    def make():
        Path(name).unlink()
        Path(name).symlink_to("/dev/zero")

    return make


def diverged():
    end = torch.load("run/model_final.pth", weights_only=True)
    next(iter(end["model"].values())).fill_(math.nan)
    torch.save(end, "run/model_final.pth")


FILES = {
    "a detector alone": (nothing, "model_final.pth holds a detector and no state of its trainer"),
    "diverged": (diverged, "model_final.pth has NaN or infinity & an earlier checkpoint"),
    "config: pipe": (pipe("faster_rcnn.yaml"), "faster_rcnn.yaml: it is a pipe or a device"),
    "config: device": (device("faster_rcnn.yaml"), "faster_rcnn.yaml: it is a pipe or a device"),
    "annotations: pipe": (pipe(ANNOTATIONS), "no annotation file & instances_train.json"),
    "picture: pipe": (pipe(PICTURE), "000001.jpg: it is a pipe or a device"),
    "registered.json: pipe": (pipe("run/registered.json"), "registered.json: it is a pipe or a"),
    "note: pipe": (pipe("run/last_checkpoint"), "last_checkpoint may not be written to"),
    "log: pipe": (pipe("run/log.txt"), "log.txt may not be written to"),
    "samples: pipe": (pipe("run/samples.jsonl"), "samples.jsonl may not be written to"),
    "environment": (folder_in_place_of("run/environment.json"), "environment.json may not be"),
    "inference": (file_in_place_of("run/inference"), "run/inference is no folder"),
    "snapshots": (file_in_place_of("run/weighter"), "run/weighter is no folder"),
    "long note": (note("x" * 5000), "which is not there & model_final.pth"),
    "BOM": (recode("utf-8-sig"), "instances_train.json begins with a byte-order mark"),
    "UTF-16": (recode("utf-16"), "instances_train.json is not a text file, or not in UTF-8"),
    "nested": (lambda: ANNOTATIONS.write_text("[" * 200_000), "instances_train.json is nested"),
    "cut": (lambda: ANNOTATIONS.write_text("{"), "instances_train.json is not valid JSON"),
    "16 bits": (picture("I;16", np.uint16), "000001.jpg has 16 bits or more"),
    "floats": (picture("F", np.float32), "000001.jpg has decimal numbers"),
    "200 megapixels": (huge_picture, "Cannot read digits/train/000001.jpg & 200000000 pixels"),
    "no picture": (lambda: PICTURE.write_bytes(b"GIF89a"), "Cannot read digits/train/000001.jpg"),
    "no folder": (lambda: shutil.rmtree("digits/train"), "no image folder digits/train"),
    "empty note": (note("\n"), "run/last_checkpoint is empty & model_final.pth"),
    "no checkpoint": (note("model_9.pth"), "names 'model_9.pth', which is not there"),
    "leads out": (note("../run/model_final.pth"), "leads out of the folder"),
    "absolute": (note(str(ROOT / "README.md")), "leads out of the folder"),
    "damaged checkpoint": (
        lambda: os.truncate("run/model_final.pth", 1000),
        "model_final.pth is not a PyTorch checkpoint",
    ),
    "log": (folder_in_place_of("run/log.txt"), "log.txt may not be written to"),
    "metrics": (folder_in_place_of("run/metrics.json"), "metrics.json may not be written to"),
}


@pytest.mark.parametrize("case", FILES)
def test_files(fails, case):
    spoil, words = FILES[case]
    spoil()
    says(fails(*train("--resume")), words)


class Unreadable:
    """Stands for what may not be read, which root always may."""

    def __init__(self, name):
        self.name = name

    def __call__(self, path, *args, **kwargs):
        if Path(path).name == self.name:
            raise PermissionError(13, "Permission denied", str(path))
        return self.real(path, *args, **kwargs)


@pytest.mark.parametrize(
    "function, name", [("builtins.open", "instances_train.json"), ("os.listdir", "train")]
)
def test_what_may_not_be_read(fails, monkeypatch, function, name):
    guard = Unreadable(name)
    module, _, attribute = function.rpartition(".")
    guard.real = getattr(sys.modules[module], attribute)
    monkeypatch.setattr(function, guard)
    says(fails(*train("--resume")), f"ermission denied & {name}")


@pytest.mark.parametrize("name", ["weights.pkl", "weights.pth"])
def test_weights_that_run_code(fails, name):
    data = {"model": Call(os.mkdir, "made"), "__author__": "someone"}
    if name.endswith(".pkl"):
        Path(name).write_bytes(pickle.dumps(data))
    else:
        torch.save(data, name)
    says(fails(*train("--eval-only", "MODEL.WEIGHTS", name)), name)
    says(fails("tools/visualize.py", "run", PICTURE, "--weights", name), name)
    assert not Path("made").exists()


WEIGHTS = {
    "list": ({"model": [1]}, "cannot load the checkpoint a.pth & a backbone's weights"),
    "text": ({"model": {"x": "y"}}, "cannot load the checkpoint a.pth & a backbone's weights"),
    "number for a name": ({"model": {1: torch.zeros(1)}}, "cannot load the checkpoint a.pth"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights(fails, case):
    data, words = WEIGHTS[case]
    torch.save(data, "a.pth")
    says(fails(*train("--eval-only", "MODEL.WEIGHTS", "a.pth")), words)


def test_weights_at_a_url(fails):
    url = "http://127.0.0.1:9/x.pth"  # where nobody answers
    says(fails(*train("--eval-only", "MODEL.WEIGHTS", url)), f"{url} & download it & its path")


class Failing(DatasetEvaluator):
    def reset(self):
        raise KeyError("mine")


def test_an_evaluation_that_fails(here):
    register_coco("mine_val", "digits/annotations/instances_val.json", "digits/val")
    cfg = config()
    with pytest.raises(UserError, match="the evaluation failed: KeyError: 'mine'"):
        SWNTrainer.test(cfg, tiny_model(cfg), [Failing()])


# Tools: how it is made wrong, the command -> words.


def save(name, data):
    return lambda: torch.save(data, name)


DIGITS = f"--register-coco digits {ANNOTATIONS} digits/train"
OTHERS = "--register-coco others digits/annotations/instances_val.json digits/val"
THIRD = f"--register-coco third {ANNOTATIONS} digits/train"


def unfinished():
    Path("run/registered.json").write_text("{}")


def with_code():
    content = {"format": "swn_d2 registered", "version": 1}
    content |= {"imports": ["my_weighter.py"], "data_sets": {}}
    Path("run/registered.json").write_text(json.dumps(content))


TOOLS = [
    (save("a.pth", {"model": {}}), "strip_checkpoint.py a.pth b.pth", "a.pth & has no tensor"),
    (save("a.pth", {"model": {"x": 1}}), "strip_checkpoint.py a.pth b.pth", "has no tensor"),
    (save("a.pth", {}), "convert_backbone.py a.pth b.pth", "a.pth & no tensor"),
    (nothing, "convert_backbone.py nowhere.pth b.pth", "cannot read nowhere.pth"),
    (recode("utf-8-sig"), f"split_dataset.py {ANNOTATIONS} a.json b.json", "byte-order mark"),
    (recode("utf-16"), f"add_noise.py {ANNOTATIONS} a.json --wrong-classes 0.5", "not in UTF-8"),
    (nothing, f"add_noise.py {PICTURE} a.json --wrong-classes 0.5", "not a text file"),
    (nothing, "visualize.py run https://nowhere.invalid/x.jpg", "no picture for https"),
    (nothing, f"visualize.py run {PICTURE} --opts MODEL.DEVICE gpu", "MODEL.DEVICE is 'gpu'"),
    (nothing, f"visualize.py run {PICTURE} --opts MODEL.DEVICE=cpu", "give KEY VALUE"),
    (note("model_9.pth"), f"visualize.py run {PICTURE}", "last_checkpoint names 'model_9.pth'"),
    (nothing, f"visualize.py {PICTURE} {PICTURE}", "000001.jpg is not a text file"),
    (nothing, "report.py nowhere", "no folder nowhere"),
    (file_in_place_of("x.html"), "report.py run -o x.html/y.html", "cannot write x.html/y.html"),
    (nothing, "report.py run -o run/config.yaml", "must end with .html & run/config.yaml"),
    (
        folder_in_place_of("run/audit.csv"),
        f"audit.py run --overwrite --register-coco mine_train {ANNOTATIONS} digits/train",
        "cannot write run/audit.csv: it is a folder",
    ),
    (
        lambda: shutil.copytree("digits/train", "mine"),
        f"visualize.py run {PICTURE} --weights run/model_final.pth --output mine",
        "mine/000001.jpg exists already",
    ),
    (pipe("x.pth"), "strip_checkpoint.py x.pth y.pth", "x.pth: it is a pipe or a device"),
    (pipe("x.pth"), "convert_backbone.py x.pth y.pth", "x.pth: it is a pipe or a device"),
    (nothing, "get_backbone.py mobilenetv2_100 --output digits", "digits is a folder"),
    (pipe("x.yaml"), "run_experiments.py x.yaml", "x.yaml: it is a pipe or a device"),
    (pipe("x.json"), "add_noise.py x.json y.json --wrong-classes 0.5", "no annotation file x.json"),
    (nothing, "run_experiments.py faster_rcnn.yaml", "faster_rcnn.yaml"),
    (nothing, f"run_experiments.py {PICTURE}", "000001.jpg is not a text file"),
    (nothing, "make_voc_subset.py digits out", "digits"),
    (nothing, "measure_noise.py nowhere", "no folder nowhere"),
    (nothing, "new_project.py -o x.yaml", "no data & --split & --register-coco"),
    (nothing, "new_project.py -o x.yaml --split x nowhere digits", "no annotation file nowhere"),
    (nothing, "new_project.py -o x.yaml --split x digits digits", "no XML file & digits"),
    (nothing, f"new_project.py -o x.yaml {DIGITS}", "digits alone & --split"),
    (nothing, f"new_project.py -o x.yaml {DIGITS} {OTHERS} {THIRD}", "3 data sets & third"),
    (recode("utf-16"), f"new_project.py -o x.yaml {DIGITS} {OTHERS}", "not in UTF-8"),
    (nothing, f"new_project.py -o digits {DIGITS} {OTHERS}", "digits exists already"),
    (nothing, "measure_noise.py run --import nowhere.py", "no such Python file"),
    (nothing, "visualize.py run digits --import nowhere.py", "no such Python file"),
    (nothing, "measure_overhead.py --baseline a --swn b --import no.py", "no such Python file"),
    (nothing, "report.py run --register-voc x digits train", "no file digits/ImageSets & --split"),
    (nothing, "figures.py run --register-coco x digits digits", "file digits & --split"),
    (nothing, "run_experiments.py x.yaml --import nowhere.py", "no such Python file"),
    (unfinished, f"visualize.py run {PICTURE}", "registered.json is not what a run notes"),
    (unfinished, "audit.py run", "registered.json is not what a run notes"),
    (with_code, f"visualize.py run {PICTURE}", "give --import my_weighter.py again"),
    (with_code, "audit.py run", "give --import my_weighter.py again"),
]


@pytest.mark.parametrize("spoil, arguments, words", TOOLS, ids=[row[1][:50] for row in TOOLS])
def test_tools(fails, spoil, arguments, words):
    spoil()
    before = set(Path().rglob("*"))
    script, *arguments = arguments.split()
    says(fails(f"tools/{script}", *arguments), words)
    assert set(Path().rglob("*")) == before


# A picture that can't be shown is told, and the others are drawn.


def test_a_picture_that_would_turn_white(here, capfd, monkeypatch):
    picture("I;16", np.uint16)()
    monkeypatch.setattr(sys, "argv", ["visualize.py", "run", str(PICTURE)])
    with pytest.raises(SystemExit, match="1 of 1 pictures could not be looked at"):
        runpy.run_path(str(ROOT / "tools" / "visualize.py"), run_name="__main__")
    assert "16 bits or more" in capfd.readouterr().err


BROKEN_METRICS = """
{"iteration": 1, "total_loss": "text", "bbox/AP": null}
{"iteration": Infinity, "total_loss": 1}
{"iteration": "2", "total_loss": 1}
{"iteration": 3, "total_loss": [1], "time": {}}
{"iteration": null}
[1]
"""


def test_broken_values_in_what_the_report_reads(here, monkeypatch):
    with open("run/metrics.json", "a") as file:
        file.write("[" * 100_000 + BROKEN_METRICS)
        file.write('{"iteration": 4, "total_loss": 1' + "0" * 400 + "}\n")
    Path("run/environment.json").write_text('{"versions": [1]}')
    monkeypatch.setattr(sys, "argv", ["report.py", "run"])
    runpy.run_path(str(ROOT / "tools" / "report.py"), run_name="__main__")
    page = Path("run/report.html").read_text()
    assert "environment.json is not the note" in page


def test_the_traceback_is_in_the_log_and_on_debug(fails, here, monkeypatch, capfd):
    opts = ["MODEL.RPN.IN_FEATURES", "['p9']"]
    fails(*train("--resume", *opts))
    log = Path("run", LOG).read_text()
    assert "Traceback" in log and "KeyError: 'p9'" in log and "building the model failed" in log
    monkeypatch.setenv("SWN_D2_DEBUG", "")  # so that what --debug sets is undone
    monkeypatch.setattr(sys, "argv", train("--debug", "--resume", *opts))
    with pytest.raises(SystemExit, match="building the model failed"):
        runpy.run_path(str(ROOT / "train_net.py"), run_name="__main__")
    assert "KeyError: 'p9'" in capfd.readouterr().err


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit(3)])
def test_what_is_no_mistake_passes(raised):
    from swn_d2.errors import phase, user_errors_exit

    with pytest.raises(type(raised) if isinstance(raised, SystemExit) else raised):
        with user_errors_exit(), phase("doing something"):
            raise raised
