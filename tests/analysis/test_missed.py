"""Figure 4: which images are drawn, and what is counted."""

import json
import re

import pytest
from detectron2.data import MetadataCatalog

from swn_d2.analysis.missed import draw_missed, most
from swn_d2.analysis.run_folder import RunFolder
from swn_d2.data import make_digit_scenes, register_coco
from swn_d2.engine.start import EVALUATION_CONFIG
from swn_d2.errors import UserError
from swn_d2.files import write_text
from tests.tiny import tiny_config


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
    """Makes the folder of a run that found everything but some objects, of some of which it got
    the class wrong."""

    def make(name, missed=(), datasets=("other", "missed_digits"), score=0.5, wrong=()):
        folder = tmp_path / name
        (folder / "inference").mkdir(parents=True)
        (folder / "config.yaml").write_text(tiny_config("DATASETS.TEST", datasets).dump())
        results = [
            {key: a[key] for key in ("image_id", "category_id", "bbox")}
            | {"score": 0.49 if a["id"] in missed else score}
            for a in scenes["annotations"]
        ]
        for result, a in zip(results, scenes["annotations"], strict=True):
            if a["id"] in wrong:
                result["category_id"] = 1 + a["category_id"] % 10
        (folder / "inference" / "coco_instances_results.json").write_text(json.dumps(results))
        return RunFolder(folder)

    return make


def counts(figure):
    """What is said below each picture: found, missed, false positives."""
    return [numbers(axes.get_xlabel()) for axes in figure.axes if axes.images]


def numbers(text):
    return tuple(
        map(int, re.fullmatch(r"found (\d+), missed (\d+), false positives (\d+)", text).groups())
    )


def sums(figure):
    """Run -> what is said of all images."""
    lines = [line.split(": ") for line in figure.get_suptitle().splitlines()[1:-1]]
    return {name: numbers(text) for name, text in lines}


def ids_in(scenes, image):
    image_id = scenes["images"][image]["id"]
    return [a["id"] for a in scenes["annotations"] if a["image_id"] == image_id]


def test_runs_side_by_side_and_the_images_where_they_differ(scenes, make_run):
    three, five = ids_in(scenes, 3), ids_in(scenes, 5)
    both = ids_in(scenes, 4)[:2]  # does not tell them apart
    runs = [make_run("uniform", [*three[:1], *both]), make_run("swn", [*five[:2], *both])]
    figure = draw_missed(runs, num_images=2)
    assert counts(figure) == [
        *((len(five), 0, 0), (len(five) - 2, 2, 0)),
        *((len(three) - 1, 1, 0), (len(three), 0, 0)),
    ]
    total = len(scenes["annotations"]) - 1  # without the crowd, and what is detected on it
    assert sums(figure) == {"uniform": (total - 3, 3, 0), "swn": (total - 4, 4, 0)}
    assert [axes.get_title() for axes in figure.axes[:2]] == ["uniform", "swn"]
    title = figure.get_suptitle()
    assert "images of missed_digits, detections with a score of 50% or more, IoU 0.5:" in title
    assert "some of the runs find and others miss" in title
    # What is drawn: as many as are counted, and labels of what is wrong alone.
    assert [len(axes.patches) for axes in figure.axes] == [len(five)] * 2 + [len(three)] * 2
    assert [len(axes.texts) for axes in figure.axes] == [0, 2, 1, 0]


def test_a_single_run_shows_what_is_wrong_most(scenes, make_run):
    # As many false positives: detections of another class, whose objects are missed.
    run = make_run("swn", [ids_in(scenes, 2)[0]], wrong=ids_in(scenes, 4)[:1])
    figure = draw_missed([run], num_images=2)
    four, two = (len(ids_in(scenes, i)) for i in (4, 2))
    assert counts(figure) == [(four - 1, 1, 1), (two - 1, 1, 0)]
    assert "Images with the most missed objects and false positives." in figure.get_suptitle()
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert len(labels) == 2 and any("50%" in label for label in labels)
    (total,) = sums(figure).values()
    assert total == (len(scenes["annotations"]) - 3, 2, 1)


def test_the_threshold_is_that_of_scores(scenes, make_run):
    run = make_run("run", ids_in(scenes, 1), score=0.9)
    low, high = (draw_missed([run], 1, score_threshold=t) for t in (0.4, 0.95))
    (of_all,) = sums(low).values()
    assert of_all == (len(scenes["annotations"]) - 1, 0, 0)
    (of_all,) = sums(high).values()
    assert of_all == (0, len(scenes["annotations"]) - 1, 0) and "95%" in high.get_suptitle()


def test_pictures_are_large_enough_for_many_boxes(make_run):
    runs = [make_run(name) for name in "abcd"]
    for figure in (draw_missed(runs), draw_missed(runs[:1])):
        figure.draw_without_rendering()
        widths = [axes.get_window_extent().width / figure.dpi for axes in figure.axes]
        assert min(widths) > 4


def test_an_evaluation_of_other_data_than_the_trainings(make_run):
    run = make_run("run", datasets=("unknown",))
    cfg = tiny_config("DATASETS.TEST", ("missed_digits",), "OUTPUT_DIR", str(run.path))
    write_text(run.path / EVALUATION_CONFIG, cfg.dump())  # as SWNTrainer.test does
    draw_missed([run])


def test_what_cannot_be_drawn_is_one_sentence(make_run, tmp_path, clean_catalog):
    run = make_run("run")
    metadata = MetadataCatalog.get("missed_digits")
    register_coco("others", metadata.json_file, metadata.image_root)
    with pytest.raises(UserError, match="run was evaluated on missed_digits and other on others"):
        draw_missed([run, make_run("other", datasets=("others",))])
    with pytest.raises(UserError, match="no data set named unknown"):
        draw_missed([make_run("another", datasets=("unknown",))])
    (tmp_path / "gone.json").write_text("{}")
    register_coco("gone", str(tmp_path / "gone.json"), str(tmp_path))
    (tmp_path / "gone.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*gone\.json: No such file"):
        draw_missed([make_run("missing", datasets=("gone",))])
    for content, message in (
        (
            '[{"image_id": 1, "category_id": 77, "bbox": [0, 0, 1, 1], "score": 1}]',
            "detections of category 77, which .*instances_val.json does not have",
        ),
        (
            '[{"image_id": "x", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]',
            "detections of image 'x', which .*instances_val.json does not have",
        ),
        ("[", "there are no detections: .*--eval-only"),
        (None, "there are no detections: .*--eval-only"),
    ):
        results = run.path / "inference" / "coco_instances_results.json"
        results.unlink() if content is None else results.write_text(content)
        with pytest.raises(UserError, match=message):
            draw_missed([RunFolder(run.path)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty does not say what it was evaluated on"):
        draw_missed([RunFolder(tmp_path / "empty")])
    with pytest.raises(UserError, match="no run"):
        draw_missed([])
