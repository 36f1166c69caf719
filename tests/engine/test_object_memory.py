"""A weighter with a memory of objects in the trainer and in its checkpoints."""

import itertools
import json

import pytest
import torch
from detectron2.data import DatasetMapper, build_detection_train_loader

from swn_d2.engine import SafeCheckpointer, SWNTrainer
from swn_d2.errors import UserError
from swn_d2.weighting import SAMPLE_WEIGHTER_REGISTRY, SampleWeighter, SampleWeights
from swn_d2.weighting.memory import ObjectMemory
from tests.tiny import batch, tiny_config


class Remembering(SampleWeighter):
    """Objects that used to have a large classification loss count less."""

    def __init__(self):
        super().__init__()
        self.memory = ObjectMemory(1, window=3)

    def forward(self, statistics):
        positives = statistics.foreground
        objects = statistics.detail("annotation")[positives]
        mean, _ = self.memory.recall(objects)
        self.memory.remember(objects, statistics.cls_loss[positives, None])
        ones = torch.ones_like(statistics.cls_loss)
        return SampleWeights(cls=ones.index_copy(0, positives, 1 / (1 + mean[:, 0])))


@pytest.fixture(autouse=True, scope="module")
def registered():
    SAMPLE_WEIGHTER_REGISTRY.register(Remembering)
    yield
    SAMPLE_WEIGHTER_REGISTRY._obj_map.pop("Remembering")


@pytest.fixture
def config(training_opts, tmp_path):
    """Makes the config of a run on the small DigitScenes, with overrides."""
    (tmp_path / "run").mkdir()

    def make(*opts, **kwargs):
        return tiny_config(
            *training_opts,
            *("MODEL.RETINANET.NUM_CLASSES", 10),
            *("MODEL.SAMPLE_WEIGHTER.NAME", "Remembering"),
            *("SOLVER.MAX_ITER", 4),
            *("SOLVER.STEPS", (3,)),
            *opts,
            **kwargs,
        )

    return make


def memories_of(trainer):
    return [m for m in trainer._trainer.model.modules() if isinstance(m, ObjectMemory)]


def train(trainer, *, resume=False, until=None):
    trainer.resume_or_load(resume=resume)
    if until is not None:
        trainer.max_iter = until
    trainer.train()
    return trainer


class NumberedBatches(SWNTrainer):
    """Iteration i always trains on batch i, with the sampling of regions fixed by i. Of its three
    objects the first is another one every second time."""

    @classmethod
    def build_train_loader(cls, cfg, dataset=None):
        return [None]

    def run_step(self):
        torch.manual_seed(self.iter)
        data = batch(seed=self.iter)
        data[0]["instances"].gt_annotation = torch.tensor([self.iter % 2, 2])
        data[1]["instances"].gt_annotation = torch.tensor([5])
        self._trainer._data_loader_iter_obj = self._trainer.__dict__["_data_loader_iter"] = (
            itertools.repeat(data)
        )
        super().run_step()


@pytest.mark.parametrize(
    "detector, num_memories", [("faster_rcnn", 1), ("cascade_rcnn", 3), ("retinanet", 1)]
)
def test_there_is_room_for_every_annotation(config, scenes, detector, num_memories):
    annotations = json.loads((scenes / "annotations" / "instances_train.json").read_text())
    memories = memories_of(SWNTrainer(config(detector=detector)))
    assert len(memories) == num_memories
    for memory in memories:
        assert len(memory.mean) == len(memory.seen) == len(annotations["annotations"]) > 0


def test_a_training_remembers_and_its_checkpoint_is_evaluated(config, tmp_path):
    cfg = config()
    trainer = train(SWNTrainer(cfg))
    (memory,) = memories_of(trainer)
    assert memory.seen.sum() > 4 and torch.equal(memory.mean[:, 0] > 0, memory.seen > 0)

    path = str(tmp_path / "run" / "model_final.pth")
    checkpoint = torch.load(path, weights_only=True)
    assert not any("memory" in key for key in checkpoint["model"])
    (state,) = checkpoint["trainer"]["object_memories"]
    assert torch.equal(state["mean"], memory.mean) and torch.equal(state["seen"], memory.seen)

    # As --eval-only does.
    model = SWNTrainer.build_model(cfg)
    SafeCheckpointer(model).load_whole(path)
    assert str(SWNTrainer.test(cfg, model)) == str(trainer._last_eval_results)


