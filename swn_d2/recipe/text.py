"""The config file: Detectron2's keys with the numbers that were chosen, and why."""

import json
import math
import textwrap

from ..engine.schedule import length_in_words
from .choices import GPU, Choices, Machine
from .facts import Facts

__all__ = ["BACKBONE", "WEIGHTS", "config_text"]

#: timm's name of the backbone, and the file that tools/get_backbone.py makes of its weights.
BACKBONE = "mobilenetv2_100"
WEIGHTS = f"pretrained/{BACKBONE}.pth"


def config_text(
    train: Facts, test: Facts, detector: str, machine: Machine, choices: Choices, output: str
) -> str:
    """
    Args:
        detector: "faster_rcnn", "mask_rcnn" or "retinanet".
        output: the folder of a training.
    """
    is_retinanet = detector == "retinanet"
    model = _retinanet if is_retinanet else _rcnn
    facts = "\n".join(
        f"#   {line}" for line in f"{train.in_words()}\n{test.in_words()}".split("\n")
    )
    mask = _mask_head(machine) if detector == "mask_rcnn" else ""
    kind = "GPU" if machine is GPU else "CPU"
    when = "with each checkpoint" if choices.evaluates else "only at the end, for it is large"
    return f"""\
# A detector for these data, to be trained on a {kind}:
{_wrapped(facts)}
# Every key can be changed here or, as KEY VALUE, at the end of the command. All others have
# Detectron2's defaults.
MODEL:
{model(train, machine, choices)}{mask}\
  # A small backbone that knows ImageNet. The next three keys belong to it, and so do RGB below and
  # the frozen normalisation. python tools/get_backbone.py {BACKBONE} makes the file.
  WEIGHTS: "{WEIGHTS}"
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
  TIMM:
    NAME: "{BACKBONE}"
    NORM: "FrozenBN"
  # The weights of its first layers stay: they see edges and colours, in all pictures alike.
  BACKBONE:
    NAME: "build_timm_{"retinanet_" if is_retinanet else ""}fpn_backbone"
    FREEZE_AT: 2
  FPN:
    IN_FEATURES: {_list(["res3", "res4", "res5"] if is_retinanet else _RES)}
    OUT_CHANNELS: {machine.pyramid}
  # Whether samples are weighted. Uniform: no, the detector learns as it always does; but an
  # annotation's own weights count, as tools/audit.py writes them, and the report has its figures.
  # SWN learns weights: they gain where many classes are wrong, some AP75 where boxes are noisy,
  # and on clean data nothing that could be measured. An audit before the training
  # (docs/audit.md) gains more.
  SAMPLE_WEIGHTER:
    NAME: "Uniform"  # or "SWN"
INPUT:
  FORMAT: "RGB"
  # Pixels of the pictures' shorter side, which has {train.shorter_side:.0f} in the files. Nine of
  # ten objects are then {choices.small_object:.0f} pixels large or more. Time goes with its square.
  MIN_SIZE_TRAIN: {_list(choices.train_sides)}  # one at random: more variety
  MAX_SIZE_TRAIN: {math.ceil(choices.elongation * choices.train_sides[-1])}
  MIN_SIZE_TEST: {choices.side}
  MAX_SIZE_TEST: {math.ceil(choices.elongation * choices.side)}
  # Half of the pictures are mirrored. "none" where left is not right: digits, letters, signs.
  RANDOM_FLIP: "horizontal"
{'  MASK_FORMAT: "bitmask"  # for polygons and run lengths' + chr(10) if mask else ""}\
DATASETS:
  TRAIN: [{_text(train.name)}]
  TEST: [{_text(test.name)}]
DATALOADER:
  NUM_WORKERS: {machine.workers}
SOLVER:
{_schedule(train, machine, choices)}
TEST:
  # AP on the test set, {when}.
  EVAL_PERIOD: {choices.period if choices.evaluates else 0}
OUTPUT_DIR: {_text(output)}
VERSION: 2
"""


_RES = ["res2", "res3", "res4", "res5"]


