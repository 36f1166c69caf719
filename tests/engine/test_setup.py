"""Settings that do not go together, found before a run costs any time."""

import os
import pickle
import re

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY

from swn_d2.data import load_training_set
from swn_d2.engine import SWNTrainer, check_run, setup
from swn_d2.errors import UserError
from tests.pickles import Call
from tests.tiny import DETECTORS, tiny_config


@pytest.mark.parametrize(
    "detector, opts, message",
    [
        (
            "retinanet",
            ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.ROI_HEADS.NAME", "SWNROIHeads"],
            "has no ROI heads.*META_ARCHITECTURE to SWNRetinaNet",
        ),
        (
            "cascade_rcnn",
            ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False],
            "CLS_AGNOSTIC_BBOX_REG to True",
        ),
        ("retinanet", ["MODEL.META_ARCHITECTURE", "SWNRetinanet"], "mean SWNRetinaNet"),
    ],
)
def test_a_switch_that_does_not_fit_the_detector(tmp_path, detector, opts, message):
    opts = ["DATASETS.TRAIN", ("missing",), "OUTPUT_DIR", str(tmp_path / "run"), *opts]
    cfg = tiny_config(*opts, detector=detector)
    with pytest.raises(UserError) as error:
        check_run(cfg, eval_only=False, resume=False)
    assert re.search(message, str(error.value))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize(
    "weights, message",
    [
        ([1, 1], "has 2 weights, but MODEL.*NUM_CLASSES is 3"),
        ([1.0, 1, 1, 1], "has 4 weights, but MODEL.*NUM_CLASSES is 3"),
        ([1, -0.5, 1], "has -0.5, but each weight must be a number from 0"),
        ([1, float("nan"), 1], "has nan, but"),
        ([1, 1, float("inf")], "has inf, but"),
        ([1, "2.0", 1], "has '2.0', but"),
        ([1, 1, 1e39], "has 1e[+]39, but"),  # infinite in float32
    ],
)
def test_class_weights_that_do_not_fit(detector, weights, message):
    opts = ["DATASETS.TRAIN", ("missing",), "MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS", weights]
    if detector == "retinanet":  # whose classes are not those of ROI heads
        opts += ["MODEL.ROI_HEADS.NUM_CLASSES", 4]
    with pytest.raises(UserError, match=f"MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS {message}"):
        check_run(tiny_config(*opts, detector=detector), eval_only=False, resume=False)


@pytest.mark.parametrize("weights", [[], [0, 0.5, 2]])
@pytest.mark.parametrize("detector", DETECTORS)
def test_every_detector_passes_up_to_its_data(tmp_path, detector, weights):
    opts = ["DATASETS.TRAIN", ("missing",), "OUTPUT_DIR", str(tmp_path / "run")]
    opts += ["MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS", weights]
    with pytest.raises(UserError, match="no data set named missing"):
        check_run(tiny_config(*opts, detector=detector), eval_only=False, resume=False)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize(
    "option, value",
    [
        ("MODEL.NMS.METHOD", "linear"),
        ("MODEL.NMS.VARIANCE_VOTING", True),
        ("MODEL.ROI_BOX_HEAD.LOG_VARIANCE", True),
        ("MODEL.IOU_HEAD.ENABLED", True),
        ("MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS", [1.0, 2.0, 3.0]),
        ("MODEL.SAMPLE_WEIGHTER.NAME", "IoUBalanced"),
        ("MODEL.SAMPLE_WEIGHTER.CONTROL", "shuffle"),
    ],
)
def test_an_option_that_a_stock_detector_would_leave_out(detector, option, value):
    cfg = tiny_config(
        *("DATASETS.TRAIN", ("missing",), option, value), detector=detector, stock=True
    )
    with pytest.raises(UserError, match=f"{option} has no effect on Detectron2's own"):
        check_run(cfg, eval_only=False, resume=False)


def test_an_architecture_of_ones_own_may_look_at_a_weighter():
    """Whatever MODEL.ROI_HEADS.NAME is, which it may not have."""
    META_ARCH_REGISTRY.register(type("MyDense", (), {"__module__": "mine"}))
    try:
        opts = ["MODEL.META_ARCHITECTURE", "MyDense", "MODEL.SAMPLE_WEIGHTER.NAME", "IoUBalanced"]
        cfg = tiny_config("DATASETS.TRAIN", ("missing",), *opts, stock=True)
        with pytest.raises(UserError, match="no data set named missing"):
            check_run(cfg, eval_only=False, resume=False)
    finally:
        META_ARCH_REGISTRY._obj_map.pop("MyDense")


