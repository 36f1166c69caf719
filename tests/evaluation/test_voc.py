import json
import math
import shutil

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from swn_d2 import SWNTrainer
from swn_d2.data import register_voc
from swn_d2.engine import check_run, launch
from swn_d2.evaluation import build_voc_evaluator
from tests.tiny import tiny_config, tiny_model
from tests.voc import CLASSES, voc_object, write_voc

#: Each test has a folder of its own, since Detectron2 keeps the annotations that it has read.
LEFT, RIGHT = (1, 1, 100, 100), (101, 51, 200, 150)

# Recall reaches 1/2 with precision 1: 51 of COCO's 101 recalls, 6 of VOC 2007's 11, half the area.
HALF = {"coco": 100 * 51 / 101, 2007: 100 * 6 / 11, 2012: 50.0}

DIFFICULT_FIRST = {
    "000001": [voc_object(box=LEFT, difficult=1), voc_object(box=RIGHT)],
    "2008_000002": [voc_object(box=LEFT)],
}
ON_THE_DIFFICULT_ONE = {"000001": [(0.9, LEFT), (0.8, RIGHT)]}


@pytest.fixture
def register(tmp_path):
    """Write and register a data set named ``small``."""

    def make(images, year=2007):
        register_voc("small", write_voc(tmp_path / "voc", images), "train", CLASSES, year=year)
        return "small"

    yield make
    DatasetCatalog.remove("small")
    MetadataCatalog.remove("small")


def detections(found):
    """Dogs, from (score, box) with VOC's 1-based boxes."""
    boxes = torch.tensor([box for _, box in found], dtype=torch.float32).reshape(-1, 4)
    instances = Instances((160, 200))
    instances.pred_boxes = Boxes(boxes - torch.tensor([1.0, 1.0, 0.0, 0.0]))
    instances.scores = torch.tensor([score for score, _ in found])
    instances.pred_classes = torch.zeros(len(found), dtype=torch.int64)
    return instances


def evaluate(name, folder, found, share=slice(None), masks=False):
    evaluator = build_voc_evaluator(name, str(folder))
    evaluator.reset()
    for record in DatasetCatalog.get(name)[share]:
        instances = detections(found.get(record["image_id"], []))
        if masks:
            instances.pred_masks = torch.ones(len(instances), 160, 200, dtype=torch.bool)
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()


@pytest.mark.parametrize("year", [2007, 2012])
def test_a_detection_of_a_difficult_object_counts_neither_way(register, tmp_path, year):
    """One of two objects is found. Counting the difficult one, it would be two of three; taking it
    for background, the best detection would be wrong."""
    name = register(DIFFICULT_FIRST, year)
    results = evaluate(name, tmp_path, ON_THE_DIFFICULT_ONE)
    assert results.keys() == {"bbox", "voc"}
    for metric in ("AP", "AP50", "AP75"):
        assert results["bbox"][metric] == pytest.approx(HALF["coco"])
        # VOC's mean is over both classes, and there are no cats; COCO's leaves them out.
        assert results["voc"][metric] == pytest.approx(HALF[year] / 2)
    assert results["bbox"]["AP-dog"] == pytest.approx(HALF["coco"])
    assert math.isnan(results["bbox"]["AP-cat"])


def test_without_difficult_objects(register, tmp_path):
    """Found, in this order: one object exactly, nothing, the other with an IoU of 0.62."""
    images = {"1": [voc_object(box=LEFT)], "2": [voc_object(box=LEFT), voc_object("cat", RIGHT)]}
    found = {"1": [(0.9, LEFT), (0.8, RIGHT)], "2": [(0.7, (1, 1, 62, 100))]}
    results = evaluate(register(images), tmp_path, found)
    # At IoU 0.50, 0.55 and 0.60 the last is right: precision 2/3 at the recalls above 1/2.
    coco = [(51 + 50 * 2 / 3) / 101] * 3 + [51 / 101] * 7
    voc = [(6 + 5 * 2 / 3) / 11] * 3 + [6 / 11] * 7
    assert results["bbox"]["AP-dog"] == pytest.approx(10 * sum(coco))
    assert results["bbox"]["AP"] == pytest.approx(10 * sum(coco) / 2)  # no cat is found
    assert results["voc"]["AP"] == pytest.approx(10 * sum(voc) / 2)
    assert results["voc"]["AP50"] == pytest.approx(100 * voc[0] / 2)
    assert results["voc"]["AP75"] == pytest.approx(100 * voc[-1] / 2)


