"""Every block of code and every command of the README runs, as it stands; what differs, or can't,
stands in the tables here with its reason. A new block or command has to be added to them."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from swn_d2.data import make_digit_scenes
from tests import processes

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = FENCE.findall(TEXT)
#: A command within a sentence.
INLINE = re.compile(r"`((?:\./train_net\.py|python|pip|make|git|torchrun|srun) [^`]+)`")


def commands():
    """All commands, each once, as on one line and without comments."""
    lines = []
    for language, block in BLOCKS:
        if language == "bash":
            lines += block.replace("\\\n", " ").splitlines()
    lines += INLINE.findall(FENCE.sub("", TEXT))
    words = [shlex.split(line, comments=True) for line in lines]
    return list(dict.fromkeys(shlex.join(w) for w in words if w))


def ends_with(sentence):
    """As it stands, up to what this machine lacks, of which it says this."""

    def check(run, words):
        result = run(words)
        assert result.returncode == 1, result.stderr[-2000:]
        assert re.search(rf"^error: .*{sentence}", result.stderr.splitlines()[-1]), result.stderr

    return check


def runs(*more, says=""):
    """As it stands, or with these words more."""

    def check(run, words):
        result = run([*words, *more])
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        assert re.search(says, result.stdout), result.stdout[-4000:]

    return check


def audits(run, words):
    """As it stands. A detector of a few iterations is guessing, which the audit may see."""
    result = run(words)
    page = "output/my_run/audit.html: open it"
    end = result.stderr.splitlines()[-1:]
    guesses = bool(end) and "has not learned enough to judge annotations" in end[0]
    assert page in result.stdout if result.returncode == 0 else guesses, result.stderr[-4000:]


def make_knows(run, words):
    """That make knows the target, and what is to be done; it takes minutes."""
    result = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "python" in result.stdout, result.stderr


def is_left_out(run, words):
    """pip changes the environment that the tests run in; Makefile and CI make one with it."""


#: The training on own data at a size and length that take a moment, without the backbone's weights.
BRIEF = """
    MODEL.WEIGHTS '' INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 SOLVER.IMS_PER_BATCH 2
    SOLVER.MAX_ITER 2 SOLVER.STEPS () SOLVER.WARMUP_ITERS 1 SEED 1 RECORDING.PERIOD 1
    DATALOADER.NUM_WORKERS 0
