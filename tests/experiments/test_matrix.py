"""The file that says what is run."""

import re
import sys
from pathlib import Path

import pytest

from swn_d2 import UserError
from swn_d2.experiments import load_matrix
from swn_d2.own import imports

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs" / "experiments").glob("*.yaml"))


def test_runs_are_rows_times_seeds(write_matrix, config_file, tmp_path):
    matrix = load_matrix(write_matrix(common={"SOLVER.STEPS": [2, 3], "SOLVER.BASE_LR": 0.5}))
    assert [(run.row, run.seed) for run in matrix.runs] == [
        ("plain", 1),
        ("lambda 0.1", 1),
        ("plain", 2),
        ("lambda 0.1", 2),
    ]
    assert matrix.runs[1].arguments() == [
        *("--config-file", str(config_file), "--resume"),
        *("SOLVER.STEPS", "[2, 3]", "SOLVER.BASE_LR", "0.5", "MODEL.SWN.LAMBDA_BOX", "0.1"),
        *("SEED", "1", "OUTPUT_DIR", str(tmp_path / "output" / "lambda_0.1" / "seed_1")),
    ]
    assert {run.iterations for run in matrix.runs} == {4}
    assert matrix.title == "matrix" and matrix.metrics == ("bbox/AP",)


def test_metrics_of_every_evaluator(write_matrix):
    metrics = ["bbox/AP", "segm/APl", "voc/AP50", "mine/score"]
    matrix = load_matrix(write_matrix(metrics=metrics, common={"MODEL.MASK_ON": True}))
    assert matrix.metrics == tuple(metrics)
    metrics = ["one/bbox/AP", "two/bbox/AP"]
    matrix = load_matrix(write_matrix(metrics=metrics, common={"DATASETS.TEST": ["one", "two"]}))
    assert matrix.metrics == tuple(metrics)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"common": {"DATASETS.TEST": []}}, "nothing would be measured"),
        ({"common": {"DATASETS.TEST": ["one", "two"]}}, "write one/bbox/AP among the metrics"),
        ({"metrics": ["segm/AP"]}, "segm/AP needs masks"),
        (
            {"metrics": ["one/bbox/AP"], "common": {"DATASETS.TEST": ["one"]}},
            "write bbox/AP among the metrics",
        ),
        (
            {"metrics": ["one/bbox/AQ"], "common": {"DATASETS.TEST": ["one", "two"]}},
            "there is no metric one/bbox/AQ",
        ),
        ({"metrics": ["bbox/AP-dog"]}, "it must be a list like"),
        ({"common": {"MODEL.ROI_HEADS.NAME": "Nope"}}, "ROI_HEADS.NAME is 'Nope', which does not"),
        ({"common": {"MODEL.SWN.TASKS": ["klass"]}}, "TASKS"),
        ({"train_net_args": ["--config-file=x.yaml"]}, "can't have --config-file=x.yaml"),
    ],
)
def test_what_no_run_could_do(write_matrix, changes, message):
    with pytest.raises(UserError, match=message):
        load_matrix(write_matrix(**changes))


