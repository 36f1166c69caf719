"""check_adapter on torchvision's RetinaNet, with an adapter that makes one mistake."""

import copy
from dataclasses import replace

import pytest
import torch

from swn_d2.errors import UserError
from swn_d2.torchvision import weight_samples
from swn_d2.torchvision.dense import WeightedRetinaNetHead
from swn_d2.weighting import SWN, check_adapter, paired_iou
from tests.torchvision.tiny import batch, empty_batch, plain_and_weighted, tiny_model


class Mistaken(WeightedRetinaNetHead):
    """Each mistake changes what comes of the samples, or of the weighted losses."""

    def sample_losses(self, *arguments):
        return self.spoil_samples(*super().sample_losses(*arguments))

    def spoil_samples(self, losses, statistics):
        return losses, statistics

    def weighted(self, losses, statistics):
        return self.spoil_losses(super().weighted(losses, statistics))

    def spoil_losses(self, losses):
        return losses


class DividedByAllSamples(Mistaken):
    def spoil_samples(self, losses, statistics):
        normalizers = {**losses.normalizers, "cls": len(statistics)}
        return replace(losses, normalizers=normalizers), replace(
            statistics, normalizers=normalizers
        )


class IgnoredAreNegatives(Mistaken):
    def sample_losses(self, targets, outputs, anchors, matched_idxs):
        matched_idxs = [matched.clamp(min=-1) for matched in matched_idxs]
        return super().sample_losses(targets, outputs, anchors, matched_idxs)


class IgnoredAreMasked(Mistaken):
    """They are samples whose loss is multiplied by 0."""

    def sample_losses(self, targets, outputs, anchors, matched_idxs):
        is_sample = torch.cat(matched_idxs) >= -1
        matched_idxs = [matched.clamp(min=-1) for matched in matched_idxs]
        losses, statistics = super().sample_losses(targets, outputs, anchors, matched_idxs)
        cls = losses.cls * is_sample
        return replace(losses, cls=cls), replace(statistics, cls_loss=cls)


class GradientThroughIoU(Mistaken):
    def spoil_samples(self, losses, statistics):
        statistics.iou = torch.exp(-losses.box.sum(dim=1)) * statistics.is_foreground
        return losses, statistics


class GradientThroughNormaliser(Mistaken):
    def spoil_samples(self, losses, statistics):
        total = losses.normalizers["box"] + 0 * losses.box.sum()
        return losses, replace(statistics, normalizers={**losses.normalizers, "box": total})


class GradientThroughDetail(Mistaken):
    def spoil_samples(self, losses, statistics):
        details = {**statistics.details, "pred_score": lambda: torch.exp(-losses.cls)}
        return losses, replace(statistics, details=details)


class IoUOfNegatives(Mistaken):
    def spoil_samples(self, losses, statistics):
        return losses, replace(statistics, iou=torch.full_like(statistics.iou, 0.3))


class ProbabilityInPercent(Mistaken):
    def spoil_samples(self, losses, statistics):
        return losses, replace(statistics, prob=statistics.prob * 100)


class StatisticsOfOtherLosses(Mistaken):
    def spoil_samples(self, losses, statistics):
        return losses, replace(statistics, box_loss=statistics.box_loss / 2)


class LabelOfOtherLosses(Mistaken):
    def spoil_samples(self, losses, statistics):
        return replace(losses, label=lambda: losses.cls / 2), statistics


class BoxesOnADetachedPrediction(Mistaken):
    def spoil_samples(self, losses, statistics):
        return replace(losses, box=losses.box.detach()), statistics


class BoxesNotWeighted(Mistaken):
    def weighted(self, losses, statistics):
        weights = self.sample_weighter(statistics)
        weighted = losses.weighted(replace(weights, box=None))
        names = {self.LOSS_NAMES[task]: loss for task, loss in weighted.items()}
        return {**names, **weights.regularizers}


class AskedForEachTask(Mistaken):
    def weighted(self, losses, statistics):
        super().weighted(losses, statistics)
        return super().weighted(losses, statistics)


class RegularisersForgotten(Mistaken):
    def spoil_losses(self, losses):
        return {name: losses[name] for name in self.LOSS_NAMES.values()}


class RegularisersDetached(Mistaken):
    def spoil_losses(self, losses):
        return {
            name: loss.detach() if name.startswith("loss_swn") else loss
            for name, loss in losses.items()
        }


class LossRenamed(Mistaken):
    def spoil_losses(self, losses):
        return {name.replace("bbox_", "box_"): loss for name, loss in losses.items()}


