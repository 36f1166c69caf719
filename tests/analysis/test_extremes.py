"""Figure 1: the samples that are shown are the extreme ones."""

import pytest

from swn_d2 import UserError
from swn_d2.analysis.extremes import draw_extremes, extreme_crops, shown_weight, since_eased_in
from swn_d2.recording import REASONS
from tests.analysis.samples import crop, record, run_folder

LOSSES = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]
WEIGHTS = [0.5, 0.6, 0.8, 1.0, 1.2, 1.4]


def images(chosen):
    return [crop.image for _, crop in chosen]


def weighted(column, *crops, iteration=0):
    """A record of samples whose losses and weights differ."""
    columns = {"cls_loss": LOSSES, column: WEIGHTS[::-1]}
    return record(iteration, iou=[0.5] * 6, crops=crops, **columns)


@pytest.mark.parametrize("column", ["cls_weight", "box_weight"])
def test_loss_and_weight_count_by_rank(column):
    extreme = {
        # Rank of the loss less that of the weight: 5/6 - 1/6, 2/6 - 0, 1 - 5/6. By the loss, or by
        # its quotient with the weight, the last would be the first; by the weight the second.
        "hard_but_light": {"both": (2.0, 0.55), "weight": (0.3, 0.45), "loss": (30.0, 1.3)},
        # 1/6 - 5/6, 0 - 2/6, 5/6 - 1; by the loss or the quotient the second, by the weight the
        # last.
        "easy_but_heavy": {"both": (0.15, 1.3), "loss": (0.001, 0.65), "weight": (1.7, 1.5)},
    }
    crops = [
        crop(reason, name, cls_loss=loss, **{column: weight})
        for reason, of_reason in extreme.items()
        for name, (loss, weight) in of_reason.items()
    ]
    chosen = extreme_crops([weighted(column, *crops[::-1])])
    assert {reason: images(chosen[reason]) for reason in REASONS} == {
        **{reason: list(of_reason) for reason, of_reason in extreme.items()},
        "mismatch": [],
    }


def test_of_equal_ranks_the_larger_loss_is_harder():
    crops = [
        crop(reason, f"{loss}", cls_loss=loss, cls_weight=0.4 if reason[0] == "h" else 2.0)
        for reason in REASONS[:2]
        for loss in (5.0, 7.0, 6.0, 0.01, 0.03, 0.02)
    ]
    chosen = extreme_crops([weighted("cls_weight", *crops)], 3)
    assert images(chosen["hard_but_light"]) == ["7.0", "6.0", "5.0"]
    assert images(chosen["easy_but_heavy"]) == ["0.01", "0.02", "0.03"]


def test_score_and_iou_apart_in_both_directions():
    pairs = {"close": (0.5, 0.6), "sure": (0.95, 0.1), "unsure": (0.1, 0.9), "between": (0.2, 0.8)}
    crops = [crop("mismatch", k, score=score, iou=iou) for k, (score, iou) in pairs.items()]
    chosen = extreme_crops([weighted("box_weight", *crops[:2]), weighted("box_weight", *crops[2:])])
    assert images(chosen["mismatch"]) == ["sure", "unsure", "between", "close"]
    assert images(extreme_crops([weighted("box_weight", *crops)], 2)["mismatch"]) == [
        "sure",
        "unsure",
    ]


def test_an_object_is_shown_once_where_it_is_most_extreme():
    first = crop("mismatch", "a", gt_class=3, score=0.9, iou=0.2)
    again = crop("mismatch", "a", gt_class=3, score=0.9, iou=0.1)
    other = crop("mismatch", "a", gt_class=4, score=0.5, iou=0.4)
    records = [weighted("cls_weight", first), weighted("cls_weight", again, other, iteration=9)]
    chosen = extreme_crops(records)["mismatch"]
    assert [(record.iteration, crop) for record, crop in chosen] == [(9, again), (9, other)]


