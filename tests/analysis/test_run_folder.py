"""What is read of a run's folder, whatever state it is in."""

import json

import pytest
from detectron2.data import MetadataCatalog

from swn_d2.analysis.run_folder import RunFolder, folder_of_all, open_runs
from swn_d2.errors import UserError
from swn_d2.recording import RECORDING
from tests.analysis.samples import random_records, run_folder
from tests.voc import write_voc


def write_metrics(folder, *rows, end=""):
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return RunFolder(folder).metrics


def loss(iteration, value=1.0):
    return {"iteration": iteration, "total_loss": value}


def test_a_whole_folder(tmp_path):
    run_folder(tmp_path / "run", list(random_records([4, 9])), "SOLVER.MAX_ITER", 7)
    folder = tmp_path / "run"
    write_metrics(folder, loss(6))
    (folder / "environment.json").write_text('{"versions": {"torch": "2"}}')
    (folder / "weighter").mkdir()
    for name in ("0000009.pth", "0000004.pth", "0000011.pth.partial", "mine.pth"):
        (folder / "weighter" / name).touch()
    (folder / "model_0000004.pth").touch()
    (folder / "last_checkpoint").write_text("model_0000004.pth\n")
    run = RunFolder(folder)
    assert run.name == "run" and run.cfg.SOLVER.MAX_ITER == 7
    assert run.metrics == [loss(6)]
    assert [record.iteration for record in run.recording] == [4, 9]
    assert [(i, file.name) for i, file in run.snapshots] == [(4, "0000004.pth"), (9, "0000009.pth")]
    assert run.checkpoint == folder / "model_0000004.pth"
    assert run.environment == {"versions": {"torch": "2"}}
    assert run.problems == {}


def test_an_evaluation_by_itself(tmp_path):
    """What it has otherwise than the training, if that decides the detections."""
    folder = tmp_path / "run"
    run_folder(folder, [])
    assert RunFolder(folder).evaluated_with == {}
    (folder / "inference").mkdir()
    cfg = RunFolder(folder).cfg
    evaluation = folder / "inference" / "config.yaml"
    evaluation.write_text(cfg.dump())
    metrics = folder / "inference" / "metrics.json"
    metrics.write_text("{}")
    assert RunFolder(folder).evaluated_with == {}
    cfg.merge_from_list(["MODEL.NMS.METHOD", "linear", "SOLVER.MAX_ITER", 3, "TEST.EVAL_PERIOD", 2])
    evaluation.write_text(cfg.dump())
    assert RunFolder(folder).evaluated_with == {"MODEL.NMS.METHOD": "linear"}
    metrics.unlink()  # as the next evaluation of the training does
    assert RunFolder(folder).evaluated_with == {}
    metrics.write_text("{}")
    evaluation.write_text("- 1")
    assert RunFolder(folder).evaluated_with == {}


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match=f"no folder {tmp_path}/gone; give the OUTPUT_DIR"):
        RunFolder(tmp_path / "gone")


@pytest.mark.usefixtures("clean_catalog")
def test_data_and_code_of_ones_own(tmp_path):
    """Names are known with the folder; of the code it is said that it is needed."""
    folder = tmp_path / "run"
    run_folder(folder, [])
    paths = {"folder": {"absolute": write_voc(tmp_path / "pets", {}), "given": "pets"}}
    pets = {"format": "voc", "split": "train", "classes": ["dog"], "paths": paths}
    content = {"format": "swn_d2 registered", "version": 1}
    content |= {"imports": ["my_class.py"], "data_sets": {"run_folder_pets": pets}}
    (folder / "registered.json").write_text(json.dumps(content))
    run = RunFolder(folder)
    assert MetadataCatalog.get("run_folder_pets").thing_classes == ["dog"]
    assert run.cfg is not None  # which can be read without
    assert run.problems["data"].endswith("give --import my_class.py again.")
    with open(folder / "config.yaml", "a") as file:
        file.write("MY_CLASS: {}\n")
    run = RunFolder(folder)
    assert run.problem("cfg").endswith("give --import my_class.py again.")
    assert "data" not in run.problems  # once is enough


def test_an_empty_folder(tmp_path):
    run = RunFolder(tmp_path)
    assert (run.cfg, run.checkpoint) == (None, None)
    assert (run.metrics, run.recording, run.snapshots, run.environment) == ([], [], [], {})
    assert set(run.problems) == {"cfg", "metrics", "recording", "checkpoint", "environment"}
    for part, sentence in run.problems.items():
        assert sentence.count(str(tmp_path)) == 1 and sentence.endswith((".", "?")), part
        assert run.problem(part) == sentence


