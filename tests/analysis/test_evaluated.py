"""Precision and recall, and confusions, drawn of the files of an evaluation."""

import json
from itertools import combinations

import numpy as np
import pytest
from matplotlib.text import Text

from swn_d2.analysis.confusions import confusions, draw_confusions
from swn_d2.analysis.precision_recall import draw_precision_recall, precision_recall
from swn_d2.analysis.run_folder import RunFolder
from swn_d2.errors import UserError
from tests.tiny import tiny_config


def box(place):
    return [40 * place, 10, 20, 20]


@pytest.fixture
def make_run(tmp_path):
    """Makes the folder of a run on a data set that is converted to COCO's format beside its
    results, as VOC's: an image for each class with two objects, of which the first was detected
    as ``detected`` says, and the second found."""

    def make(name, detected, num_classes=4, score=0.9):
        folder = tmp_path / name
        (folder / "inference").mkdir(parents=True)
        config = tiny_config("DATASETS.TEST", ("only_here",)).dump()
        (folder / "config.yaml").write_text(config)
        annotations, results = [], []
        for k in range(num_classes):
            for i in range(2):
                ids = {"id": 2 * k + i + 1, "image_id": k, "category_id": k}
                annotations.append(ids | {"bbox": box(i), "area": 400, "iscrowd": 0})
                class_ = detected.get(k, k) if i == 0 else k
                if class_ is not None:
                    result = {"image_id": k, "category_id": class_, "bbox": box(i)}
                    results.append(result | {"score": score})
        truth = {
            "images": [{"id": k} for k in range(num_classes)],
            "categories": [{"id": k, "name": f"thing {k}"} for k in range(num_classes)],
            "annotations": annotations,
        }
        for file, content in (
            ("coco_instances_results.json", results),
            ("only_here_coco_format.json", truth),
        ):
            (folder / "inference" / file).write_text(json.dumps(content))
        return RunFolder(folder)

    return make


def test_classes_are_in_the_order_of_what_the_second_run_gains(make_run):
    first, second = make_run("first", {1: None, 2: None}), make_run("second", {2: None, 3: None})
    curves = precision_recall([first, second])
    assert list(curves) == ["thing 1", "thing 0", "thing 2", "thing 3"]
    half = np.linspace(0, 1, 101) <= 0.5  # one of two objects is found, and nothing else
    assert curves["thing 1"] == pytest.approx(np.stack([half, np.ones(101)]))
    assert list(precision_recall([first])) == ["thing 0", "thing 3", "thing 1", "thing 2"]


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_a_panel_for_the_mean_and_for_each_class(make_run):
    runs = [make_run("first", {1: None}), make_run("second", {2: None, 3: None})]
    figure = draw_precision_recall(runs)
    assert titles(figure) == ["mean of all classes", *(f"thing {k}" for k in (1, 0, 2, 3))]
    mean = figure.axes[0]
    assert [text.get_text() for text in mean.texts] == ["87.6", "75.2"]  # (3 + 51 / 101) / 4, ...
    assert mean.get_lines()[1].get_ydata()[[0, 60]].tolist() == [100, 50]


def test_of_very_many_classes_the_telling_ones(make_run):
    runs = [make_run(name, d, num_classes=40) for name, d in (("a", {}), ("b", {35: None}))]
    for figure in (draw_precision_recall(runs), draw_precision_recall(runs[1:])):
        assert len(titles(figure)) == 25 and "thing 35" in titles(figure)
    assert "24 of 40 classes with the lowest AP50" in figure.get_supxlabel()


def test_what_is_taken_for_what(make_run):
    run = make_run("run", {0: 1, 1: None, 2: 0})
    expected = {(0, 1): 1, (1, None): 1, (2, 0): 1, **{(k, k): 1 + (k == 3) for k in range(4)}}
    assert confusions(run) == expected
    assert confusions(run, 0.95) == {(k, None): 2 for k in range(4)}


def test_a_matrix(make_run):
    figure = draw_confusions([make_run("a", {0: 1, 1: None}), make_run("b", {})])
    first, second = figure.axes
    assert titles(figure) == ["a", "b"]
    numbers = {text.get_position(): text.get_text() for text in first.texts}  # (column, row)
    assert numbers == {(k, k): "2" if k > 1 else "1" for k in range(4)} | {(1, 0): "1", (4, 1): "1"}
    assert [label.get_text() for label in first.get_yticklabels()][-1] == "background"
    assert [label.get_text() for label in first.get_xticklabels()][-1] == "missed"
    assert {text.get_text() for text in second.texts} == {"2"}
    assert "a score of 50% or more" in figure.get_supxlabel() and "IoU" in figure.get_supxlabel()


def test_of_many_classes_the_most_frequent_confusions(make_run):
    wrong = {0: 1, 2: 3, 4: None}
    figure = draw_confusions([make_run(n, wrong, num_classes=20) for n in "ab"])
    pairs, missed, nothing = figure.axes
    labels = [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes]
    assert labels == [["thing 0 as thing 1", "thing 2 as thing 3"], ["thing 4"], []]
    assert [text.get_text() for text in missed.texts] == ["1 (50%)"] * 2
    figure.draw_without_rendering()


@pytest.mark.parametrize("num_classes", [3, 12, 30])
@pytest.mark.parametrize("num_runs", [1, 3])
def test_no_text_is_on_another_or_cut_off(make_run, num_classes, num_runs):
    wrong = {k: (k + 1) % num_classes for k in range(0, num_classes, 2)}
    runs = [make_run(f"a run {i}", wrong, num_classes=num_classes) for i in range(num_runs)]
    for figure in (draw_confusions(runs), draw_precision_recall(runs)):
        figure.draw_without_rendering()
        texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
        places = [text.get_window_extent().padded(-1) for text in texts]
        assert len(places) > 3
        for place in places:
            assert place.x0 >= 0 and place.y0 >= 0
            assert place.x1 <= figure.bbox.x1 and place.y1 <= figure.bbox.y1
        places = [p for p, text in zip(places, texts, strict=True) if text.get_rotation() == 0]
        for one, other in combinations(places, 2):
            assert not one.overlaps(other)


def test_a_run_without_an_evaluation(make_run, tmp_path):
    run = make_run("run", {})
    (run.path / "inference" / "only_here_coco_format.json").unlink()
    for draw in (draw_precision_recall, draw_confusions):
        with pytest.raises(UserError, match="no data set named only_here"):
            draw([run])
        with pytest.raises(UserError, match="no run to draw"):
            draw([])