def test_a_value_of_an_inference_option():
    cfg = tiny_config("DATASETS.TRAIN", ("missing",), "MODEL.NMS.METHOD", "soft")
    with pytest.raises(UserError, match="MODEL.NMS.METHOD has 'soft'.*linear"):
        check_run(cfg, eval_only=False, resume=False)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.TIMM.NAME", ""], "MODEL.TIMM.NAME is empty"),
        (["MODEL.TIMM.NAME", "resnet19"], "'resnet19', which timm .*the closest are .*resnet18"),
        (["MODEL.FPN.IN_FEATURES", ["res4", "c5"]], r"IN_FEATURES is \['res4', 'c5'\], but"),
        (["MODEL.TIMM.NORM", "LN"], "MODEL.TIMM.NORM is 'LN', but"),
        (["MODEL.BACKBONE.FREEZE_AT", 6], "FREEZE_AT is 6, but"),
        ([], "no data set named missing"),
    ],
)
@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_a_backbone_of_timm(tmp_path, detector, opts, message):
    pyramid = "retinanet_fpn" if detector == "retinanet" else "fpn"
    cfg = tiny_config(
        *("DATASETS.TRAIN", ("missing",), "OUTPUT_DIR", str(tmp_path / "run")),
        *("MODEL.BACKBONE.NAME", f"build_timm_{pyramid}_backbone", "MODEL.TIMM.NAME", "resnet18"),
        *opts,
        detector=detector,
    )
    with pytest.raises(UserError, match=message):
        check_run(cfg, eval_only=False, resume=False)


def test_a_batch_that_is_scaled(tmp_path):
    scaled = "SOLVER.IMS_PER_BATCH", 16, "SOLVER.REFERENCE_WORLD_SIZE", 8
    processes = {"resume": False, "num_processes_per_machine": 3}
    assert "no data set named missing" in check_output(tmp_path, *scaled, **processes)
    assert "16 can't be divided among 3" in check_output(tmp_path, *scaled[:2], **processes)


def test_what_cuts_polygons(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "find_spec", lambda name: None)  # as it comes with nothing here
    cuts = "INPUT.CROP.ENABLED", True, "MODEL.MASK_ON", True, "INPUT.MASK_FORMAT"
    assert "pip install shapely" in check_output(tmp_path, *cuts, "polygon", resume=False)
    assert "no data set named missing" in check_output(tmp_path, *cuts, "bitmask", resume=False)


def test_the_weights_before_a_training_are_not_needed_to_go_on(tmp_path):
    gone = "MODEL.WEIGHTS", "pretrained/gone.pth"
    assert "no file pretrained/gone.pth" in check_output(tmp_path, *gone, resume=True)
    (tmp_path / "model_0000009.pth").write_text("content")
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    assert "no data set named missing" in check_output(tmp_path, *gone, resume=True)


def check_output(folder, *opts, **kwargs):
    """What is said of a run in ``folder``, of which nothing but its data is wrong."""
    cfg = tiny_config("DATASETS.TRAIN", ("missing",), "OUTPUT_DIR", str(folder), *opts)
    with pytest.raises(UserError) as error:
        check_run(cfg, eval_only=False, **kwargs)
    return str(error.value)


@pytest.mark.parametrize(
    "trace, refusal",
    [
        ("model_final.pth", "last_checkpoint is missing"),
        ("model_0000123.pth", "last_checkpoint is missing"),
        ("model_best.pth", None),  # as of a training that was killed before its first checkpoint
        ("metrics.json", None),
        ("samples.jsonl", None),
        (os.path.join("weighter", "0000099.pth"), None),
    ],
)
def test_a_training_is_not_overwritten(tmp_path, trace, refusal):
    """Whatever is left of it; to resume it, too, would begin anew where no checkpoint is noted."""
    file = tmp_path / trace
    file.parent.mkdir(exist_ok=True)
    file.write_text("content")
    anew = check_output(tmp_path, resume=False)
    assert f"{tmp_path} already holds a run ({trace})" in anew
    resumed = check_output(tmp_path, resume=True)
    if refusal:
        assert f"{tmp_path} holds {trace}, but its {refusal}" in resumed
        (tmp_path / "last_checkpoint").write_text(trace)
        resumed = check_output(tmp_path, resume=True)
    assert "no data set named missing" in resumed


