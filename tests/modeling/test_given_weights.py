"""Weights that the data give to objects and classes, in the losses of every detector."""

from dataclasses import replace

import pytest
import torch

from tests.tiny import DETECTORS, batch, tiny_config, tiny_model, training_losses, weighters

#: Of the objects in tests.tiny.batch(), which are of the classes 0, 1 and 0.
WEIGHTS = [0.3, 2.0, 0.0]
CLASS_WEIGHTS = [0.25, 4.0, 1.0]
CLASSES = [0, 1, 0]


def weighted_batch(weights):
    """The images, with weights for the two objects of the first and the one of the second."""
    inputs = batch()
    for x, of_image in zip(inputs, (weights[:2], weights[2:]), strict=True):
        x["instances"].gt_sample_weight = torch.tensor(of_image)
    return inputs


def spread_labels(module, inputs, weights):
    """Those of labels, which differ by little in two small images, if there are any."""
    if weights.label is None:
        return weights
    return replace(weights, label=torch.linspace(0, 2, len(weights.label)))


class Step:
    """A training step of a new detector whose samples have many weights.

    Attributes:
        losses: loss name -> 0-d tensor.
        model: with the gradients of all losses.
        seen: for every weighter the statistics that it got and the weights that it gave.
    """

    def __init__(self, detector, inputs, *opts, weighter="SWN"):
        opts = ("MODEL.SAMPLE_WEIGHTER.NAME", weighter, *opts)
        cfg = tiny_config(*opts, detector=detector, reading="relative")
        self.model = tiny_model(cfg)
        self.seen = []
        generator = torch.Generator().manual_seed(0)
        for module in weighters(self.model):
            for parameter in module.parameters():
                if not parameter.any():  # those of the outputs, which make every weight 1
                    torch.nn.init.normal_(parameter, std=1, generator=generator)
            module.register_forward_hook(spread_labels)
            module.register_forward_hook(lambda _, args, out: self.seen.append((args[0], out)))
        self.losses = training_losses(self.model, inputs)
        sum(self.losses.values()).backward()

    def loss(self, task, stage=0):
        """The loss of a task as the detector has it."""
        name = {"cls": "loss_cls", "box": "loss_box_reg", "mask": "loss_mask"}[task]
        return self.losses[name if name in self.losses else f"{name}_stage{stage}"]

    def expected_loss(self, task, stage, of_objects):
        """Eq. 2 with the weighter's weights, and with ``of_objects`` (G,) for the positives."""
        statistics, weights = self.seen[stage]
        objects = statistics.detail("object")
        given = torch.where(objects >= 0, of_objects[objects.clamp(min=0)], torch.tensor(1.0))
        weight = getattr(weights, task)
        weight = 1 if weight is None else weight
        return (weight * given * statistics.loss(task)).sum() / statistics.normalizers[task]


@pytest.mark.parametrize("weighter", ["SWN", "Uniform"])
@pytest.mark.parametrize("from_config", [False, True])
@pytest.mark.parametrize("detector", DETECTORS)
def test_weights_multiply_into_those_of_the_weighter(detector, from_config, weighter):
    of_objects = torch.tensor(WEIGHTS)
    opts = ["MODEL.SWN.RELATIVE", False]
    if from_config:
        opts += ["MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS", CLASS_WEIGHTS]
        of_objects = of_objects * torch.tensor([CLASS_WEIGHTS[c] for c in CLASSES])
    step = Step(detector, weighted_batch(WEIGHTS), *opts, weighter=weighter)
    for stage, (statistics, weights) in enumerate(step.seen):
        counts = statistics.detail("object")[statistics.foreground].bincount(minlength=3)
        assert stage > 0 or (counts > 0).all()  # every object has samples
        if weighter == "SWN":
            # Far from 1, compared with the tolerance below.
            assert ((weights.cls - 1).abs() > 0.01).any()
            assert ((weights.box - 1).abs() > 0.01)[statistics.foreground].any()
        tasks = ["cls", "box"] + (["mask"] if statistics.mask_loss is not None else [])
        for task in tasks:
            expected = step.expected_loss(task, stage, of_objects)
            torch.testing.assert_close(step.loss(task, stage), expected)


@pytest.mark.parametrize("detector", DETECTORS)
def test_class_weights_alone(detector):
    opts = ("MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS", CLASS_WEIGHTS)
    step = Step(detector, batch(), *opts)
    of_objects = torch.tensor([CLASS_WEIGHTS[c] for c in CLASSES])
    for task in ("cls", "box"):
        torch.testing.assert_close(step.loss(task), step.expected_loss(task, 0, of_objects))