"""

PLAN = "python tools/new_project.py --split cats cats/annotations.json cats/images -o cats.yaml"
TRAIN = (
    "python train_net.py --config-file cats.yaml "
    "--register-coco cats_train cats_train.json cats/images "
    "--register-coco cats_val cats_val.json cats/images"
)
NO_COCO = ends_with("coco_2017_train: there is no annotation file")
HOW = {
    "make demo": make_knows,  # 7 minutes
    "make test": make_knows,  # this
    "make check-gpu": make_knows,  # 6 minutes
    "pip install --no-build-isolation -e '.[demo,timm]'": is_left_out,
    "./train_net.py --config-file configs/COCO-Detection/faster_rcnn_R_50_FPN_1x_swn.yaml "
    "--num-gpus 8": NO_COCO,  # and 8 GPUs
    # Hours, and minutes: what would be done, with every config read.
    "python tools/run_experiments.py configs/experiments/strategies.yaml --jobs 2": runs(
        "--dry-run", says="Soft-NMS|soft"
    ),
    "python tools/run_experiments.py configs/experiments/quickstart.yaml --jobs 2": runs(
        "--dry-run", says="swn, seed 2: train"
    ),
    "python tools/audit.py output/my_run": audits,
    "python tools/report.py output/baseline output/swn": runs(says="output/report.html"),
    "python tools/visualize.py output/swn 'pictures/*.jpg'": runs(says="pictures/one.jpg: "),
    # Both are run by the fixture below, the training with a smaller size and length.
    PLAN: runs(says="is a config for them"),
    TRAIN: ends_with("output/cats already holds a run"),
    # Up to the weights, which tests/tools/test_get_backbone.py fetches.
    "python tools/audit.py configs/PascalVOC-Detection/faster_rcnn_EfficientNetLite0_FPN.yaml "
    "--before-training --register-coco cats_train cats_train.json cats/images --dataset "
    "cats_train --output output/cats_audit --write cats/cleaned.json --relabel": ends_with(
        "pretrained/tf_efficientnet_lite0.pth is not a PyTorch checkpoint"
    ),
    "./train_net.py --config-file output/cats/config.yaml --eval-only "
    "MODEL.WEIGHTS output/cats/model_final.pth": runs(says=r"\bAP\b"),
    "./train_net.py --config-file output/cats/config.yaml --resume": runs(),
    "python tools/report.py output/cats": runs(says="output/cats/report.html"),
    # With the file there; tests/tools/test_get_backbone.py fetches it.
    "python tools/get_backbone.py mobilenetv2_100": runs(says="Keeping pretrained/mobilenetv2_100"),
    "python tools/get_backbone.py tf_efficientnet_lite0": runs(says="Keeping pretrained/tf_effic"),
    "./train_net.py --config-file configs/PascalVOC-Detection/"
    "faster_rcnn_MobileNetV2_FPN_swn.yaml": ends_with("there is no file datasets/VOC2007"),
    "python examples/torchvision_detection.py": runs("--help"),  # minutes; tests/examples trains
    "python tools/install_detectron2.py": runs("--help"),  # a download of the whole source
    "python tools/make_digit_scenes.py": runs("--train", "4", "--val", "2", "--output", "digits"),
}


@pytest.fixture(scope="module")
def run_in(tmp_path_factory):
    """Runs a command, in a folder that has what the README takes for granted: this repository,
    pictures, and annotations of three classes, in one file and in two; no COCO and no GPU."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("configs", "examples", "tools", "train_net.py"):
        (folder / name).symlink_to(ROOT / name)
    digits = make_digit_scenes(folder / "made", num_train=32, num_val=4, image_size=(96, 64))
    whole = {"images": [], "annotations": []}
    for split in ("train", "val"):
        content = json.loads((digits / "annotations" / f"instances_{split}.json").read_text())
        content["categories"] = content["categories"][:3]
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] <= 3]
        for image in content["images"]:
            name = f"{split}_{image['file_name']}"
            (folder / "cats" / "images").mkdir(parents=True, exist_ok=True)
            shutil.copy(digits / split / image["file_name"], folder / "cats" / "images" / name)
            image["file_name"] = name
        (folder / "cats" / f"{split}.json").write_text(json.dumps(content))
        for annotation in content["annotations"]:
            whole["annotations"].append({**annotation, "id": len(whole["annotations"]) + 1})
            whole["annotations"][-1]["image_id"] = f"{split} {annotation['image_id']}"
        whole["images"] += [{**i, "id": f"{split} {i['id']}"} for i in content["images"]]
        whole["categories"] = content["categories"]
    (folder / "cats" / "annotations.json").write_text(json.dumps(whole))
    (folder / "pictures").mkdir()
    shutil.copy(digits / "val" / "000001.jpg", folder / "pictures" / "one.jpg")
    (folder / "pretrained").mkdir()
    for name in ("mobilenetv2_100", "tf_efficientnet_lite0"):
        (folder / "pretrained" / f"{name}.pth").touch()

    def run(words):
        words = words[1:] if words[0] == "python" else words
        arguments = [folder / words[0], *words[1:]]
        return processes.run(*arguments, cwd=folder, environment={"CUDA_VISIBLE_DEVICES": ""})

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def run(run_in):
    """The same after the README's training on data of one's own."""
    runs()(run_in, shlex.split(PLAN))
    runs(says=r"\bAP\b")(run_in, [*shlex.split(TRAIN), *shlex.split(BRIEF)])
    output = run_in.folder / "output"
    for name in ("baseline", "swn", "my_run"):
        shutil.copytree(output / "cats", output / name)
    return run_in


def test_every_command_is_listed():
    assert set(commands()) == {shlex.join(shlex.split(command)) for command in HOW}


def test_every_block_is_one_that_is_walked():
    assert {language for language, _ in BLOCKS} == {"bash", "python"}


@pytest.mark.parametrize("command", HOW)
def test_commands(run, command):
    HOW[command](run, shlex.split(command))


@pytest.mark.parametrize("block", [block for language, block in BLOCKS if language == "python"])
def test_code(run_in, block):
    (run_in.folder / "script.py").write_text(block)

    if "OUTPUT_DIR" not in block:  # no training
        runs()(run_in, ["script.py"])
        return
    runs(says=r"\bAP\b")(run_in, ["script.py"])
    output = re.search(r'OUTPUT_DIR = "(.*)"', block)[1]
    assert (run_in.folder / output / "model_final.pth").exists()
    assert (run_in.folder / output / "config.yaml").exists()
    again = run_in(["script.py"])
    assert again.returncode == 1 and "already holds a run" in again.stderr.splitlines()[-1]