@pytest.mark.parametrize(
    "name, content",
    [
        ("metrics.json", ""),  # as of a training that failed before its first iteration
        ("config.yaml", "VERSION: 2"),
        ("log.txt", "a line"),
        ("R-50.pth", "weights"),
        (os.path.join("inference", "coco_instances_results.json"), "[]"),
    ],
)
def test_a_folder_without_a_training(tmp_path, name, content):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    for resume in (False, True):
        assert "no data set named missing" in check_output(tmp_path, resume=resume)


def test_a_damaged_best_detector_is_told_of_before_a_run_goes_on(tmp_path):
    for name in ("model_0000009.pth", "model_best.pth"):
        (tmp_path / name).write_text("content")
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    assert "no data set named missing" in check_output(tmp_path, resume=True)
    period = "TEST.EVAL_PERIOD", 5  # else nothing looks at it
    told = check_output(tmp_path, *period, resume=True)
    assert "model_best.pth is not the best detector" in told


@pytest.mark.parametrize("eval_only", [False, True])
def test_proposals_run_no_code(tmp_path, eval_only):
    """Detectron2 reads them by itself, when the data is loaded."""
    file, made = tmp_path / "proposals.pkl", tmp_path / "made"
    cfg = tiny_config(
        *("DATASETS.TRAIN", ("missing",), "DATASETS.TEST", ("missing",)),
        *("MODEL.LOAD_PROPOSALS", True, "OUTPUT_DIR", str(tmp_path / "run")),
        *("DATASETS.PROPOSAL_FILES_TEST", (str(file),)),
        *("DATASETS.PROPOSAL_FILES_TRAIN", (str(file),)),
    )
    cfg.MODEL.WEIGHTS = __file__
    boxes = [np.zeros((2, 4), np.float32)]
    for ids, message in (
        ([Call(os.mkdir, str(made))], "proposals.pkl asks for 'posix.mkdir'"),
        ([1], "no data set named missing"),
    ):
        content = {"ids": ids, "boxes": boxes, "objectness_logits": [np.zeros(2)], "bbox_mode": 0}
        file.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=message):
            check_run(cfg, eval_only=eval_only, resume=False)
        if ids != [1]:  # in a script, too, which may not have checked the run
            load = SWNTrainer.build_test_loader if eval_only else load_training_set
            with pytest.raises(UserError, match=message):
                load(*(cfg, "missing") if eval_only else (cfg,))
    assert not made.exists()


def test_proposals_are_of_the_data(scenes, tmp_path, training_opts):
    file, one = tmp_path / "proposals.pkl", [np.zeros((2, 4))]
    cfg = tiny_config(*training_opts, "MODEL.LOAD_PROPOSALS", True)
    ids = [
        record["image_id"]
        for name in ("few_digits_train", "few_digits_val")
        for record in DatasetCatalog.get(name)
    ]
    whole = {"indexes": ids, "boxes": one * len(ids), "scores": [np.zeros(2)] * len(ids)}
    for content, number, message in (
        (whole, 0, "PROPOSAL_FILES_TRAIN 0 files; give one for each"),
        ({**whole, "scores": None}, 1, "no 'objectness_logits'"),
        ({**whole, "boxes": one}, 1, "as many ids as boxes"),
        (
            {**whole, "indexes": [-1 if i == max(ids) else i for i in ids]},
            1,
            "no proposals for 1 of its .* the id",
        ),
        (whole, 1, None),
    ):
        file.write_bytes(pickle.dumps(content))
        for which in ("TRAIN", "TEST"):
            cfg.DATASETS[f"PROPOSAL_FILES_{which}"] = (str(file),) * number
        if message is None:
            check_run(cfg, eval_only=False, resume=False)
            continue
        with pytest.raises(UserError, match=message):
            check_run(cfg, eval_only=False, resume=False)
    cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST = (), ("gone.pkl",)  # which nobody needs
    check_run(cfg, eval_only=False, resume=False)


@pytest.mark.parametrize("is_placed", [False, True])
def test_a_cluster_may_show_each_process_its_own_gpu(tmp_path, monkeypatch, is_placed):
    monkeypatch.setattr(setup.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    how = {"resume": False, "num_processes_per_machine": 2, "is_placed": is_placed}
    said = check_output(tmp_path, "MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", 2, **how)
    assert ("this machine has 1" in said) != is_placed
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")  # then it is the only one
    said = check_output(tmp_path, "MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", 2, **how)
    assert "this machine has 1" in said
