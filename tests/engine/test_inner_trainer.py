"""The losses of an iteration come to the host together."""

import itertools

from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage

from swn_d2.checks.synchronisations import waits
from swn_d2.engine import build_joint_optimizer
from swn_d2.engine.inner_trainer import inner_trainer_class
from tests.tiny import batch, tiny_config, tiny_model


def step(trainer_class):
    """The scalars that an iteration writes, and how often the host copies losses in it."""
    cfg = tiny_config(detector="retinanet")
    model = tiny_model(cfg)
    trainer = trainer_class(model, itertools.repeat(batch()), build_joint_optimizer(cfg, model))
    trainer.iter = 0
    with EventStorage(0) as storage, waits("cpu") as places:
        trainer.run_step()
    # How long data took, Detectron2's main says twice.
    latest = storage.latest().items()
    scalars = {name: value for name, (value, _) in latest if not name.endswith("data_time")}
    copies = {place: n for place, n in places.items() if "engine/" in place}
    return scalars, sum(copies.values())


def test_writes_what_detectron2s_does_with_one_copy():
    expected, each = step(SimpleTrainer)
    actual, together = step(inner_trainer_class(tiny_config()))
    assert {"loss_cls", "loss_swn_box", "total_loss"} <= actual.keys()
    assert actual == expected
    assert each == 4 and together == 1