def test_n_and_n_resumed_steps_are_2n_steps(config, tmp_path):
    (tmp_path / "halves").mkdir()
    without_test = ["DATASETS.TEST", ()]
    halves = config(*without_test, "OUTPUT_DIR", str(tmp_path / "halves"))
    trainers = []
    for cfg, options in (
        (config(*without_test), {}),
        (halves, {"until": 2}),
        (halves, {"resume": True}),
    ):
        torch.manual_seed(0)
        trainers.append(train(NumberedBatches(cfg), **options))
    whole, first, second = trainers
    assert second.start_iter == 2
    (expected,), (before,), (actual,) = map(memories_of, trainers)
    assert torch.equal(actual.mean, expected.mean) and torch.equal(actual.seen, expected.seen)
    assert expected.seen[:6].tolist() == [2.0, 2.0, 4.0, 0.0, 0.0, 4.0]
    assert before.seen[:6].tolist() == [1.0, 1.0, 2.0, 0.0, 0.0, 2.0]
    # The weights of the second half came from what the first had remembered.
    expected, actual = (t._trainer.model.state_dict() for t in (whole, second))
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def saved(cfg):
    """A run of no iteration, with a checkpoint to resume from."""
    trainer = SWNTrainer(cfg)
    trainer.iter = trainer._trainer.iter = 1
    trainer.checkpointer.save("model_0000001", iteration=1)


WITHOUT = ["MODEL.SAMPLE_WEIGHTER.NAME", "Uniform"]


@pytest.mark.parametrize(
    "then, now, message",
    [
        ([], ["DATASETS.TRAIN", ("few_digits_val",)], "1 statistics of .* annotations, but now"),
        (WITHOUT, [], "is 0 in the checkpoint, but 1 in this run: .*another sample weighter"),
        ([], WITHOUT, "is 1 in the checkpoint, but 0 in this run: .*another sample weighter"),
    ],
    ids=["another data set", "none before", "none now"],
)
def test_a_memory_that_does_not_fit_is_refused(config, then, now, message):
    saved(config(*then))
    trainer = SWNTrainer(config(*now))
    with pytest.raises(UserError, match=f"{message}.*MODEL.WEIGHTS"):
        trainer.resume_or_load(resume=True)


class Detectron2sSignature(SWNTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return super().build_train_loader(cfg)


class PassingOn(SWNTrainer):
    @classmethod
    def build_train_loader(cls, cfg, **kwargs):
        return super().build_train_loader(cfg, **kwargs)


class PlainMapper(SWNTrainer):
    @classmethod
    def build_train_loader(cls, cfg, dataset=None):
        mapper = DatasetMapper(cfg, is_train=True)
        return build_detection_train_loader(cfg, mapper=mapper, dataset=dataset)


def test_precise_batch_normalisation_is_refused(config):
    with pytest.raises(UserError, match="TEST.PRECISE_BN.ENABLED .* set that to False"):
        SWNTrainer(config("TEST.PRECISE_BN.ENABLED", True))
    SWNTrainer(config("TEST.PRECISE_BN.ENABLED", True, *WITHOUT))


def test_a_train_loader_of_ones_own(config, tmp_path):
    assert not memories_of(Detectron2sSignature(config(*WITHOUT)))
    with pytest.raises(UserError) as error:
        Detectron2sSignature(config())
    assert str(error.value) == (
        "MODEL.SAMPLE_WEIGHTER.NAME Remembering remembers the objects of the training set, but "
        "Detectron2sSignature.build_train_loader takes no dataset whose annotations are numbered; "
        "add the argument dataset=None, and load that with a NamingDatasetMapper where it is given."
    )
    without_test = config("DATASETS.TEST", (), "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ())
    (memory,) = memories_of(train(PassingOn(without_test)))
    assert memory.seen.any()
    elsewhere = config("DATASETS.TEST", (), "OUTPUT_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(SystemExit, match="numbers. Train with swn_d2.SWNTrainer.*NamingDataset"):
        train(PlainMapper(elsewhere))
