"""docs/other_detectors.md: the adapter that it shows is one, and check_adapter says what is wrong
with it when somebody makes a mistake in it."""

import copy
import re
import types
from pathlib import Path

import pytest
import torch
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

from swn_d2.errors import UserError
from swn_d2.weighting import SWN, Uniform, check_adapter, join_adam, sample_weighter_parameters
from tests.torchvision.tiny import CHANNELS, NUM_CLASSES, Pyramid, target, training_losses

PAGE = (Path(__file__).parents[1] / "docs" / "other_detectors.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
(ADAPTER,) = (block for block in BLOCKS if "class WeightedSSD" in block)
(CHECK,) = (block for block in BLOCKS if "check_adapter(" in block)


def tiny_ssd():
    torch.manual_seed(0)
    backbone = Pyramid()
    backbone.out_channels = [CHANNELS] * 3
    sizes = DefaultBoxGenerator([[2]] * 3, scales=[0.2, 0.4, 0.6, 0.8])
    return SSD(backbone, sizes, (64, 96), NUM_CLASSES)


def batch(*boxes):
    """Images with these objects each."""
    generator = torch.Generator().manual_seed(0)
    return (
        [torch.rand(3, 64, 96, generator=generator) for _ in boxes],
        [target(of_image) for of_image in boxes],
    )


def some_objects():
    return batch([[8, 8, 40, 44], [50, 20, 90, 60]], [[20, 10, 60, 50]])


def no_objects():
    return batch([], [])


BATCHES = {
    "objects": some_objects,
    "an empty image": lambda: batch([[8, 8, 40, 44]], []),
    "one image": lambda: batch([[8, 8, 40, 44]]),
    "no objects": no_objects,
}


def page_with(*replacements):
    """The adapter of the page, with these changes to its text."""
    text = ADAPTER
    for old, new in replacements:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    page = types.ModuleType("page")
    exec(compile(text, "docs/other_detectors.md", "exec"), vars(page))
    return page


def plain_and_weighted(*replacements, weighter=SWN):
    plain = tiny_ssd()
    return plain, page_with(*replacements).add_weighter(copy.deepcopy(plain), weighter())


@pytest.mark.parametrize("weighter", [SWN, Uniform])
@pytest.mark.parametrize("inputs", BATCHES.values(), ids=BATCHES)
def test_the_adapter_keeps_the_contract(inputs, weighter):
    check_adapter(*plain_and_weighted(weighter=weighter), *inputs())


def test_the_check_as_the_page_shows_it():
    images, targets = some_objects()
    exec(
        CHECK,
        {
            "build_my_detector": tiny_ssd,
            "add_weighter": page_with().add_weighter,
            "images": images,
            "targets": targets,
            "targets_without_objects": no_objects()[1],
        },
    )


def test_the_adapter_trains_and_goes_on_from_a_state_dict():
    plain, model = plain_and_weighted(weighter=lambda: SWN(ease_in=(10, 20)))
    sgd = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    params = sample_weighter_parameters(model)
    optimizer = join_adam(params, detector=sgd, weighter={"lr": 0.01, "weight_decay": 1e-4})
    seen, totals = [], []
    model.sample_weighter.register_forward_hook(lambda *a: seen.append(a[2].box.detach()))
    for _ in range(50):
        losses = training_losses(model, some_objects())
        totals.append((losses["classification"] + losses["bbox_regression"]).item())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert totals[-1] < 0.7 * totals[0]
    assert (seen[9] == 1).all() and (seen[10] != 1).any()
    model.eval()(some_objects()[0])
    again = page_with().add_weighter(copy.deepcopy(plain), SWN())
    again.load_state_dict(model.state_dict())
    assert again.sample_weighter_counter.next() == 50


IOU = "paired_iou(predicted, gt_boxes)"
BOX_LOSS = 'F.smooth_l1_loss(deltas, gt_deltas, reduction="none")'
NAMES = 'names = {"cls": "classification", "box": "bbox_regression"}'
RETURN = "return weighted_losses(self.sample_weighter, losses, statistics, names)"
ALL_ANCHORS = ("(is_positive | is_mined)", "(labels >= 0)")
IOU_STAYS = "the statistics' iou stays the same; it must be that of the predicted, decoded boxes"


def gathered(change):
    """A replacement: this is done to the samples before their losses are weighted."""
    return (NAMES, f"{change}\n        {NAMES}")


#: What is replaced, and what is said of it.
MISTAKES = {
    "divided by the images": (
        [("max(len(positives), 1)", "len(targets)")],
        r"normalizers\['box'\] is 2, and should be 9\.$",
    ),
    "divided twice": (
        [(BOX_LOSS, f"{BOX_LOSS} / normalizer")],
        r"should be 1 if the losses are divided by it already\.",
    ),
    "nothing mined": (
        [ALL_ANCHORS],
        r"of other samples.* saw 1008 samples, 9 of them positive: if the detector counts others",
    ),
    "mined by a factor of 0": (
        [
            ALL_ANCHORS,
            ("iteration=", "cls_factor=(is_positive | is_mined).flatten().float(), iteration="),
        ],
        "of exactly 0, as ignored ones have",
    ),
    "mined over the batch": (
        [
            (
                "hardness.argsort(dim=1, descending=True).argsort(dim=1)",
                "hardness.flatten().argsort(descending=True).argsort().view_as(labels)",
            ),
            ("is_positive.sum(dim=1, keepdim=True)", "is_positive.sum()"),
        ],
        "of other samples, or another loss",
    ),
    "the background first in the logits": (
        [(".roll(-1, dims=1)", "")],
        r"the order of the classes \(the background is the last\)",
    ),
    "the background first in the labels": (
        [("(labels.flatten()[samples] - 1) % logits.shape[2]", "labels.flatten()[samples]")],
        "bbox_regression is (inf|nan), but .* see that they are the detector's",
    ),
    "IoU of anchors": ([(IOU, "paired_iou(boxes, gt_boxes)")], IOU_STAYS),
    "IoU of deltas": ([(IOU, IOU.replace("predicted, gt_boxes", "deltas.detach(), gt_deltas"))],
        f"iou must be|{IOU_STAYS}"),
    "IoU of boxes as XYWH": (
        [(IOU, f"{IOU[:-1]} - F.pad(gt_boxes[:, :2], (2, 0)))")],
        "iou must be between 0 and 1, of boxes that are XYXY",
    ),
    "IoU upside down": ([(IOU, f"1 - {IOU}")], "the statistics' iou falls"),
    "another probability": (
        [gathered("statistics.prob = torch.where(statistics.is_foreground, 0.2, 0.0)")],
        "prob of positives is not their true_prob",
    ),
    "losses in another order": (
        [gathered("losses.cls = losses.cls.flip(0)")],
        "weights of the task 'cls' are multiplied with losses of other samples",
    ),
    "boxes in another order": (
        [gathered("losses.box = losses.box[losses.box.sum(dim=1).argsort()]")],
        "weights of the task 'box' are multiplied with losses of other samples",
    ),
    "names exchanged": (
        [(NAMES, 'names = {"box": "classification", "cls": "bbox_regression"}')],
        "whose classification it is; exchange the names",
    ),
    "one column, and SWN for four": (
        [(BOX_LOSS, f"{BOX_LOSS}.sum(dim=1, keepdim=True)")],
        "build it with box_loss_dim=1",
    ),
    "no iteration": (
        [("self.sample_weighter_counter.next()", "None")],
        "iteration is None; it must be an int",
    ),
    "numbers": (
        [(RETURN, f"{RETURN.replace('return', 'losses =')}\n        "
                  "return {name: loss.item() for name, loss in losses.items()}")],
        "a WeightedSSD must return a dict of losses",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake):
    replacements, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message):
        check_adapter(*plain_and_weighted(*replacements), *some_objects())


@pytest.mark.parametrize(
    "replacement, message",
    [
        (
            ("max(len(positives), 1)", "len(positives)"),
            r"normalizers\['cls'\] is 0; it must be great",
        ),
        (
            gathered(
                "if not len(positives):\n            return {n: logits.sum() * 0 for n in "
                "('classification', 'bbox_regression')}"
            ),
            "was asked 0 times .* also where there are none",
        ),
    ],
)
def test_a_mistake_that_only_a_batch_without_objects_shows(replacement, message):
    plain, weighted = plain_and_weighted(replacement)
    check_adapter(plain, weighted, *some_objects())
    with pytest.raises(UserError, match=message):
        check_adapter(plain, weighted, *no_objects())


@pytest.mark.parametrize(
    "replacement, message",
    [
        (
            ('reduction="none"),  # (F, 4)', 'reduction="sum"),'),
            r"fg_box_loss has shape \(\), but must",
        ),
        (('"box": normalizer}', '"bbox": normalizer}'), "normalizers has no 'box', but .*'bbox'"),
    ],
)
def test_what_is_not_of_the_contract_is_refused(replacement, message):
    _, weighted = plain_and_weighted(replacement)
    with pytest.raises(ValueError, match=message):
        training_losses(weighted, some_objects())
