"""Every config in configs/, and the reference of config keys."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import StandardROIHeads

from swn_d2 import SWNROIHeads, UserError, add_swn_config, load_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
DETECTORS = [path for path in CONFIGS if not path.name.startswith("Base-")]
WITH_SWN = [path for path in DETECTORS if "_swn" in path.stem]
READINGS = [path for path in WITH_SWN if path.stem.endswith(("_paper", "_authors"))]


def name(path):
    return str(path.relative_to(ROOT / "configs"))


def flat(node, prefix=""):
    """key -> value of all leaves."""
    leaves = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            leaves.update(flat(value, f"{prefix}{key}."))
        else:
            leaves[prefix + key] = value
    return leaves


def changes(path, other):
    """The keys in which two configs differ."""
    a, b = flat(load_config(str(path))), flat(load_config(str(other)))
    return {key for key in a if a[key] != b[key]}


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
    cfg = load_config(str(path), ["MODEL.DEVICE", "cpu"])
    heads = build_model(cfg).roi_heads
    if path in WITH_SWN:
        assert type(heads) is SWNROIHeads
        assert cfg.MODEL.SAMPLE_WEIGHTER.NAME == "SWN"
        # At 0, the gradient of the best-placed boxes would not shrink while their weight grows.
        assert cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA > 0
    else:
        assert type(heads) is StandardROIHeads


@pytest.mark.parametrize("path", WITH_SWN, ids=name)
def test_differs_from_its_baseline_in_the_sample_weights_only(path):
    baseline = path.with_name(path.stem.split("_swn")[0] + ".yaml")
    differing = changes(path, baseline)
    assert "MODEL.ROI_HEADS.NAME" in differing
    assert differing <= {"MODEL.ROI_HEADS.NAME", "OUTPUT_DIR", *added_keys()}


@pytest.mark.parametrize("path", READINGS, ids=name)
def test_a_reading_is_the_same_on_every_detector(path):
    reading = path.stem.rsplit("_", 1)[1]
    base = ROOT / "configs" / f"Base-SWN-{reading}.yaml"
    stated = {f"MODEL.SWN.{key}" for key in yaml.safe_load(base.read_text())["MODEL"]["SWN"]}
    assert stated == {key for key in added_keys() if key.startswith("MODEL.SWN.")}
    assert not changes(path, base) & stated


def test_the_readings_differ_as_the_text_and_the_code_do():
    paper, authors = (ROOT / "configs" / f"Base-SWN-{r}.yaml" for r in ("paper", "authors"))
    differing = {"EXPONENT", "BOX_LOSS_FEATURE", "HEADS", "REGULARIZER_DIVISOR"}
    assert changes(paper, authors) == {f"MODEL.SWN.{key}" for key in differing}


def test_the_schedule_is_the_papers():
    solver = load_config(str(ROOT / "configs" / "Base-RCNN-FPN.yaml")).SOLVER
    iterations_per_epoch = 117_266 / 16  # images of train2017 with annotations
    assert solver.IMS_PER_BATCH == 16
    assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.MOMENTUM) == (0.02, 1e-4, 0.9)
    in_epochs = torch.tensor([*solver.STEPS, solver.MAX_ITER]) / iterations_per_epoch
    # Whole iterations: each figure is at most one iteration off.
    assert torch.allclose(
        in_epochs, torch.tensor([8.0, 11.0, 12.0]), rtol=0, atol=1 / iterations_per_epoch
    )


def test_loading_runs_no_code_from_a_config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("SEED: !!python/object/apply:eval ['1']\n")
    with pytest.raises(UserError, match="not a plain YAML file"):
        load_config(str(path))
