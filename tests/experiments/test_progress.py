import pytest

from swn_d2.experiments.progress import Work, time_left
from swn_d2.experiments.runner import parse_evaluation


def test_time_left_is_measured_by_row():
    done = [Work("slow", 100, 200.0), Work("fast", 100, 50.0), Work("fast", 300, 150.0)]
    assert time_left([Work("fast", 40)], done, 1) == pytest.approx(20)
    assert time_left([Work("slow", 40)], done, 1) == pytest.approx(80)
    # A row that has not run yet takes what all took: 400 s for 500 iterations.
    assert time_left([Work("new", 50)], done, 1) == pytest.approx(40)


def test_jobs_share_the_time_but_not_a_run():
    done = [Work("a", 100, 100.0)]
    to_do = [Work("a", 30), Work("a", 10), Work("a", 20)]
    assert time_left(to_do, done, 1) == pytest.approx(60)
    assert time_left(to_do, done, 2) == pytest.approx(30)
    assert time_left(to_do, done, 3) == pytest.approx(30)  # the longest


def test_evaluations_are_measured_by_evaluations():
    done = [Work("a", 100, 100.0), Work("soft", 0, 8.0), Work("soft", 0, 10.0)]
    assert time_left([Work("soft", 0)], done, 1) == pytest.approx(9)
    assert time_left([Work("soft", 0)], done[:1], 1) == 0
    assert time_left([Work("a", 1)], done[1:], 1) is None
    assert time_left([], done, 1) == 0


def log(*lines):
    return "\n".join(f"\x1b[32m[11/22 18:00:00 d2.engine.defaults]: \x1b[0m{x}" for x in lines)


def evaluation(name, task, values):
    return (
        f"Evaluation results for {name} in csv format:",
        f"copypaste: Task: {task}",
        "copypaste: AP,AP50,APl",
        f"copypaste: {values}",
    )


def test_the_last_evaluation_counts():
    text = log(
        *evaluation("mine", "bbox", "1.0000,2.0000,nan"), *evaluation("mine", "bbox", "3.5,4,-1.5")
    )
    assert parse_evaluation(text) == {"bbox/AP": 3.5, "bbox/AP50": 4, "bbox/APl": -1.5}


def test_boxes_and_masks():
    text = log(*evaluation("my own", "bbox", "1,2,nan"), *evaluation("", "segm", "5,6,7")[1:])
    assert parse_evaluation(text) == {
        **{"bbox/AP": 1, "bbox/AP50": 2, "bbox/APl": None},
        **{"segm/AP": 5, "segm/AP50": 6, "segm/APl": 7},
    }


def test_nothing_detected_is_zero():
    assert parse_evaluation(log(*evaluation("mine", "bbox", "nan,nan,nan"))) == {
        "bbox/AP": 0,
        "bbox/AP50": 0,
        "bbox/APl": 0,
    }


def test_several_test_sets():
    text = log(*evaluation("a", "bbox", "1,2,3"), *evaluation("b", "voc", "4,5,6"))
    assert parse_evaluation(text) == {
        **{"a/bbox/AP": 1, "a/bbox/AP50": 2, "a/bbox/APl": 3},
        **{"b/voc/AP": 4, "b/voc/AP50": 5, "b/voc/APl": 6},
    }
    assert parse_evaluation("") == {}
