"""Recording a torchvision training."""

import pytest
import torch

from swn_d2.errors import UserError
from swn_d2.recording import RECORDING, read_recording
from swn_d2.torchvision import record_samples, weight_samples
from swn_d2.weighting import weight_scalars

from .tiny import batch, empty_batch, tiny_model, tiny_swn, training_losses


def weighted(detector="faster_rcnn"):
    return weight_samples(tiny_model(detector), tiny_swn(detector))


def test_records_are_what_the_weighter_saw(tmp_path):
    model, seen = weighted("retinanet"), []
    recorder = record_samples(
        model, tmp_path / "new", num_iterations=4, period=2, num_samples=10**6
    )
    last = {}

    def note(_, inputs, weights):
        seen.append(inputs[0])
        last.update(weight_scalars(inputs[0], weights))

    model.head.sample_weighter.register_forward_hook(note)
    for step in range(4):
        training_losses(model, empty_batch(step) if step == 3 else batch(step))
    first, second = read_recording(tmp_path / "new" / RECORDING)
    for record, statistics in ((first, seen[1]), (second, seen[3])):
        positives = statistics.is_foreground
        assert record.iteration == statistics.iteration
        assert (record.num_positives, record.num_negatives) == (positives.sum(), (~positives).sum())
        expected = statistics.box_loss.sum(dim=1)[positives].numpy()
        assert record.positives["box_loss"] == pytest.approx(expected, rel=1e-3)
    assert first.crops and second.num_positives == 0 and not second.crops
    assert set(recorder.scalars) >= {"weights/box_mean", "weights/label_std"}
    assert recorder.scalars == pytest.approx({name: float(v) for name, v in last.items()})


def test_what_is_no_training_is_not_recorded(tmp_path):
    model = weighted()
    recorder = record_samples(model, tmp_path, num_iterations=4, period=1)
    model.eval()(batch()[0])
    with torch.no_grad():
        training_losses(model, batch())
    assert not (tmp_path / RECORDING).exists()
    training_losses(model, batch())
    recorder.stop()
    training_losses(model, batch())
    assert [record.iteration for record in read_recording(tmp_path / RECORDING)] == [0]


def test_a_model_without_a_weighter_is_refused(tmp_path):
    with pytest.raises(UserError, match="no sample weighter; call weight_samples on it first"):
        record_samples(tiny_model("fcos"), tmp_path / "run", num_iterations=1)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_can_not_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make the folder .*file"):
        record_samples(weighted(), tmp_path / "file", num_iterations=1)
