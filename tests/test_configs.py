"""Every config in configs/, and the reference of config keys."""

import importlib
import re
import sys
from functools import cache
from pathlib import Path

import detectron2
import pytest
import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import RetinaNet, build_model
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from torchvision.models.resnet import Bottleneck, ResNet

from swn_d2 import UserError, add_swn_config, load_config
from swn_d2.modeling import SWNCascadeROIHeads, SWNRetinaNet, SWNROIHeads, TimmBackbone
from swn_d2.weighting import SAMPLE_WEIGHTER_REGISTRY, build_sample_weighter

ROOT = Path(__file__).parents[1]
CONFIGS_DIR = ROOT / "configs"
MATRICES = CONFIGS_DIR / "experiments"  # what to run, not how: no configs
CONFIGS = sorted(path for path in CONFIGS_DIR.glob("**/*.yaml") if path.parent != MATRICES)
DETECTORS = [path for path in CONFIGS if not path.name.startswith("Base-")]

#: What a config's name begins with -> its class without SWN, with it, and the key that switches.
CLASSES = {
    "faster_rcnn": (StandardROIHeads, SWNROIHeads, "MODEL.ROI_HEADS.NAME"),
    "mask_rcnn": (StandardROIHeads, SWNROIHeads, "MODEL.ROI_HEADS.NAME"),
    "cascade_rcnn": (CascadeROIHeads, SWNCascadeROIHeads, "MODEL.ROI_HEADS.NAME"),
    "cascade_mask_rcnn": (CascadeROIHeads, SWNCascadeROIHeads, "MODEL.ROI_HEADS.NAME"),
    "retinanet": (RetinaNet, SWNRetinaNet, "MODEL.META_ARCHITECTURE"),
}
#: Backbone -> of a ResNet: blocks in res4, groups, and channels per group in res2.
RESNETS = {"R_50": (6, 1, 64), "X_101_32x4d": (23, 32, 4), "tiny": (6, 1, 16)}
#: Backbone -> its name in timm.
OF_TIMM = {"MobileNetV2": "mobilenetv2_100", "EfficientNetLite0": "tf_efficientnet_lite0"}
BACKBONES = [*RESNETS, *OF_TIMM]
#: Keys of Detectron2 that a strategy changes beside the class: OHEM wants all of the proposals.
BESIDE_THE_WEIGHTER = {
    "_ohem": {"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "MODEL.ROI_HEADS.POSITIVE_FRACTION"},
}
#: Data set -> classes, and training images with annotations.
DATA = {"coco": (80, 117_266), "voc": (20, 16_551), "digit": (10, 2000)}

sys.path.insert(0, str(ROOT / "tools"))
converter = importlib.import_module("convert_backbone")


def name(path):
    return str(path.relative_to(CONFIGS_DIR))


def parts(path):
    """The detector and the backbone in a config's name, and what follows its baseline's name."""
    match = re.match(rf"({'|'.join(CLASSES)})_({'|'.join(BACKBONES)})_FPN(?:_1x)?", path.stem)
    assert match, f"{path.name} does not say what it is"
    return *match.groups(), path.stem[match.end() :]


def baseline_of(path):
    return path.with_name(path.stem.removesuffix(parts(path)[2]) + ".yaml")


BASELINES = [path for path in DETECTORS if parts(path)[2] == ""]
WITH_SWN = [path for path in DETECTORS if parts(path)[2].startswith("_swn")]
READINGS = [path for path in WITH_SWN if path.stem.endswith(("_paper", "_authors"))]
#: Other ways of weighting.
STRATEGIES = [path for path in DETECTORS if path not in BASELINES + WITH_SWN]
#: With the paper's backbones and schedule.
OF_THE_PAPER = [
    path for path in DETECTORS if path.parent.name != "Quickstart" and parts(path)[1] not in OF_TIMM
]
X_101 = [path for path in BASELINES if "X_101_32x4d" in path.stem]


def weighter_of(path):
    return load_config(str(path)).MODEL.SAMPLE_WEIGHTER.NAME


def flat(node, prefix=""):
    """key -> value of all leaves."""
    leaves = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            leaves.update(flat(value, f"{prefix}{key}."))
        else:
            leaves[prefix + key] = value
    return leaves


def differing_keys(a, b):
    a, b = flat(a), flat(b)
    return {key for key in a if a[key] != b[key]}


def changes(path, other):
    """The keys in which two configs differ."""
    return differing_keys(load_config(str(path)), load_config(str(other)))


@cache
def added_keys():
    """key -> default of what swn_d2 adds to Detectron2's config."""
    cfg = get_cfg()
    stock = flat(cfg)
    add_swn_config(cfg)
    return {key: value for key, value in flat(cfg).items() if key not in stock}


def test_the_reference_has_every_key_with_its_default():
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z_.]+)` \| `(.+?)` \| .+ \| .+ \|$", text, flags=re.MULTILINE)
    documented = {key: yaml.safe_load(default) for key, default in rows}
    assert len(documented) == len(rows) == text.count("\n| `"), "a key twice, or a malformed row"
    assert documented == added_keys()


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_is_plain_yaml_with_known_keys(path):
    cfg = load_config(str(path))  # refuses Python objects and unknown keys
    assert cfg.VERSION == 2


