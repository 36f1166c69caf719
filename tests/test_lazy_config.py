"""The classes under Detectron2's LazyConfig, and the example config."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import SimpleTrainer, hooks
from detectron2.layers import ShapeSpec
from detectron2.model_zoo import get_config
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BasicBlock

from swn_d2 import load_config, modeling, weighting
from swn_d2.data import make_digit_scenes
from swn_d2.engine import build_joint_optimizer, optimizer
from swn_d2.modeling import SWNCascadeROIHeads, SWNFastRCNNOutputLayers, SWNRetinaNet
from swn_d2.weighting import SWN
from tests.tiny import CONFIGS, NUM_CLASSES, batch, training_losses, weighters

EXAMPLE = CONFIGS / "COCO-InstanceSegmentation" / "mask_rcnn_R_50_FPN_1x_swn.py"
ITERATIONS = 4


@pytest.fixture
def cfg():
    return LazyConfig.load(str(EXAMPLE))


def shapes(model):
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


def settings(weighter):
    return {key: value for key, value in vars(weighter).items() if not key.startswith("_")}


def optimizer_of(config, model):
    """As tools/lazyconfig_train_net.py of Detectron2 makes it."""
    config.params.model = model
    return instantiate(config)


def hyperparameters(optimizer):
    return {
        name: [
            {key: group[key] for key in ("lr", "weight_decay", "momentum", "betas") if key in group}
            | {"number of parameters": len(group["params"])}
            for group in member.param_groups
        ]
        for name, member in optimizer.members.items()
    }


def test_is_its_yaml_twin(cfg):
    twin = load_config(str(EXAMPLE.with_suffix(".yaml")), ["MODEL.DEVICE", "cpu"])
    model, twins_model = instantiate(cfg.model), build_model(twin)
    assert shapes(model) == shapes(twins_model)
    (weighter,), (twins_weighter,) = weighters(model), weighters(twins_model)
    assert settings(weighter) == settings(twins_weighter)
    predictors = [m.roi_heads.box_predictor for m in (model, twins_model)]
    assert predictors[0].smooth_l1_beta == predictors[1].smooth_l1_beta == 1.0
    trainable = [
        {name for name, p in m.named_parameters() if p.requires_grad} for m in (model, twins_model)
    ]
    assert trainable[0] == trainable[1]

    assert hyperparameters(optimizer_of(cfg.optimizer, model)) == hyperparameters(
        build_joint_optimizer(twin, twins_model)
    )
    schedule = cfg.lr_multiplier
    assert cfg.train.max_iter == twin.SOLVER.MAX_ITER
    assert schedule.scheduler.milestones == [*twin.SOLVER.STEPS, twin.SOLVER.MAX_ITER]
    assert schedule.warmup_length * cfg.train.max_iter == pytest.approx(twin.SOLVER.WARMUP_ITERS)
    assert schedule.warmup_factor == twin.SOLVER.WARMUP_FACTOR
    assert cfg.train.init_checkpoint == twin.MODEL.WEIGHTS
    assert cfg.dataloader.train.total_batch_size == twin.SOLVER.IMS_PER_BATCH
    assert cfg.dataloader.train.dataset.names == twin.DATASETS.TRAIN[0]
    resize = cfg.dataloader.train.mapper.augmentations[0]
    assert resize.short_edge_length == list(twin.INPUT.MIN_SIZE_TRAIN)
    assert resize.max_size == twin.INPUT.MAX_SIZE_TRAIN


def test_the_lines_in_the_docs_make_the_example(cfg):
    text = (CONFIGS.parent / "docs" / "config.md").read_text(encoding="utf-8")
    lines = re.search(r"^## LazyConfig$.*?^```python$(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    zoo = get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
    names = {**vars(modeling), **vars(weighting), **vars(optimizer)}
    names.update(L=L, model=zoo.model, optimizer=zoo.optimizer)
    exec(lines.group(1), names)
    models = [instantiate(config) for config in (names["model"], cfg.model)]
    assert shapes(models[0]) == shapes(models[1])
    assert all(model.roi_heads.box_predictor.smooth_l1_beta == 1.0 for model in models)
    ours, examples = (settings(*weighters(model)) for model in models)
    assert ours.pop("ease_in") == (0.5 * zoo.train.max_iter, 0.75 * zoo.train.max_iter)
    del examples["ease_in"]  # of another schedule
    assert ours == examples
    assert hyperparameters(optimizer_of(names["optimizer"], models[0])) == hyperparameters(
        optimizer_of(cfg.optimizer, models[1])
    )


def test_the_docs_config_for_boxes_of_ones_own(tmp_path, monkeypatch, clean_catalog):
    """As it stands, the detector of the YAML config; made small, it learns from the data."""
    monkeypatch.chdir(tmp_path)
    make_digit_scenes("made", num_train=4, num_val=2, image_size=(96, 64))
    for part in ("train", "val"):
        content = json.loads(Path(f"made/annotations/instances_{part}.json").read_text())
        content["categories"] = content["categories"][:NUM_CLASSES]
        known = {category["id"] for category in content["categories"]}
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] in known]
        Path("cats").mkdir(exist_ok=True)
        Path(f"cats/{part}.json").write_text(json.dumps(content))
    shutil.copytree("made/train", "cats/images")
    text = (CONFIGS.parent / "docs" / "config.md").read_text(encoding="utf-8")
    (block,) = re.findall(
        r"`my_boxes\.py`\.\n\n^```python$(.*?)^```$", text, re.DOTALL | re.MULTILINE
    )
    Path("my_boxes.py").write_text(block)
    cfg = LazyConfig.load("my_boxes.py")

    classes = ["MODEL.ROI_HEADS.NUM_CLASSES", str(NUM_CLASSES), "MODEL.DEVICE", "cpu"]
    twin = load_config(
        str(CONFIGS / "COCO-Detection" / "faster_rcnn_R_50_FPN_1x_swn.yaml"), classes
    )
    assert shapes(instantiate(cfg.model)) == shapes(build_model(twin))

    make_small(cfg)
    cfg.dataloader.train.num_workers = cfg.dataloader.test.num_workers = 0
    cfg.dataloader.train.mapper.augmentations[0].short_edge_length = [64]
    model = instantiate(cfg.model)
    optimizer_of(cfg.optimizer, model)
    losses = training_losses(model, next(iter(instantiate(cfg.dataloader.train))))
    sum(losses.values()).backward()
    assert {"loss_box_reg", "loss_swn_box"} <= losses.keys() and "loss_mask" not in losses
    assert len(instantiate(cfg.dataloader.test)) == 2


def test_is_complete_in_the_file_that_a_run_saves(cfg, tmp_path):
    """Detectron2 saves it before there is a model for ``optimizer.params.model``."""
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    saved = LazyConfig.load(str(tmp_path / "config.yaml"))
    models = [instantiate(c.model) for c in (cfg, saved)]
    assert shapes(models[0]) == shapes(models[1])
    assert hyperparameters(optimizer_of(cfg.optimizer, models[0])) == hyperparameters(
        optimizer_of(saved.optimizer, models[1])
    )


def make_small(cfg):
    """A model that steps in a moment, and a schedule of ITERATIONS."""
    model = cfg.model
    backbone, heads = model.backbone, model.roi_heads
    channels = 16
    backbone.bottom_up.freeze_at = 0
    backbone.bottom_up.stem.update(out_channels=8, norm="BN")
    backbone.bottom_up.stages = [
        [BasicBlock(width, 2 * width, stride=1 if width == 8 else 2, norm="BN")]
        for width in (8, 16, 32, 64)
    ]
    backbone.out_channels = model.proposal_generator.head.in_channels = channels
    heads.num_classes = NUM_CLASSES
    heads.box_head.input_shape = ShapeSpec(channels=channels, height=7, width=7)
    heads.box_head.fc_dims = [32]
    heads.box_predictor.input_shape = ShapeSpec(channels=32)
    if "mask_head" in heads:
        heads.mask_head.input_shape = ShapeSpec(channels=channels, height=14, width=14)
        heads.mask_head.conv_dims = [8, 8]
    cfg.train.max_iter = ITERATIONS


def batches(start):
    """Endless, and the same from an iteration on whether or not a run begins there."""
    for iteration in itertools.count(start):
        torch.manual_seed(iteration)  # of the sampling of regions
        yield batch(seed=iteration)


class Run:
    """A model, its optimiser and its trainer, put together as lazyconfig_train_net.py does."""

    def __init__(self, folder, *, start=0):
        cfg = LazyConfig.load(str(EXAMPLE))
        make_small(cfg)
        self.model = instantiate(cfg.model)
        self.optimizer = optimizer_of(cfg.optimizer, self.model)
        self.trainer = SimpleTrainer(self.model, batches(start), self.optimizer)
        self.checkpointer = DetectionCheckpointer(self.model, str(folder), trainer=self.trainer)
        self.trainer.register_hooks(
            [
                hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
                hooks.PeriodicCheckpointer(self.checkpointer, period=ITERATIONS // 2),
            ]
        )


def test_trains_and_resumes(tmp_path):
    whole = Run(tmp_path)
    before = {p: p.detach().clone() for p in whole.model.parameters()}
    whole.trainer.train(0, ITERATIONS)

    members = whole.optimizer.members
    of_member = {
        name: {p for group in member.param_groups for p in group["params"]}
        for name, member in members.items()
    }
    assert type(members["weighter"]) is torch.optim.Adam
    assert of_member["weighter"] == set(weighters(whole.model)[0].parameters())
    assert of_member["detector"] == before.keys() - of_member["weighter"]
    for parameter, old in before.items():
        assert not torch.equal(parameter, old)

    # A warm-up, two whole iterations, a decay. Detectron2 logs the rate of the largest group,
    # which is Adam's where Detectron2 makes a group of every parameter of the detector's.
    logged = [lr for lr, _ in whole.trainer.storage.history("lr").values()]
    assert [lr / max(logged) for lr in logged] == pytest.approx([0.001, 1, 1, 0.1])
    last = {name: member.param_groups[0]["lr"] for name, member in members.items()}
    assert last == pytest.approx({"detector": 0.02 * 0.01, "weighter": 0.001 * 0.01})

    half = ITERATIONS // 2
    resumed = Run(tmp_path, start=half)
    resumed.checkpointer.load(str(tmp_path / f"model_{half - 1:07d}.pth"))
    assert resumed.trainer.iter == half - 1
    resumed.trainer.train(half, ITERATIONS)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def with_retinanet(model):
    model._target_ = SWNRetinaNet
    model.sample_weighter = L(SWN)(lambdas={"cls": 0.5, "box": 0.5})


def with_cascade(model):
    heads = model.roi_heads
    heads._target_ = SWNCascadeROIHeads
    for predictor in heads.box_predictors:
        predictor._target_ = SWNFastRCNNOutputLayers
    heads.sample_weighters = [
        L(SWN)(lambdas={"cls": 0.5, "box": 0.5, "mask": 0.5}, has_mask=stage == 0)
        for stage in range(3)
    ]


@pytest.mark.parametrize(
    "name, switch_on", [("retinanet", with_retinanet), ("cascade_rcnn", with_cascade)]
)
def test_the_other_detectors_start_as_detectron2s(name, switch_on):
    model_config = get_config(f"common/models/{name}.py").model
    # With FrozenBN an untrained network explodes.
    model_config.backbone.bottom_up.stem.norm = model_config.backbone.bottom_up.stages.norm = "BN"
    stock = instantiate(model_config)
    switch_on(model_config)
    model = instantiate(model_config)
    missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False)
    assert missing and all("sample_weighter" in key for key in missing) and not unexpected

    losses, expected = (training_losses(m, batch()) for m in (model, stock))
    regularizers = {key for key in losses if "loss_swn" in key}
    assert regularizers and losses.keys() - regularizers == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-5, atol=1e-7)  # the project's bound