def test_code_of_ones_own(write_matrix, tmp_path, monkeypatch):
    """It is imported here, by every run, and is part of what a result depends on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imports, "_imported", {})
    (tmp_path / "my_matrix_code.py").write_text("")
    file = write_matrix(train_net_args=["--num-gpus", 2])
    try:
        run = load_matrix(file, imports=["my_matrix_code.py"]).runs[0]
        assert imports.is_imported("my_matrix_code.py")
    finally:
        sys.modules.pop("my_matrix_code", None)
    words = ["--import", "my_matrix_code.py", "--num-gpus", "2"]
    assert run.settings["train_net_args"] == words
    assert " ".join(words) in " ".join(run.arguments())
    with pytest.raises(UserError, match="train_net_args can't have --import, which this tool"):
        load_matrix(write_matrix(train_net_args=["--import", "my_matrix_code.py"]))


def test_a_rows_own_overrides_come_last(write_matrix, config_file):
    row = {"config": str(config_file), "overrides": {"SOLVER.MAX_ITER": 7}}
    matrix = load_matrix(write_matrix(common={"SOLVER.MAX_ITER": 9}, rows={"plain": row}))
    assert {run.iterations for run in matrix.runs} == {7}


def test_rows_start_from_the_checkpoint_of_their_seed(write_matrix, config_file, tmp_path):
    rows = {
        "soft": {"config": str(config_file), "evaluate": "plain"},
        "plain": {"config": str(config_file)},
    }
    matrix = load_matrix(
        write_matrix(
            checkpoint={"config": str(config_file)},
            train_net_args=["--num-gpus", 2],
            rows=rows,
        )
    )
    checkpoint, plain, soft = matrix.runs[:3]
    assert [run.row for run in matrix.runs[:3]] == ["checkpoint", "plain", "soft"]
    assert matrix.rows == ("soft", "plain")  # as in the file
    assert "MODEL.WEIGHTS" not in checkpoint.arguments()
    folder = tmp_path / "output"
    for run, source in ((plain, "checkpoint"), (soft, "plain")):
        arguments = run.arguments()
        weights = arguments[arguments.index("MODEL.WEIGHTS") + 1]
        assert weights == str(folder / source / "seed_1" / "model_final.pth")
    assert "--resume" in plain.arguments() and "--eval-only" not in plain.arguments()
    assert "--eval-only" in soft.arguments() and "--resume" not in soft.arguments()
    assert plain.arguments()[3:5] == ["--num-gpus", "2"]


ROW = {"config": "configs/none.yaml"}
RETINANET = {"config": "configs/Quickstart/retinanet_tiny_FPN.yaml"}
UNTESTED = {
    "config": "configs/Quickstart/faster_rcnn_tiny_FPN.yaml",
    "overrides": {"DATASETS.TEST": []},
}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": [1]}, "no key 'seed'; did you mean seeds"),
        ({"output": None}, "key output is missing; it must be the path"),
        ({"seeds": None}, "key seeds is missing"),
        ({"seeds": []}, r"seeds is \[\], but it must be a list of different whole numbers"),
        ({"seeds": [1, 1]}, r"seeds is \[1, 1\]"),
        ({"seeds": [-1]}, r"seeds is \[-1\]"),
        ({"seeds": [True]}, r"seeds is \[True\]"),
        ({"seeds": [2**32]}, r"seeds is \[4294967296\], .* from 0 to 2"),
        ({"output": "https://nowhere.invalid/x"}, "output is 'https:.* must be the path"),
        ({"data": [" "]}, r"data is \[' '\], but it must be a list of commands"),
        ({"data": ["python 'x"]}, "data is .* must be a list of commands"),
        ({"environment": {"A=B": 1}}, "environment is .* a mapping from names"),
        ({"environment": {"A": [1]}}, "environment is .* a mapping from names"),
        ({"environment": {"A": "x\0y"}}, "environment is .* a mapping from names"),
        ({"common": {"SOLVER.BASE_LR": -1.0}}, "row 'plain': SOLVER.BASE_LR is -1.0, but it must"),
        ({"metrics": []}, "metrics is"),
        ({"metrics": ["bbox/AP", "bbox/AP"]}, r"metrics is \['bbox/AP', 'bbox/AP'\]"),
        ({"metrics": ["segm/AP"], "rows": {"plain": RETINANET}}, "needs masks, but MODEL.MASK_ON"),
        ({"metrics": ["AP"]}, r"\['AP'\], but it must be a list like \[bbox/AP"),
        ({"metrics": ["bbox/AP", "bbox/Ap50"]}, r"'bbox/Ap50'\], but it must be a list like"),
        ({"metrics": ["voc/APs"]}, r"\['voc/APs'\], but it must be a list like"),
        ({"baseline": "plane"}, "baseline 'plane' is none of the rows: plain, lambda 0.1"),
        ({"baseline": None}, "key baseline is missing"),
        ({"rows": {}}, "rows is {}"),
        ({"rows": [1]}, r"rows is \[1\]"),
        ({"rows": {"plain": None}}, "row 'plain': this must be a mapping"),
        ({"rows": {"plain": {}}}, "row 'plain': the key config is missing"),
        ({"rows": {"plain": ROW}}, "row 'plain': .*config.* configs/none.yaml"),
        ({"rows": {"plain": {**ROW, "overide": {}}}}, "no key 'overide'; did you mean overrides"),
        ({"rows": {"plain": ROW, "plain ": ROW}}, "'plain' and 'plain ' .* same folder, plain"),
        ({"rows": {"plain": ROW, "checkpoint": ROW}}, "'checkpoint' and 'checkpoint' .* folder"),
        ({"rows": {"plain": ROW, "a|b": ROW}}, r"name 'a\|b'"),
        ({"rows": {"plain": ROW, "results.csv": ROW}}, "'results.csv' would .* where a table is"),
        ({"rows": {"plain": ROW, "+": ROW}}, r"name '\+'"),
        ({"common": {"SEED": 3}}, "SEED can't be overridden"),
        ({"common": {"SOLVER.STEPS": None}}, "SOLVER.STEPS: None is not"),
        ({"common": {"SOLVER.MAX_ITR": 3}}, "SOLVER.MAX_ITR .*Did you mean SOLVER.MAX_ITER"),
        ({"common": {"SOLVER.MAX_ITER": 0}}, "'plain': SOLVER.MAX_ITER is 0, but it must be at"),
        ({"common": ["SOLVER.MAX_ITER", 3]}, "common is .* must be a mapping"),
        ({"train_net_args": ["--resume"]}, "can't have --resume"),
        ({"train_net_args": "--num-gpus 8"}, "must be a list of arguments"),
        ({"environment": ["A=B"]}, "must be a mapping from names"),
        ({"data": "make_data.py"}, "must be a list of commands"),
        ({"checkpoint": ROW}, "checkpoint: .*config.* configs/none.yaml"),
        ({"checkpoint": {**ROW, "evaluate": "plain"}}, "checkpoint: there is no key 'evaluate'"),
        ({"checkpoint": UNTESTED}, "checkpoint: DATASETS.TEST is empty, so that nothing would be"),
    ],
)
def test_mistakes_are_named(write_matrix, changes, message):
    with pytest.raises(UserError, match=message) as error:
        load_matrix(write_matrix(**changes))
    assert "matrix.yaml: " in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("evaluated", ["none", "soft", "softer"])
def test_only_a_trained_row_can_be_evaluated(write_matrix, config_file, evaluated):
    row = {"config": str(config_file)}
    rows = {
        "plain": row,
        "soft": {**row, "evaluate": evaluated},
        "softer": {**row, "evaluate": "plain"},
    }
    with pytest.raises(UserError, match=f"row 'soft': evaluate must be .* not '{evaluated}'"):
        load_matrix(write_matrix(rows=rows))


def test_weights_of_a_checkpoint_are_not_overridden(write_matrix, config_file):
    changes = {"common": {"MODEL.WEIGHTS": "mine.pth"}, "checkpoint": {"config": str(config_file)}}
    with pytest.raises(UserError, match="row 'plain': MODEL.WEIGHTS can't be overridden"):
        load_matrix(write_matrix(**changes))


@pytest.mark.parametrize(
    "text, message",
    [
        ("rows: {a: 1, a: 2}", "the key 'a' stands there again in line 1"),
        ("rows: [", "is not a plain YAML file"),
        ("rows: !!python/object/apply:os.system ['true']", "is not a plain YAML file"),
        ("", "this must be a mapping of keys to values, not None"),
        ("- 1", "this must be a mapping"),
        (None, "cannot read .*: No such file"),
    ],
)
def test_files_that_are_no_matrix(tmp_path, text, message):
    path = tmp_path / "matrix.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_matrix(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_matrices(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    matrix = load_matrix(path)
    assert f"python tools/run_experiments.py configs/experiments/{path.name}" in path.read_text()
    assert matrix.output == Path("output", "experiments", path.stem)
    # Rows that are compared have the same schedule and see the same data.
    trained = [run for run in matrix.runs if run.row in matrix.rows and not run.is_evaluation]
    for key in ("SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.IMS_PER_BATCH"):
        assert len({str(run.settings["config"][key]) for run in trained}) == 1, key
    # At the same learning rate, too, but for rows that say which they have.
    rates = {run.row: run.settings["config"]["SOLVER.BASE_LR"] for run in trained}
    for row, rate in rates.items():
        usual, says = rates[matrix.baseline], re.search(r"learning rate ([x/]?) ?([\d.]+)$", row)
        sign, number = (says[1], float(says[2])) if says else ("x", 1)
        expected = {"x": usual * number, "/": usual / number, "": number}[sign]
        assert rate == pytest.approx(expected), row
    # But an oracle is trained on what the others can't know, and after an audit on what it wrote.
    others = [run for run in matrix.runs if not run.row.startswith(("oracle", "audit"))]
    for key, runs in (("DATASETS.TRAIN", others), ("DATASETS.TEST", matrix.runs)):
        assert len({str(run.settings["config"][key]) for run in runs}) <= 1, key


def test_the_seed_in_a_matrix(write_matrix, config_file):
    rows = {"plain": {"config": str(config_file), "overrides": {"DATASETS.TEST": ["mine_{seed}"]}}}
    matrix = load_matrix(
        write_matrix(
            rows=rows,
            data=["make all", "make fold {seed}"],
            train_net_args=["--register-coco", "mine_{seed}", "{seed}.json", "pictures"],
        )
    )
    assert matrix.data_commands == ["make all", "make fold 1", "make fold 2"]
    for run in matrix.runs:
        arguments = run.arguments()
        start = arguments.index("--register-coco")
        assert arguments[start + 1 : start + 3] == [f"mine_{run.seed}", f"{run.seed}.json"]
        assert f"['mine_{run.seed}']" in arguments
        run.check_config()