def test_why_something_is_missing_can_be_asked_for_first(tmp_path):
    assert "no checkpoint" in RunFolder(tmp_path).problem("checkpoint")


def test_a_line_that_was_cut_short(tmp_path):
    assert write_metrics(tmp_path, loss(19), end='{"iteration": 39, "total') == [loss(19)]
    assert write_metrics(tmp_path, loss(19), end="\0\xff\n[1]\n{}\n") == [loss(19)]
    assert write_metrics(tmp_path, loss(19), loss(None)) == [loss(19)]
    assert write_metrics(tmp_path, end='{"iteration"') == []
    assert "no whole line" in RunFolder(tmp_path).problem("metrics")
    (tmp_path / "last_checkpoint").write_text("model_0000004.pth")  # and no such file
    assert "which is not there" in RunFolder(tmp_path).problem("checkpoint")
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\0")
    (tmp_path / "model_final.pth").touch()
    assert "not a text file" in RunFolder(tmp_path).problem("checkpoint")
    (tmp_path / "last_checkpoint").unlink()
    assert RunFolder(tmp_path).checkpoint == tmp_path / "model_final.pth"
    (tmp_path / "environment.json").write_text('{"versions"')
    assert "environment.json is not valid JSON: " in RunFolder(tmp_path).problem("environment")
    assert RunFolder(tmp_path).environment == {}
    (tmp_path / "config.yaml").write_text("SOLVER:\n  MAX_ITER: [")
    assert "not one of this version" in RunFolder(tmp_path).problem("cfg")


def test_a_recording_without_records(tmp_path):
    run_folder(tmp_path, list(random_records([4])))
    header = (tmp_path / RECORDING).read_text().splitlines()[0]
    (tmp_path / RECORDING).write_text(header + "\n")
    assert RunFolder(tmp_path).problem("recording") == f"{tmp_path / RECORDING} has no record yet."


def test_another_versions_config(tmp_path):
    (tmp_path / "config.yaml").write_text("MODEL:\n  SWN:\n    STRENTGH: 0.5\n")
    run = RunFolder(tmp_path)
    assert run.cfg is None
    assert "not one of this version" in run.problem("cfg")
    assert "Did you mean MODEL.SWN.STRENGTH?" in run.problem("cfg")


def test_a_resumed_run_did_some_iterations_twice(tmp_path):
    evaluation = {"iteration": 40, "bbox/AP": 1.0}
    before = [loss(19), loss(39), evaluation, loss(59)]
    assert write_metrics(tmp_path, *before, loss(39, 2.0), loss(59, 3.0)) == [
        loss(19),
        loss(39, 2.0),
        loss(59, 3.0),
    ]
    assert write_metrics(tmp_path, *before, loss(59, 2.0)) == [*before[:3], loss(59, 2.0)]


def test_scalars_of_earlier_iterations_are_no_sign_of_that(tmp_path):
    """Detectron2 writes a scalar that the last iteration lacked after those that it had."""
    late = {"iteration": 38, "fast_rcnn/fg_cls_accuracy": 0.5}
    rows = write_metrics(tmp_path, loss(19), loss(39), late, loss(59))
    assert rows == [loss(19), late, loss(39), loss(59)]
    assert write_metrics(tmp_path, loss(39), late, loss(39, 2.0)) == [late, loss(39, 2.0)]


def test_runs_have_names_of_their_own(tmp_path):
    paths = [tmp_path / name for name in ("a/x/seed_1", "b/x/seed_1", "a/y/seed_1")]
    for path in paths:
        path.mkdir(parents=True)
    assert [run.name for run in open_runs(paths[:1])] == ["seed_1"]
    assert [run.name for run in open_runs([paths[0], paths[2]])] == ["x/seed_1", "y/seed_1"]
    assert [run.name for run in open_runs(paths)] == ["a/x/seed_1", "b/x/seed_1", "a/y/seed_1"]
    with pytest.raises(UserError, match="given twice"):
        open_runs([paths[0], paths[0] / ".." / "seed_1"])
    with pytest.raises(UserError, match="no folder"):
        open_runs([paths[0], tmp_path / "gone"])


def test_the_folder_of_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(folder_of_all(["out/a"])) == "out/a"
    assert str(folder_of_all(["out/a", tmp_path / "out" / "b"])) == "out"
    assert str(folder_of_all(["out/a/x", "elsewhere/b"])) == "."
    assert folder_of_all(["out/a", "../b"]) == tmp_path.parent


def test_a_best_detector_that_is_none(tmp_path):
    (tmp_path / "model_best.pth").write_bytes(b"no checkpoint")
    run = RunFolder(tmp_path)
    assert run.best is None and "model_best.pth is not the best" in run.problem("best")