@pytest.mark.parametrize("path", DETECTORS, ids=name)
def test_builds_the_detector_that_its_name_promises(path):
    detector, backbone, suffix = parts(path)
    stock, with_swn, _ = CLASSES[detector]
    cfg = load_config(str(path), ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):  # all of a detector but the numbers
        model = build_model(cfg)
    weighted = model if detector == "retinanet" else model.roi_heads
    assert type(weighted) is (stock if path in BASELINES else with_swn)
    weighter = cfg.MODEL.SAMPLE_WEIGHTER.NAME
    if path in STRATEGIES:  # "_focal" names FocalWeighting; where it names no weighter: Uniform
        assert weighter == "Uniform" or weighter.lower().startswith(suffix.replace("_", ""))
    else:
        assert weighter == "SWN"
    assert getattr(weighted, "mask_on", False) == ("mask" in detector)
    assert weighted.num_classes == DATA[cfg.DATASETS.TRAIN[0].split("_")[0]][0]

    bottom_up = model.backbone.bottom_up
    assert isinstance(bottom_up, TimmBackbone) == (backbone in OF_TIMM)
    if backbone in OF_TIMM:
        assert cfg.MODEL.TIMM.NAME == OF_TIMM[backbone]
        return
    grouped = bottom_up.res2[0].conv2
    blocks_groups_width = (len(bottom_up.res4), grouped.groups, grouped.weight.shape[1])
    assert blocks_groups_width == RESNETS[backbone]


@pytest.mark.parametrize("path", WITH_SWN, ids=name)
def test_its_box_loss_flattens_out_near_zero(path):
    model = load_config(str(path)).MODEL
    # At 0, the gradient of the best-placed boxes would not shrink while their weight grows.
    if "retinanet" in path.stem:
        assert model.RETINANET.SMOOTH_L1_LOSS_BETA == 0.11
    else:
        assert model.ROI_BOX_HEAD.SMOOTH_L1_BETA == 1.0


@pytest.mark.parametrize("path", WITH_SWN, ids=name)
def test_differs_from_its_baseline_in_the_sample_weights_only(path):
    switch = CLASSES[parts(path)[0]][2]
    differing = changes(path, baseline_of(path)) - {"OUTPUT_DIR"}
    assert switch in differing
    if path in READINGS:
        assert differing <= {switch, *added_keys()}
    elif path.stem.endswith("_soft_nms"):
        assert differing == {switch, "MODEL.NMS.METHOD"}
    else:  # the one line that the documentation promises
        assert differing == {switch}


@pytest.mark.parametrize("path", STRATEGIES, ids=name)
def test_a_strategy_differs_from_its_baseline_in_the_sample_weights_only(path):
    detector, _, suffix = parts(path)
    differing = changes(path, baseline_of(path)) - {"OUTPUT_DIR"}
    assert {CLASSES[detector][2], "MODEL.SAMPLE_WEIGHTER.NAME"} <= differing
    own = f"MODEL.SAMPLE_WEIGHTER.{weighter_of(path).upper()}."
    of_others = ("MODEL.SWN.", "SOLVER.SWN.", "MODEL.SAMPLE_WEIGHTER.")
    for key in differing - {CLASSES[detector][2], "MODEL.SAMPLE_WEIGHTER.NAME"}:
        if key in added_keys():
            assert key.startswith(own) or not key.startswith(of_others)
        else:
            assert key in BESIDE_THE_WEIGHTER.get(suffix, ())


