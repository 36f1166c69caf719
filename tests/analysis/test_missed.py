"""Figure 4: what a run missed, against COCO's own evaluation, and which images are drawn."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from swn_d2.analysis.missed import draw_missed, find_objects, most
from swn_d2.analysis.run_folder import RunFolder
from swn_d2.data import make_digit_scenes, register_coco
from swn_d2.engine.start import EVALUATION_CONFIG
from swn_d2.errors import UserError
from swn_d2.evaluation.pictures import Objects
from swn_d2.files import write_text
from tests.tiny import tiny_config

BOX = (10.0, 10.0, 20.0, 20.0)


def objects(*rows):
    """From (box, class, score)."""
    return Objects.from_rows(list(rows))


def found(truth, *detections, **options):
    return find_objects(objects(*truth), objects(*detections), **options).tolist()


def test_an_object_is_found_by_a_detection_of_its_class():
    truth = [(BOX, 0, 1.0), ((30.0, 30.0, 40.0, 40.0), 1, 1.0)]
    assert found(truth) == [False, False]
    assert found([], (BOX, 0, 0.9)) == []
    assert found(truth, (BOX, 0, 0.9)) == [True, False]
    assert found(truth, (BOX, 1, 0.9)) == [False, False]


def test_an_iou_of_the_threshold_is_enough():
    half = (10.0, 10.0, 20.0, 15.0)  # IoU 1/2
    assert found([(BOX, 0, 1.0)], (half, 0, 0.9)) == [True]
    assert found([(BOX, 0, 1.0)], (half, 0, 0.9), iou_threshold=0.51) == [False]


def test_a_detection_finds_one_object():
    near = (10.0, 10.0, 20.0, 19.0)
    truth = [(near, 0, 1.0), (BOX, 0, 1.0)]
    assert found(truth, (BOX, 0, 0.9)) == [False, True]
    # The second takes what is left.
    assert found(truth, (BOX, 0, 0.9), (BOX, 0, 0.8)) == [True, True]


def test_the_highest_score_chooses_first():
    left, middle, right = ((x, 0.0, x + 10, 10.0) for x in (0.0, 2.0, 5.0))
    truth = [(left, 0, 1.0), (right, 0, 1.0)]
    # The first overlaps both objects and prefers the left; the second overlaps it alone.
    assert found(truth, (middle, 0, 0.9), (left, 0, 0.8)) == [True, False]
    assert found(truth, (left, 0, 0.9), (middle, 0, 0.8)) == [True, True]
    assert found(truth, (middle, 0, 0.8), (left, 0, 0.9)) == [True, True]


def test_the_rule_is_that_of_coco(capsys):
    random = np.random.default_rng(0)
    images, truths, detections = 20, [], []
    for _ in range(images):
        corners = random.uniform(0, 60, (8, 2))
        boxes = np.hstack([corners, corners + random.uniform(15, 40, (8, 2))])
        truths.append(Objects(boxes, random.integers(0, 2, 8), np.ones(8)))
        picks = random.integers(0, 8, 20)
        jittered = boxes[picks] + random.normal(0, 3, (20, 4))
        detections.append(Objects(jittered, random.integers(0, 2, 20), random.uniform(0.5, 1, 20)))

    def entries(per_image):
        return [
            {
                "image_id": image,
                "category_id": int(class_),
                "bbox": [*box[:2], *(box[2:] - box[:2])],
                "area": float(np.prod(box[2:] - box[:2])),
                "iscrowd": 0,
                "score": float(score),
            }
            for image, o in enumerate(per_image)
            for box, class_, score in zip(o.boxes, o.classes, o.scores, strict=True)
        ]

    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": 0}, {"id": 1}],
        "annotations": [{**e, "id": i} for i, e in enumerate(entries(truths), start=1)],
    }
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(entries(detections)), "bbox")
    evaluation.params.areaRng = evaluation.params.areaRng[:1]
    evaluation.evaluate()
    by_coco = np.zeros(8 * images, dtype=bool)
    for result in filter(None, evaluation.evalImgs):
        by_coco[np.array(result["gtIds"]) - 1] = result["gtMatches"][0] > 0  # at IoU 0.5
    by_us = np.concatenate([find_objects(*p) for p in zip(truths, detections, strict=True)])
    assert 0.2 < by_coco.mean() < 0.8
    assert (by_us == by_coco).all()


@pytest.mark.parametrize(
    "values, number, expected",
    [
        ([1, 5, 3, 4], 2, [1, 3]),
        ([1, 5, 3, 5], 3, [1, 3, 2]),
        ([4, 5, 3, 3], 3, [1, 0, 2]),
        ([0, 2, 0, 0, 0, 0, 0], 3, [1, 0, 4]),
        ([3, 3, 3, 3, 3, 3], 3, [0, 2, 4]),
        ([1, 2], 4, [1, 0]),
        ([], 4, []),
    ],
)
def test_the_most(values, number, expected):
    assert most(values, number) == expected


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Six images with several digits, one of which is a crowd: their COCO-format content."""
    root = tmp_path_factory.mktemp("missed") / "digits"
    make_digit_scenes(root, num_train=1, num_val=6, image_size=(96, 64))
    file = root / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(content))
    register_coco("missed_digits", str(file), str(root / "val"))
    return content


