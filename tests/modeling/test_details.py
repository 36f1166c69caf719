"""What some weighters ask for beside the statistics, on every detector."""

import pytest
import torch
from detectron2.structures import Boxes

from swn_d2.errors import UserError
from swn_d2.modeling import objects
from swn_d2.modeling.box_losses import matched_pairwise_iou
from swn_d2.modeling.objects import match_objects
from tests.tiny import NUM_CLASSES, batch, empty_batch, tiny_config, tiny_model, training_losses
from tests.tiny import weighters as weighters_of


def every_statistics_of(detector, inputs):
    """The statistics that the weighters of a model get."""
    model = tiny_model(tiny_config(detector=detector))
    seen = []
    for weighter in weighters_of(model):
        weighter.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    training_losses(model, inputs)
    return seen


def statistics_of(detector, inputs):
    """The statistics that the last weighter of a model gets."""
    return every_statistics_of(detector, inputs)[-1]


@pytest.mark.parametrize("detector", ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet"])
def test_details_agree_with_the_statistics(detector):
    # Two images without objects, and with their objects counted from 0: the first is 2's.
    inputs = [*empty_batch(), *batch()]
    statistics = statistics_of(detector, inputs)
    num_samples = len(statistics)
    foreground = statistics.foreground
    is_background = ~statistics.is_foreground
    assert len(foreground) > 0 and is_background.any()

    image, gt_class = statistics.detail("image"), statistics.detail("gt_class")
    assert (image.diff() >= 0).all() and set(image.tolist()) == {0, 1, 2, 3}
    assert (gt_class[is_background] == NUM_CLASSES).all()

    objects = statistics.detail("object")
    assert (objects[is_background] == -1).all()
    targets = [x["instances"].to("cpu") for x in inputs]
    all_boxes = torch.cat([t.gt_boxes.tensor for t in targets])
    all_classes = torch.cat([t.gt_classes for t in targets])
    all_images = torch.tensor([2, 2, 3])
    assert (all_classes[objects[foreground]] == gt_class[foreground]).all()
    assert (all_images[objects[foreground]] == image[foreground]).all()

    # The predicted box of a positive has the statistic's IoU with just that object.
    pred_boxes = statistics.detail("pred_boxes")
    assert pred_boxes.shape == (num_samples, 4)
    iou = matched_pairwise_iou(Boxes(pred_boxes[foreground]), Boxes(all_boxes[objects[foreground]]))
    torch.testing.assert_close(iou, statistics.iou[foreground])

    prob, score = statistics.detail("true_prob"), statistics.detail("pred_score")
    torch.testing.assert_close(prob.detach()[foreground], statistics.prob[foreground])
    assert prob.requires_grad and not score.requires_grad
    if detector == "retinanet":
        torch.testing.assert_close(prob.detach()[is_background], 1 - score[is_background])
    else:
        assert (prob.detach()[is_background] + score[is_background] < 1).all()  # 2 more classes
        assert (score >= (1 - prob.detach()) / NUM_CLASSES)[is_background].all()
    assert (score >= statistics.prob - 1e-6).all()
    assert (statistics.detail("given_weight") == 1).all()


@pytest.mark.parametrize("most_pairs", [objects._MOST_PAIRS, 5], ids=["at once", "in pieces"])
def test_objects_of_equal_boxes_are_told_apart_by_class_and_image(most_pairs, monkeypatch):
    monkeypatch.setattr(objects, "_MOST_PAIRS", most_pairs)
    inputs = batch()
    for x in inputs:  # the same two objects in both images, with one box and two classes
        x["instances"] = batch()[0]["instances"]
        x["instances"].gt_boxes.tensor[1] = x["instances"].gt_boxes.tensor[0]
    box = inputs[0]["instances"].gt_boxes.tensor[:1]
    found = match_objects(
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([1, 0, 0, 1]),
        box.expand(4, 4),
        [x["instances"] for x in inputs],
    )
    assert found.tolist() == [1, 0, 2, 3]


def test_a_batch_without_objects_has_its_details():
    statistics = statistics_of("faster_rcnn", empty_batch())
    for name in ("image", "gt_class", "object", "true_prob", "pred_score", "given_weight"):
        assert len(statistics.detail(name)) == len(statistics) > 0
    assert (statistics.detail("object") == -1).all()


def numbered(inputs, numbers):
    """The images, with the numbers of each one's annotations, or without where they are None."""
    for x, of_image in zip(inputs, numbers, strict=True):
        if of_image is not None:
            x["instances"].gt_annotation = torch.tensor(of_image, dtype=torch.long)
    return inputs


@pytest.mark.parametrize("detector", ["faster_rcnn", "cascade_rcnn", "retinanet"])
def test_annotations_are_known_by_their_numbers(detector):
    # Of the images without objects the mapper numbers those that have crowd regions.
    inputs = numbered([*empty_batch(), *batch()], [None, [], [11, 4], [0]])
    of_class_in_image = {(2, 0): 11, (2, 1): 4, (3, 0): 0}
    stages = every_statistics_of(detector, inputs)
    assert len(stages) == (3 if detector == "cascade_rcnn" else 1)
    for stage, statistics in enumerate(stages):
        annotations = statistics.detail("annotation")
        assert annotations.shape == (len(statistics),) and annotations.dtype == torch.int64
        assert (annotations[~statistics.is_foreground] == -1).all()
        positives = statistics.foreground
        image, gt_class = (statistics.detail(name)[positives] for name in ("image", "gt_class"))
        places = zip(image.tolist(), gt_class.tolist(), strict=True)
        expected = [of_class_in_image[place] for place in places]
        assert annotations[positives].tolist() == expected
        assert stage > 0 or set(expected) == {0, 4, 11}


def test_a_batch_without_objects_needs_no_numbers():
    statistics = statistics_of("faster_rcnn", empty_batch())
    assert (statistics.detail("annotation") == -1).all() and len(statistics) > 0


@pytest.mark.parametrize("numbers", [[None, None], [[0, 1], None]], ids=["no", "one"])
def test_images_without_numbers_are_one_clear_error(numbers):
    statistics = statistics_of("faster_rcnn", numbered(batch(), numbers))
    with pytest.raises(UserError, match="no numbers. Train with swn_d2.SWNTrainer.*DatasetMapper"):
        statistics.detail("annotation")


def test_what_a_detector_does_not_have_is_one_clear_error():
    with pytest.raises(UserError, match="log_variance"):
        statistics_of("retinanet", batch()).detail("log_variance")