def test_every_weighter_has_a_pair_of_configs():
    of_folder = {}
    for folder in ("Quickstart", "COCO-Detection"):
        paths = [path for path in STRATEGIES if path.parent.name == folder]
        of_folder[folder] = {(*parts(path)[::2], weighter_of(path)) for path in paths}
    assert of_folder["Quickstart"] == of_folder["COCO-Detection"]
    with_configs = {weighter for _, _, weighter in of_folder["Quickstart"]}
    # Tests register weighters of their own, too.
    ours = {key for key, cls in SAMPLE_WEIGHTER_REGISTRY if cls.__module__.startswith("swn_d2.")}
    assert with_configs | {"SWN", "Uniform"} == ours


@pytest.mark.parametrize("path", [p for p in STRATEGIES if parts(p)[2] == "_ohem"], ids=name)
def test_ohem_selects_as_many_as_its_baseline_samples_out_of_all_proposals(path):
    model = load_config(str(path)).MODEL
    baseline = load_config(str(baseline_of(path))).MODEL
    assert model.SAMPLE_WEIGHTER.OHEM.NUM_SAMPLES == baseline.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    assert model.SAMPLE_WEIGHTER.OHEM.POSITIVE_FRACTION == baseline.ROI_HEADS.POSITIVE_FRACTION
    # The objects of an image are proposals, too; a hundred is more than images have.
    proposals = model.RPN.POST_NMS_TOPK_TRAIN + 100
    assert model.ROI_HEADS.BATCH_SIZE_PER_IMAGE >= proposals
    assert model.ROI_HEADS.POSITIVE_FRACTION == 1.0


@pytest.mark.parametrize("path", READINGS, ids=name)
def test_a_reading_is_the_same_on_every_detector(path):
    reading = path.stem.rsplit("_", 1)[1]
    base = CONFIGS_DIR / f"Base-SWN-{reading}.yaml"
    stated = {f"MODEL.SWN.{key}" for key in yaml.safe_load(base.read_text())["MODEL"]["SWN"]}
    assert stated == {key for key in added_keys() if key.startswith("MODEL.SWN.")}
    if "retinanet" in path.stem:
        base = CONFIGS_DIR / f"Base-SWN-{reading}-RetinaNet.yaml"
    assert not changes(path, base) & stated


def test_the_readings_differ_as_the_text_and_the_code_do():
    paper, authors, authors_retinanet = (
        CONFIGS_DIR / f"Base-SWN-{reading}.yaml"
        for reading in ("paper", "authors", "authors-RetinaNet")
    )
    differing = {"EXPONENT", "BOX_LOSS_FEATURE", "HEADS", "REGULARIZER_DIVISOR"}
    assert changes(paper, authors) == {f"MODEL.SWN.{key}" for key in differing}
    assert changes(authors, authors_retinanet) == {"MODEL.SWN.CLS_AVERAGING"}
    assert load_config(str(authors)).MODEL.SWN.CLS_AVERAGING == "per_group"
    assert load_config(str(authors_retinanet)).MODEL.SWN.CLS_AVERAGING == "all"


@pytest.mark.parametrize("backbone", ["R_50", "X_101_32x4d"])
@pytest.mark.parametrize(
    "folder, detector",
    [
        ("COCO-Detection", "faster_rcnn"),
        ("COCO-InstanceSegmentation", "mask_rcnn"),
        ("COCO-Detection", "retinanet"),
        ("PascalVOC-Detection", "faster_rcnn"),
        ("PascalVOC-Detection", "retinanet"),
    ],
)
def test_every_row_of_the_papers_tables_1_and_2_has_its_configs(folder, detector, backbone):
    found = [
        path
        for path in DETECTORS
        if path.parent.name == folder and parts(path)[:2] == (detector, backbone)
    ]
    (baseline,) = {baseline_of(path).stem for path in found}
    suffixes = {path.stem.removeprefix(baseline) for path in found}
    assert suffixes >= {"", "_swn", "_swn_authors"}