@pytest.fixture
def make_run(tmp_path, scenes):
    """Makes the folder of a run that found everything but some objects."""

    def make(name, missed=(), datasets=("other", "missed_digits"), score=0.5):
        folder = tmp_path / name
        (folder / "inference").mkdir(parents=True)
        (folder / "config.yaml").write_text(tiny_config("DATASETS.TEST", datasets).dump())
        results = [
            {key: a[key] for key in ("image_id", "category_id", "bbox")}
            | {"score": 0.49 if a["id"] in missed else score}
            for a in scenes["annotations"]
        ]
        (folder / "inference" / "coco_instances_results.json").write_text(json.dumps(results))
        return RunFolder(folder)

    return make


def counts(figure, columns):
    labels = [axes.get_xlabel() for axes in figure.axes]
    return [labels[i : i + columns] for i in range(0, len(labels), columns)]


def ids_in(scenes, image):
    image_id = scenes["images"][image]["id"]
    return [a["id"] for a in scenes["annotations"] if a["image_id"] == image_id]


def test_runs_in_rows_and_the_images_where_they_differ(scenes, make_run):
    three, five = ids_in(scenes, 3), ids_in(scenes, 5)
    both = ids_in(scenes, 4)[:2]  # does not tell them apart
    runs = [make_run("uniform", [*three[:1], *both]), make_run("swn", [*five[:2], *both])]
    figure = draw_missed(runs, num_images=2)
    assert counts(figure, 2) == [
        [f"missed 0 of {len(five)}", f"missed 1 of {len(three)}"],
        [f"missed 2 of {len(five)}", f"missed 0 of {len(three)}"],
    ]
    total = len(scenes["annotations"]) - 1  # without the crowd
    names = [figure.axes[i].get_ylabel() for i in (0, 2)]
    assert names == [f"uniform\nmissed 3 of all {total}", f"swn\nmissed 4 of all {total}"]
    assert "some of the runs find and others miss, out of missed_digits" in figure.get_suptitle()
    # What is marked: as many as are counted.
    marked = [sum("missed" in t.get_text() for t in axes.texts) for axes in figure.axes]
    assert marked == [0, 1, 2, 0]
    drawn = [sum("50%" in t.get_text() for t in axes.texts) for axes in figure.axes]
    assert drawn == [len(five), len(three) - 1, len(five) - 2, len(three)]


def test_a_single_run_shows_what_it_missed_most(scenes, make_run):
    missed = [*ids_in(scenes, 2)[:1], *ids_in(scenes, 4)[:2]]
    figure = draw_missed([make_run("swn", missed)], num_images=2)
    expected = [f"missed {n} of {len(ids_in(scenes, i))}" for n, i in ((2, 4), (1, 2))]
    assert counts(figure, 2) == [expected]
    assert figure.get_suptitle().startswith("Images with the most missed objects")


def test_the_threshold_is_that_of_scores(scenes, make_run):
    run = make_run("run", ids_in(scenes, 1), score=0.9)
    low, high = (draw_missed([run], 1, score_threshold=t) for t in (0.4, 0.95))
    assert counts(low, 1) == [[f"missed 0 of {len(ids_in(scenes, 0)) - 1}"]]  # the first of all
    assert high.axes[0].get_ylabel().startswith("run\nmissed ") and not any(
        "%" in t.get_text() for t in high.axes[0].texts
    )


def test_an_evaluation_of_other_data_than_the_trainings(make_run):
    run = make_run("run", datasets=("unknown",))
    cfg = tiny_config("DATASETS.TEST", ("missed_digits",), "OUTPUT_DIR", str(run.path))
    write_text(run.path / EVALUATION_CONFIG, cfg.dump())  # as SWNTrainer.test does
    draw_missed([run])


def test_what_cannot_be_drawn_is_one_sentence(make_run, tmp_path, clean_catalog):
    run = make_run("run")
    with pytest.raises(UserError, match="run was evaluated on missed_digits and other on unknown"):
        draw_missed([run, make_run("other", datasets=("unknown",))])
    with pytest.raises(UserError, match="no data set named unknown"):
        draw_missed([RunFolder(tmp_path / "other")])
    (tmp_path / "gone.json").write_text("{}")
    register_coco("gone", str(tmp_path / "gone.json"), str(tmp_path))
    (tmp_path / "gone.json").unlink()
    with pytest.raises(
        UserError, match=r"the data set gone cannot be read: .*gone\.json.* --register-coco"
    ):
        draw_missed([make_run("missing", datasets=("gone",))])
    results = run.path / "inference" / "coco_instances_results.json"
    results.write_text('[{"image_id": 1, "category_id": 77, "bbox": [0, 0, 1, 1], "score": 1}]')
    with pytest.raises(UserError, match="category 77, which missed_digits does not have"):
        draw_missed([run])
    results.write_text("[")
    with pytest.raises(UserError, match="there are no detections: .*--eval-only"):
        draw_missed([run])
    results.unlink()
    with pytest.raises(UserError, match="there are no detections: .*--eval-only"):
        draw_missed([run])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty does not say what it was evaluated on"):
        draw_missed([RunFolder(tmp_path / "empty")])
    with pytest.raises(UserError, match="no run"):
        draw_missed([])