def _mask_head(machine: Machine) -> str:
    return f"""\
  MASK_ON: True
  ROI_MASK_HEAD:
    NAME: "MaskRCNNConvUpsampleHead"
    NUM_CONV: {4 if machine is GPU else 2}
    CONV_DIM: {machine.pyramid}
    POOLER_RESOLUTION: 14
"""


def _rcnn(train: Facts, machine: Machine, choices: Choices) -> str:
    proposals, of_test = max(300, 4 * choices.regions), max(150, 2 * choices.regions)
    return f"""\
  META_ARCHITECTURE: "GeneralizedRCNN"
  ANCHOR_GENERATOR:
    # Pixels of a scaled picture; each level of the pyramid has anchors of one size.
    SIZES: {_list([[size] for size in choices.anchors])}
    ASPECT_RATIOS: [{_list(choices.ratios)}]  # height through width
  RPN:
    IN_FEATURES: ["p2", "p3", "p4", "p5", "p6"]
    PRE_NMS_TOPK_TRAIN: {2 * proposals}
    POST_NMS_TOPK_TRAIN: {proposals}
    PRE_NMS_TOPK_TEST: {2 * of_test}
    POST_NMS_TOPK_TEST: {of_test}
  ROI_HEADS:
    NAME: "SWNROIHeads"
    IN_FEATURES: {_list([f"p{level}" for level in range(2, 6)])}
    NUM_CLASSES: {len(train.classes)}
    # Regions a picture to learn from, a quarter of them of objects: 8 for each object of a
    # crowded picture, and at least 64.
    BATCH_SIZE_PER_IMAGE: {choices.regions}
  ROI_BOX_HEAD:
    NAME: "FastRCNNConvFCHead"
    NUM_FC: 2
    FC_DIM: {machine.fc}
    POOLER_RESOLUTION: 7
    POOLER_SAMPLING_RATIO: 2
    SMOOTH_L1_BETA: 1.0
"""


def _retinanet(train: Facts, machine: Machine, choices: Choices) -> str:
    sizes = "".join(
        f"\n      - {_list(round(size * 2 ** (i / 3), 1) for i in range(3))}"
        for size in choices.anchors
    )
    return f"""\
  META_ARCHITECTURE: "SWNRetinaNet"
  ANCHOR_GENERATOR:
    # Pixels of a scaled picture; each level of the pyramid has anchors of three sizes.
    SIZES:{sizes}
    ASPECT_RATIOS: [{_list(choices.ratios)}]  # height through width
  RETINANET:
    IN_FEATURES: {_list([f"p{level}" for level in range(3, 8)])}
    NUM_CLASSES: {len(train.classes)}
    NUM_CONVS: {4 if machine is GPU else 2}
    NORM: "GN"  # the head starts from nothing, and the schedule is short
    IOU_THRESHOLDS: [0.4, 0.5]
    IOU_LABELS: [0, -1, 1]
    SMOOTH_L1_LOSS_BETA: 0.11
"""


def _schedule(train: Facts, machine: Machine, choices: Choices) -> str:
    num_pictures = len(train.objects_a_picture)
    length = length_in_words(choices.iterations, machine.batch, num_pictures)
    return f"""\
  # {length}.
  IMS_PER_BATCH: {machine.batch}
  MAX_ITER: {choices.iterations}
  # The learning rate rises to this in {choices.warmup} iterations, and falls to a tenth at each
  # step. It goes with the batch: half of it for half of the pictures.
  BASE_LR: {choices.learning_rate}
  WARMUP_ITERS: {choices.warmup}
  STEPS: {_list(choices.steps)}
  CHECKPOINT_PERIOD: {choices.period}"""


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)  # JSON's escapes of emojis are none of YAML's


def _list(values) -> str:
    return json.dumps(list(values))


def _wrapped(comment: str) -> str:
    return "\n".join(
        textwrap.fill(line, 100, subsequent_indent="#       ", break_on_hyphens=False)
        for line in comment.splitlines()
    )