@pytest.mark.parametrize("path", OF_THE_PAPER, ids=name)
def test_the_schedule_is_the_papers(path):
    cfg = load_config(str(path))
    solver = cfg.SOLVER
    assert solver.IMS_PER_BATCH == 16
    assert solver.BASE_LR == (0.01 if "retinanet" in path.stem else 0.02)
    assert (solver.WEIGHT_DECAY, solver.MOMENTUM) == (1e-4, 0.9)
    iterations_per_epoch = DATA[cfg.DATASETS.TRAIN[0].split("_")[0]][1] / solver.IMS_PER_BATCH
    in_epochs = torch.tensor([*solver.STEPS, solver.MAX_ITER]) / iterations_per_epoch
    # Whole iterations: each figure is at most one iteration off.
    assert torch.allclose(
        in_epochs, torch.tensor([8.0, 11.0, 12.0]), rtol=0, atol=1 / iterations_per_epoch
    )


@pytest.mark.parametrize(
    "path", [path for path in DETECTORS if parts(path)[1] in OF_TIMM], ids=name
)
def test_the_schedule_of_a_small_backbone_has_the_epochs_that_its_base_says(path):
    cfg = load_config(str(path))
    assert cfg.DATASETS.TRAIN == ("voc_2007_trainval_ignore_difficult",)
    iterations_per_epoch = 5011 / cfg.SOLVER.IMS_PER_BATCH
    in_epochs = torch.tensor([*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER]) / iterations_per_epoch
    assert torch.allclose(in_epochs, torch.tensor([4.0, 5.5, 6.0]), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "ours, detectron2s, beta",
    [
        ("COCO-Detection/faster_rcnn", "COCO-Detection/faster_rcnn", "ROI_BOX_HEAD.SMOOTH_L1_BETA"),
        ("COCO-Detection/retinanet", "COCO-Detection/retinanet", "RETINANET.SMOOTH_L1_LOSS_BETA"),
        (
            "COCO-InstanceSegmentation/mask_rcnn",
            "COCO-InstanceSegmentation/mask_rcnn",
            "ROI_BOX_HEAD.SMOOTH_L1_BETA",
        ),
        (
            "COCO-InstanceSegmentation/cascade_mask_rcnn",
            "Misc/cascade_mask_rcnn",
            "ROI_BOX_HEAD.SMOOTH_L1_BETA",
        ),
    ],
)
def test_differs_from_detectron2s_own_config_only_as_its_comments_say(ours, detectron2s, beta):
    zoo = Path(detectron2.__file__).parent / "model_zoo" / "configs"
    theirs = get_cfg()
    add_swn_config(theirs)
    # Its RetinaNet's anchor sizes are a line of Python, hence the flag.
    theirs.merge_from_file(str(zoo / f"{detectron2s}_R_50_FPN_1x.yaml"), allow_unsafe=True)
    cfg = load_config(str(CONFIGS_DIR / f"{ours}_R_50_FPN_1x.yaml"))
    # Ours are written out to four decimals, which is a ten-thousandth of a pixel.
    sizes = [torch.tensor(node.MODEL.ANCHOR_GENERATOR.SIZES) for node in (cfg, theirs)]
    assert torch.allclose(*sizes, rtol=0, atol=1e-4)
    theirs.MODEL.ANCHOR_GENERATOR.SIZES = cfg.MODEL.ANCHOR_GENERATOR.SIZES

    schedule = {"SOLVER.STEPS", "SOLVER.MAX_ITER"}
    assert differing_keys(cfg, theirs) == {f"MODEL.{beta}", "INPUT.MIN_SIZE_TRAIN", *schedule}


@pytest.mark.parametrize(
    "with_masks, without",
    [
        ("mask_rcnn_R_50_FPN_1x", "faster_rcnn_R_50_FPN_1x"),
        ("mask_rcnn_X_101_32x4d_FPN_1x", "faster_rcnn_X_101_32x4d_FPN_1x"),
        ("cascade_mask_rcnn_R_50_FPN_1x", "cascade_rcnn_R_50_FPN_1x"),
    ],
)
def test_masks_are_all_that_a_mask_rcnn_adds(with_masks, without):
    with_masks = CONFIGS_DIR / "COCO-InstanceSegmentation" / f"{with_masks}.yaml"
    without = CONFIGS_DIR / "COCO-Detection" / f"{without}.yaml"
    assert changes(with_masks, without) == {"MODEL.MASK_ON"}