@pytest.mark.parametrize(
    "mistake, message",
    [
        (DividedByAllSamples, r"the normaliser is wrong. normalizers\['cls'\] is \d\d\d, and"),
        (
            IgnoredAreNegatives,
            "5 of them positive: .* leave out the samples that the detector ignores",
        ),
        (IgnoredAreMasked, "of exactly 0, .* leave out the samples that the detector ignores"),
        (GradientThroughIoU, "the statistics' iou has a gradient"),
        (GradientThroughNormaliser, r"the statistics' normalizers\['box'\] has a gradient"),
        (GradientThroughDetail, "detail pred_score has a gradient"),
        (IoUOfNegatives, "iou of negatives must be 0"),
        (ProbabilityInPercent, "prob must be between 0 and 1"),
        (LabelOfOtherLosses, "weights of labels are not multiplied with the .* label_loss"),
        (StatisticsOfOtherLosses, "make the statistics of the same losses"),
        (BoxesOnADetachedPrediction, "another gradient; compute them from predictions"),
        (BoxesNotWeighted, "weights of 0 in the task 'box' .* but no loss changes"),
        (AskedForEachTask, "was asked 2 times"),
        (RegularisersForgotten, "regularizers are not among the losses"),
        (RegularisersDetached, "sample_weighter.* gets no gradient"),
        (LossRenamed, "does not return the plain one's loss bbox_regression"),
    ],
)
def test_a_mistake_is_found(mistake, message):
    plain, weighted = plain_and_weighted("retinanet")
    weighted.head.__class__ = mistake
    with pytest.raises(UserError, match=message):
        check_adapter(plain, weighted, *batch())


class BoxLossWithoutObjects(Mistaken):
    def spoil_losses(self, losses):
        return {**losses, "bbox_regression": losses["bbox_regression"] + 0.5}


def test_a_mistake_that_only_a_batch_without_objects_shows():
    plain, weighted = plain_and_weighted("retinanet")
    weighted.head.__class__ = BoxLossWithoutObjects
    with pytest.raises(UserError, match="bbox_regression is 0.5, but 0 in the plain detector"):
        check_adapter(plain, weighted, *empty_batch())


def test_what_normaliser_it_should_be():
    plain, weighted = plain_and_weighted("retinanet")
    right = []
    weighted.head.sample_weighter.register_forward_hook(
        lambda _, inputs, weights: right.append(int(inputs[0].normalizers["cls"]))
    )
    check_adapter(plain, weighted, *batch())
    weighted.head.__class__ = DividedByAllSamples
    with pytest.raises(UserError, match=f"and should be {right[0]}\\."):
        check_adapter(plain, weighted, *batch())


@pytest.mark.parametrize("inputs", [batch, empty_batch])
def test_everything_stays_as_it_was(inputs):
    plain, weighted = plain_and_weighted("retinanet")
    before = copy.deepcopy((plain.state_dict(), weighted.state_dict()))
    images, targets = inputs()
    torch.manual_seed(3)
    check_adapter(plain, weighted, images, targets)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    for then, now in zip(before, (plain.state_dict(), weighted.state_dict()), strict=True):
        assert all(torch.equal(then[name], now[name]) for name in then)
    assert all(p.grad is None for p in weighted.parameters())
    for image, same in zip(images, inputs()[0], strict=True):
        assert torch.equal(image, same)


class CornersExchanged(Mistaken):
    def spoil_samples(self, losses, statistics):
        boxes = torch.tensor([[8.0, 8, 40, 44]])
        iou = torch.where(statistics.is_foreground, paired_iou(boxes, boxes.roll(2, dims=1)), 0.0)
        return losses, replace(statistics, iou=iou)


def test_the_order_of_corners_is_looked_at_within_the_check_alone():
    plain, weighted = plain_and_weighted("retinanet")
    weighted.head.__class__ = CornersExchanged
    with pytest.raises(UserError, match="iou must be between 0 and 1, of boxes that are XYXY"):
        check_adapter(plain, weighted, *batch())
    assert paired_iou(torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[4.0, 4, 0, 0]])) == 0


def test_two_detectors_that_differ():
    plain, _ = plain_and_weighted("retinanet")
    other = weight_samples(tiny_model("retinanet", seed=1), SWN())
    with pytest.raises(UserError, match="differ in the parameter .* copy.deepcopy"):
        check_adapter(plain, other, *batch())


def test_a_detector_without_a_weighter():
    plain, _ = plain_and_weighted("retinanet")
    with pytest.raises(UserError, match="has no SampleWeighter"):
        check_adapter(plain, plain, *batch())