def test_where_the_two_differ_on_difficult_objects(register, tmp_path):
    """A detection of a part of one: COCO's crowd regions forgive it, VOC does not."""
    images = {"1": [voc_object(box=LEFT, difficult=1), voc_object(box=RIGHT)], "2": []}
    found = {"1": [(0.9, (1, 1, 30, 30)), (0.8, RIGHT)]}
    results = evaluate(register(images), tmp_path, found)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["voc"]["AP"] == pytest.approx(50 / 2)


def test_no_detections(register, tmp_path):
    results = evaluate(register(DIFFICULT_FIRST), tmp_path, {})
    assert math.isnan(results["bbox"]["AP"])  # as Detectron2 has it for COCO
    assert results["voc"] == {"AP": 0, "AP50": 0, "AP75": 0}


def test_masks_are_not_evaluated(register, tmp_path):
    name = register(DIFFICULT_FIRST)
    results = evaluate(name, tmp_path, ON_THE_DIFFICULT_ONE, masks=True)
    assert results.keys() == {"bbox", "voc"}
    assert results["bbox"]["AP"] == pytest.approx(HALF["coco"])


def test_no_other_runs_ground_truth_is_used(register, tmp_path):
    """Neither a file in the output folder, nor the folder of an evaluation before this one."""
    name = register(DIFFICULT_FIRST)
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        stale = {"images": [], "categories": [], "annotations": []}
        (tmp_path / folder / f"{name}_coco_format.json").write_text(json.dumps(stale))
        results = evaluate(name, tmp_path / folder, ON_THE_DIFFICULT_ONE)
        assert results["bbox"]["AP"] == pytest.approx(HALF["coco"])
        written = json.loads((tmp_path / folder / f"{name}_coco_format.json").read_text())
        assert [a["iscrowd"] for a in written["annotations"]] == [1, 0, 0]
        shutil.rmtree(tmp_path / folder)


def evaluate_half(dirname, folder):
    """Each process has half of the images, as from Detectron2's sampler."""
    register_voc("small", dirname, "train", CLASSES, year=2007)
    rank = comm.get_rank()
    results = evaluate("small", folder, ON_THE_DIFFICULT_ONE, slice(rank, rank + 1))
    with open(f"{folder}/rank{rank}.json", "w") as stream:
        json.dump(results, stream)


def test_two_processes(register, tmp_path, forked):
    dirname = MetadataCatalog.get(register(DIFFICULT_FIRST)).dirname
    launch(evaluate_half, 2, args=(dirname, str(tmp_path)), device="cpu")
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2))
    assert first["bbox"]["AP"] == pytest.approx(HALF["coco"])
    assert first["voc"]["AP"] == pytest.approx(HALF[2007] / 2)
    assert second == {}


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_detector_is_evaluated(register, tmp_path, threshold):
    """From the checks to the table, with many random detections, and with none."""
    name = register(DIFFICULT_FIRST)
    cfg = tiny_config(
        *("DATASETS.TEST", (name,)),
        *("DATALOADER.NUM_WORKERS", 0),
        *("INPUT.MIN_SIZE_TEST", 64),
        *("MODEL.ROI_HEADS.NUM_CLASSES", len(CLASSES)),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", threshold),
        *("OUTPUT_DIR", str(tmp_path / "run")),
    )
    weights = tmp_path / "weights.pth"
    weights.touch()
    cfg.MODEL.WEIGHTS = str(weights)
    check_run(cfg, eval_only=True, resume=False)
    results = SWNTrainer.test(cfg, tiny_model(cfg))
    assert results.keys() == {"bbox", "voc"}
    assert math.isnan(results["bbox"]["AP"]) == (threshold == 1.0)
    assert 0 <= results["voc"]["AP"] <= 100