@pytest.fixture(scope="module")
def resnext101(tmp_path_factory):
    """The file that tools/convert_backbone.py makes, of random weights, and what it prints."""
    path = tmp_path_factory.mktemp("pretrained") / "resnext101_32x4d.pth"
    weights = ResNet(Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4).state_dict()
    converted = converter.convert_resnext(weights)
    torch.save({"model": converted, "matching_heuristics": True}, path)
    return path, converted, CfgNode(converter.resnext_settings(weights))


@pytest.mark.parametrize("path", X_101, ids=name)
def test_the_converted_resnext_is_of_its_backbone(path, resnext101):
    _, _, settings = resnext101
    cfg = load_config(str(path), ["MODEL.DEVICE", "cpu"])
    unchanged = cfg.clone()
    cfg.merge_from_other_cfg(settings)
    assert cfg == unchanged


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])  # which have two backbones
def test_the_converted_resnext_is_all_of_its_backbone(detector, resnext101):
    file, converted, _ = resnext101
    path = CONFIGS_DIR / "COCO-Detection" / f"{detector}_X_101_32x4d_FPN_1x.yaml"
    model = build_model(load_config(str(path), ["MODEL.DEVICE", "cpu"]))
    DetectionCheckpointer(model).load(str(file))
    loaded = model.backbone.bottom_up.state_dict()
    assert loaded.keys() == converted.keys()
    assert all(torch.equal(loaded[key], converted[key]) for key in converted)


@pytest.mark.parametrize("detector", sorted(CLASSES.keys() - {"cascade_mask_rcnn"}))
def test_the_quickstart_has_a_pair_of_every_detector(detector):
    for suffix in ("", "_swn"):
        stem = f"{detector}_tiny_FPN{suffix}"
        cfg = load_config(str(CONFIGS_DIR / "Quickstart" / f"{stem}.yaml"))
        assert cfg.DATASETS.TRAIN == ("digit_scenes_train",)
        assert cfg.OUTPUT_DIR == f"output/quickstart/{stem}"
        assert cfg.INPUT.MASK_FORMAT == "bitmask" or not cfg.MODEL.MASK_ON  # run lengths


def test_the_project_page_names_configs_that_exist():
    text = (ROOT / "projects_readme.md").read_text(encoding="utf-8")
    named = set(re.findall(r"configs/[\w/.-]+\.yaml", text))
    in_tables = {path for path in BASELINES if path.parent.name != "Quickstart"}
    assert named >= {f"configs/{name(path)}" for path in in_tables}
    assert not [path for path in named if not (ROOT / path).is_file()]


def test_loading_runs_no_code_from_a_config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("SEED: !!python/object/apply:eval ['1']\n")
    with pytest.raises(UserError, match="not a plain YAML file"):
        load_config(str(path))


def test_a_config_of_an_earlier_run_can_be_loaded(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("MODEL:\n  SAMPLE_WEIGHTER:\n    OBJECTSWN: {EXPONENT: 6.0, WINDOW: 4}\n")
    assert "OBJECTSWN" not in load_config(str(path)).MODEL.SAMPLE_WEIGHTER
    path.write_text(
        "MODEL: {SAMPLE_WEIGHTER: {NAME: ObjectSWN}, SWN: {TASKS: [box], CLS_AVERAGING: none}}\n"
    )
    swn = build_sample_weighter(load_config(str(path)), box_loss_dim=1, has_mask=False)
    assert swn.rightness.recent.shape == (512, 6) and swn.network is None


@pytest.mark.parametrize("path", sorted(CONFIGS_DIR.glob("**/*.py")), ids=lambda path: path.stem)
def test_lazy_configs_weight_what_swn_does_by_default(path):
    text = path.read_text()
    assert "L(SWN)(" in text and not re.search(r"\b(tasks|cls_averaging)=", text)