def test_the_weight_is_that_of_the_first_task_that_has_one():
    assert shown_weight([record(0, cls_loss=[1, 2])]) is None
    assert shown_weight([record(0, box_weight=[1, 2])]) == "box_weight"
    assert shown_weight([record(0, box_weight=[1, 2]), record(1, cls_weight=[1, 0.9])]) == (
        "cls_weight"
    )


def test_a_run_whose_first_records_are_of_an_earlier_version():
    """A crop without the shown weight has weight 1."""
    older = record(0, cls_loss=[1.0], crops=[crop(REASONS[0], "old", cls_loss=1.0)])
    newer = record(
        20,
        cls_loss=[1.0, 1.0],
        label_loss=[1.0, 1.0],
        label_weight=[0.1, 1.9],
        crops=[crop(REASONS[0], "new", cls_loss=1.0, label_weight=0.1)],
    )
    assert shown_weight([older, newer]) == "label_weight"
    chosen = extreme_crops([older, newer])[REASONS[0]]
    assert [c.image for _, c in chosen] == ["new", "old"]


def test_unweighted_samples_are_ranked_by_their_loss():
    crops = [crop("hard_but_light", str(loss), cls_loss=loss) for loss in (0.3, 2.0, 0.9)]
    samples = record(0, cls_loss=LOSSES, crops=crops)
    assert images(extreme_crops([samples])["hard_but_light"]) == ["2.0", "0.9", "0.3"]


@pytest.mark.parametrize(
    "opts, first",
    [
        (["MODEL.SWN.EASE_IN", [0.2, 0.6]], 60),
        (["MODEL.SWN.EASE_IN", [0.5, 1.0]], 90),  # else nothing would be left
        (["MODEL.SAMPLE_WEIGHTER.NAME", "Uniform"], 50),
    ],
)
def test_samples_count_after_the_weights_are_eased_in(opts, first, tmp_path):
    run = run_folder(tmp_path, [record(i, cls_loss=[1]) for i in range(100)], *opts)
    assert [r.iteration for r in since_eased_in(run)] == list(range(first, 100))


def test_what_is_missing_is_said(tmp_path):
    without = run_folder(tmp_path / "without", [])
    with pytest.raises(UserError, match="cannot read the recording"):
        draw_extremes([without])
    early = run_folder(tmp_path / "early", [record(3, cls_loss=[1])], "MODEL.SWN.EASE_IN", [0, 0.5])
    with pytest.raises(UserError, match="early are eased in at iteration 50.* ends at 3; train it"):
        draw_extremes([early])
    bare = run_folder(tmp_path / "bare", [record(3, cls_loss=[1])])
    with pytest.raises(UserError, match="bare has no picture"):
        draw_extremes([bare])


def test_every_crop_has_its_numbers_under_it(tmp_path):
    pictured = [
        crop("hard_but_light", "a", 7, cls_loss=4.321, box_weight=0.567, iou=0.62, score=0.123),
        crop("mismatch", "b", 1, score=0.98, iou=0.04),
    ]
    good = run_folder(tmp_path / "good", [weighted("box_weight", *pictured, iteration=1234)])
    without = run_folder(tmp_path / "without", [])
    figure = draw_extremes([without, good])  # what has nothing to show is left out
    block = figure.subfigs[0]
    titles = [axis.get_title(loc="left") for axis in block.axes[::4]]
    assert titles == [
        "large classification loss, small box weight",
        "small classification loss, large box weight",
        "score and IoU far apart",
    ]
    assert block.get_suptitle() == "good"
    labels = [axis.get_xlabel() for axis in block.axes]
    assert labels[0] == (
        "class 7\niteration 1,234\nloss 4.3\nbox weight 0.57\nIoU 0.62, score 0.12"
    )
    assert [bool(label) for label in labels] == [True] + 7 * [False] + [True] + 3 * [False]
    solid, dashed = block.axes[0].patches[1], block.axes[0].patches[0]
    assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
    assert solid.get_bbox().extents.tolist() == [5, 5, 40, 30]
    assert dashed.get_bbox().extents.tolist() == [8, 8, 45, 35]
