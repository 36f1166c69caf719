"""The detector with the best AP: which it is, after a resume too, and that none is resumed."""

from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator

from swn_d2.engine import SafeCheckpointer, SWNTrainer
from swn_d2.engine.best import Best, BestCheckpoint, read_best
from swn_d2.engine.checkpoint import BEST, checkpoints, last_checkpoint
from swn_d2.engine.setup import trace_of_training
from swn_d2.errors import UserError
from tests.tiny import tiny_config, tiny_model


class Given(DatasetEvaluator):
    """An evaluator of a user's own, whose AP is the next of a list."""

    aps = iter(())

    def evaluate(self):
        return {"bbox": {"AP": next(self.aps)}}


class GivenTrainer(SWNTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return Given()


class Keep(HookBase):
    """The detector's parameters as they are after each iteration."""

    def __init__(self):
        self.of_iteration = {}

    def after_step(self):
        state = self.trainer.model.state_dict()
        self.of_iteration[self.trainer.iter] = {k: v.clone() for k, v in state.items()}


@pytest.mark.parametrize("aps, best", [((1.0, 3.0, 2.0), 1), ((1.0, 2.0, 3.0), 2)])
def test_it_is_that_of_the_best_evaluation(training_opts, tmp_path, aps, best):
    cfg = tiny_config(*training_opts, "TEST.EVAL_PERIOD", 2)  # of 6 iterations
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir()
    Given.aps = iter(aps)
    trainer, keep = GivenTrainer(cfg), Keep()
    trainer.register_hooks([keep])
    trainer.train()
    assert read_best(folder) == Best("bbox/AP", 3.0, iteration := 2 * best + 1, ["few_digits_val"])
    saved = torch.load(folder / BEST, weights_only=True)
    assert set(saved) == {"model", "best"}
    for name, value in keep.of_iteration[iteration].items():
        assert torch.equal(saved["model"][name], value), name
    SafeCheckpointer(tiny_model(cfg, seed=1)).load_whole(str(folder / BEST))
    # No run goes on from it, though it shows that there was one.
    assert last_checkpoint(folder).name == "model_final.pth"
    assert BEST not in [file.name for file in checkpoints(folder)]
    for file in folder.iterdir():
        if file.name != BEST and file.is_file():
            file.unlink()
    assert trace_of_training(folder) == BEST


@pytest.mark.parametrize("period", [0, 2])
def test_only_where_a_training_is_evaluated_on_its_way(training_opts, period):
    cfg = tiny_config(*training_opts, "TEST.EVAL_PERIOD", period)
    Path(cfg.OUTPUT_DIR).mkdir()
    trainer = SWNTrainer(cfg)
    assert any(isinstance(hook, BestCheckpoint) for hook in trainer._hooks) == bool(period)


class Evaluated:
    """As much of a trainer as the hook looks at."""

    max_iter, start_iter = 100, 0

    def evaluate(self, iteration, results):
        self.iter, self._last_eval_results = iteration, results


@pytest.fixture
def hook(tmp_path):
    hook = BestCheckpoint(SafeCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)), ["a"])
    hook.trainer = Evaluated()
    return hook


def test_more_is_better_and_the_same_is_not(hook, tmp_path):
    seen = []
    for iteration, ap in ((9, float("nan")), (19, 1.0), (29, 3.0), (39, 3.0), (49, 2.0)):
        hook.trainer.evaluate(iteration, {"bbox": {"AP": ap, "AP50": 90.0, "AP-a/AP": 99.0}})
        hook.after_step()
        hook.after_step()  # an iteration without an evaluation
        seen.append(read_best(tmp_path))
    second, third = Best("bbox/AP", 1.0, 19, ["a"]), Best("bbox/AP", 3.0, 29, ["a"])
    assert seen == [None, second, third, third, third]
    hook.trainer.evaluate(100, {"bbox": {"AP": 4.0}})
    hook.after_train()
    assert read_best(tmp_path) == Best("bbox/AP", 4.0, 99, ["a"])


@pytest.mark.parametrize(
    "results, metric",
    [
        ({"segm": {"AP": 2.0}, "bbox": {"AP": 1.0}}, "bbox/AP"),
        ({"voc": {"AP": 2.0}, "bbox": {"AP": 1.0}}, "bbox/AP"),
        ({"b": {"bbox": {"AP": 2.0}}, "a": {"bbox": {"AP": 1.0}}}, "a/bbox/AP"),
        ({"bbox": {"AR@100": 2.0}}, None),
    ],
)
def test_which_ap_counts(hook, tmp_path, results, metric):
    hook.trainer.evaluate(9, results)
    hook.after_step()
    best = read_best(tmp_path)
    assert (best and best.metric) == metric


def test_a_run_that_is_resumed_keeps_what_was_better(hook, tmp_path):
    SafeCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).save_best(
        best={"metric": "bbox/AP", "value": 3.0, "iteration": 19}
    )
    hook.trainer.start_iter = 30
    hook.before_train()
    hook.trainer.evaluate(39, {"bbox": {"AP": 2.0}})
    hook.after_step()
    assert read_best(tmp_path).iteration == 19
    # A run that begins anew does not look at what another left.
    hook = BestCheckpoint(hook._checkpointer, ["a"])
    hook.trainer = Evaluated()
    hook.before_train()
    hook.trainer.evaluate(9, {"bbox": {"AP": 2.0}})
    hook.after_step()
    assert read_best(tmp_path).iteration == 9


def test_what_was_the_best_on_other_data_is_not_compared(hook, tmp_path):
    hook.trainer.evaluate(19, {"bbox": {"AP": 60.0}})
    hook.after_step()
    for data_sets, iteration in ((["a"], 19), (["b"], 39), (["a", "b"], 39)):
        hook = BestCheckpoint(hook._checkpointer, data_sets)
        hook.trainer = Evaluated()
        hook.trainer.start_iter = 30
        hook.before_train()
        hook.trainer.evaluate(39, {"bbox": {"AP": 40.0}})
        hook.after_step()
        assert read_best(tmp_path) == Best(
            "bbox/AP", 60.0 if iteration == 19 else 40.0, iteration, data_sets
        )


def test_what_is_no_best_detector_is_one_sentence(hook, tmp_path):
    for content in ({"model": {}}, {"model": {}, "best": {"AP": 1}}, [1]):
        torch.save(content, tmp_path / BEST)
        with pytest.raises(UserError, match=f"{BEST} is not the best detector .*delete it"):
            read_best(tmp_path)
    hook.trainer.start_iter = 30
    with pytest.raises(UserError, match=BEST):
        hook.before_train()


def test_it_cannot_be_named_to_go_on_from(tmp_path):
    (tmp_path / BEST).touch()
    (tmp_path / "model_0000001.pth").touch()
    (tmp_path / "last_checkpoint").write_text(BEST)
    with pytest.raises(UserError, match=r"no state of its training; .* \(model_0000001\.pth\)"):
        last_checkpoint(tmp_path)