@pytest.mark.parametrize("weighting", ["samples", "labels", "nothing"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_weights_of_a_part_of_the_loss(detector, weighting):
    """A label weight is that of -log p(class | object) alone, a box weight that of the box loss, a
    mask weight that of the mask loss. A focal loss has no such part, so there a label weight is
    that of all of the classification. Learned weights of labels multiply with it."""
    parts = {
        "label": torch.tensor([0.25, 3.0, 0.0]),
        "box": torch.tensor([2.0, 0.0, 0.5]),
        "mask": torch.tensor([0.0, 0.5, 3.0]),
    }
    inputs, start = weighted_batch([0.5, 1.0, 2.0]), 0
    for x in inputs:
        end = start + len(x["instances"])
        for name, weights in parts.items():
            x["instances"].set(f"gt_{name}_weight", weights[start:end])
        start = end
    opts = {
        "samples": ["MODEL.SWN.RELATIVE", False],
        "labels": ["MODEL.SWN.TASKS", ["cls"], "MODEL.SWN.CLS_AVERAGING", "per_object"],
        "nothing": ["MODEL.SAMPLE_WEIGHTER.NAME", "Uniform"],
    }
    step = Step(detector, inputs, *opts[weighting])
    sample = torch.tensor([0.5, 1.0, 2.0])
    for stage, (statistics, weights) in enumerate(step.seen):
        torch.testing.assert_close(
            step.loss("box", stage), step.expected_loss("box", stage, sample * parts["box"])
        )
        if statistics.mask_loss is not None:
            torch.testing.assert_close(
                step.loss("mask", stage), step.expected_loss("mask", stage, sample * parts["mask"])
            )
        label_loss = statistics.detail("label_loss")
        assert (label_loss <= statistics.cls_loss + 1e-6).all()
        assert label_loss[statistics.foreground].all()
        assert not label_loss[~statistics.is_foreground].any()
        objects = statistics.detail("object")
        given = torch.where(objects >= 0, sample[objects], torch.tensor(1.0))
        label = torch.where(objects >= 0, parts["label"][objects], torch.tensor(1.0))
        assert (weights.label is None) == (weighting != "labels")
        if weights.label is not None:
            assert ((weights.label - 1).abs() > 0.01)[statistics.foreground].any()
            label = label * weights.label
        weight = 1 if weights.cls is None else weights.cls
        left = given * (statistics.cls_loss - (1 - label) * label_loss)
        expected = (weight * left).sum() / statistics.normalizers["cls"]
        torch.testing.assert_close(step.loss("cls", stage), expected)


def test_both_terms_of_kl_loss_have_the_box_weight():
    opts = ("MODEL.ROI_BOX_HEAD.LOG_VARIANCE", True)
    steps = []
    for weight in (1.0, 2.0):
        inputs = batch()
        for x in inputs:
            x["instances"].gt_box_weight = torch.full((len(x["instances"]),), weight)
        steps.append(Step("faster_rcnn", inputs, *opts, weighter="KLLoss"))
    once, twice = (step.losses for step in steps)
    for name in ("loss_box_reg", "loss_kl"):
        assert once[name] != 0
        torch.testing.assert_close(twice[name], 2 * once[name])


def test_a_label_weight_of_0_teaches_that_there_is_an_object_but_not_which():
    inputs = batch()
    for x in inputs:
        x["instances"].gt_label_weight = torch.zeros(len(x["instances"]))
    step = Step("faster_rcnn", inputs, weighter="Uniform")
    (scores,) = layers(step.model, "cls_score")
    loss, plain = step.loss("cls"), Step("faster_rcnn", batch(), weighter="Uniform").loss("cls")
    assert 0 < loss < plain
    # Whatever the true classes are, the loss is the same.
    for x in inputs:
        x["instances"].gt_classes = 1 - x["instances"].gt_classes
    torch.testing.assert_close(Step("faster_rcnn", inputs, weighter="Uniform").loss("cls"), loss)
    assert scores.weight.grad.any()


@pytest.mark.parametrize("detector", DETECTORS)
def test_doubled_weights_double_what_the_positives_contribute(detector):
    none, once, twice = (Step(detector, weighted_batch([w] * 3)) for w in (0.0, 1.0, 2.0))
    plain = Step(detector, batch())
    for name in ("loss_box_reg", "loss_mask", "loss_cls"):
        for key in (k for k in plain.losses if k.startswith(name)):
            of_negatives, loss = none.losses[key], plain.losses[key]
            torch.testing.assert_close(once.losses[key], loss)
            torch.testing.assert_close(twice.losses[key] - of_negatives, 2 * (loss - of_negatives))
            assert loss > of_negatives
            assert (of_negatives > 0) == (name == "loss_cls")


@pytest.mark.parametrize("detector", DETECTORS)
def test_objects_of_weight_0_give_no_gradient(detector):
    step = Step(detector, weighted_batch([0.0] * 3))
    assert (step.seen[0][0].loss("box") > 0).any()
    masks = ["mask_head.predictor"] if "mask" in detector else []
    for name in ["bbox_pred", *masks]:
        assert all(not layer.weight.grad.any() for layer in layers(step.model, name))
    assert all(layer.weight.grad.any() for layer in layers(step.model, "cls_score"))  # negatives


def layers(model, name):
    found = [module for path, module in model.named_modules() if path.endswith(name)]
    assert found
    return found


def test_the_other_objects_keep_their_gradient():
    """In layers with outputs per class, those of class 0, whose two objects have weight 0, rest."""
    model = Step("mask_rcnn", weighted_batch([0.0, 1.0, 0.0])).model
    (boxes,), (masks,) = layers(model, "bbox_pred"), layers(model, "mask_head.predictor")
    for gradient in (boxes.weight.grad.view(3, 4, -1), masks.weight.grad):
        assert not gradient[0].any()
        assert gradient[1].any()


@pytest.mark.parametrize("detector", DETECTORS)
def test_swn_learns_as_if_there_were_no_such_weights(detector):
    opts = ("MODEL.SAMPLE_WEIGHTER.CLASS_WEIGHTS", CLASS_WEIGHTS)
    plain, given = Step(detector, batch()), Step(detector, weighted_batch(WEIGHTS), *opts)
    for name in (k for k in plain.losses if k.startswith("loss_swn")):
        assert torch.equal(plain.losses[name], given.losses[name])
    gradients = [
        [p.grad for module in weighters(step.model) for p in module.parameters()]
        for step in (plain, given)
    ]
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)
    assert any(gradient.any() for gradient in gradients[0])
    assert not torch.equal(plain.loss("box"), given.loss("box"))


@pytest.mark.parametrize("detector", DETECTORS)
def test_images_with_and_without_weights_in_a_batch(detector):
    """Objects without a weight have 1, and so does the background."""
    inputs = weighted_batch([*WEIGHTS[:2], 1.0])
    with_ones = Step(detector, inputs)
    inputs[1]["instances"].remove("gt_sample_weight")
    without = Step(detector, inputs)
    for name, loss in with_ones.losses.items():
        assert torch.equal(loss, without.losses[name])


@pytest.mark.parametrize(
    "detector, weighter, tasks",
    [
        *[(detector, "SWN", ("cls", "box", "mask")) for detector in DETECTORS],
        *[(detector, "IoUBalanced", ("cls", "box")) for detector in DETECTORS],
        ("faster_rcnn", "PrimeSample", ("cls",)),
    ],
)
def test_a_group_keeps_the_total_of_what_the_data_count(detector, weighter, tasks):
    """What they leave out may be what the weighter would count least, and passes nothing on."""
    inputs = weighted_batch(WEIGHTS)
    for x, of_image in zip(inputs, ([1.0, 0.0], [0.5]), strict=True):
        x["instances"].gt_label_weight = torch.tensor(of_image)
    step = Step(detector, inputs, weighter=weighter)
    for stage, (statistics, weights) in enumerate(step.seen):
        for task in tasks:
            if task == "mask" and statistics.mask_loss is None:
                continue
            counted, weight = statistics.counted_loss(task), getattr(weights, task)
            assert (counted != statistics.loss(task))[statistics.foreground].any()
            assert stage > 0 or ((weight - 1).abs() > 1e-4)[statistics.foreground].any()
            group = statistics.is_foreground
            torch.testing.assert_close((weight * counted)[group].sum(), counted[group].sum())
            if weights.label is None:
                unweighted = counted.sum() / statistics.normalizers[task]
                torch.testing.assert_close(step.loss(task, stage).detach(), unweighted)
