"""Runs that were made elsewhere, of which a runs.csv is all that is there."""

import csv
import io
import json
import shutil

import pytest

from swn_d2 import UserError, add_swn_config, config
from swn_d2.experiments import (
    Runner,
    collect,
    describe,
    load_matrix,
    read_known,
    results,
    write_results,
)
from swn_d2.experiments.known import fingerprints, take_stock
from swn_d2.weighting import SAMPLE_WEIGHTER_REGISTRY, Uniform
from tests.experiments.test_processes import EVALUATION
from tests.experiments.test_results import APS, finish

METRICS = ["bbox/AP", "bbox/APl"]


@pytest.fixture
def made_elsewhere(tmp_path, monkeypatch):
    """Makes the file that is left of runs; nothing stays in the matrix' output folder."""
    monkeypatch.setattr(results, "plot_rows", lambda *args: None)  # which takes a second

    def make(file, aps=APS, name="runs.csv"):
        matrix = load_matrix(file)
        finish(matrix, aps)
        write_results(matrix, collect(matrix), "command")
        kept = tmp_path / name
        shutil.move(matrix.output / "runs.csv", kept)
        shutil.rmtree(matrix.output)
        return kept

    return make


@pytest.fixture
def with_sources(config_file):
    """A common checkpoint, two trainings that start from it, and an evaluation of each."""
    row = {"config": str(config_file)}
    rows = {
        "plain": row,
        "other": row,
        "soft": {**row, "evaluate": "plain"},
        "softer": {**row, "evaluate": "plain"},
        "other soft": {**row, "evaluate": "other"},
    }
    return {"seeds": [1], "checkpoint": row, "rows": rows}


def edit(file, change):
    """Rewrite a CSV file line by line; ``change`` gets a dict and returns one, or None."""
    lines = list(csv.DictReader(io.StringIO(file.read_text())))
    lines = [line for line in map(change, lines) if line is not None]
    with open(file, "w", newline="") as text:
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def stock(matrix, *files):
    """Names of the runs that count as done, and of those that are to be run."""
    known, notes = read_known(matrix, files)
    assert notes == []
    done, missing = take_stock(matrix, known)
    return list(done), [run.name for run in missing]


def test_everything_is_as_it_was(write_matrix):
    """The tables, with a metric that is not defined, a training that detected nothing, and one of
    which no commit is known."""
    matrix = load_matrix(write_matrix(metrics=METRICS))
    finish(matrix, {**APS, ("lambda 0.1", 2): 0.0})
    file = matrix.runs[0].folder / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "commit": None}))
    write_results(matrix, collect(matrix), "command")
    tables = [matrix.output / name for name in ("results.md", "results.csv", "runs.csv")]
    before = [table.read_text() for table in tables]
    for run in matrix.runs:
        shutil.rmtree(run.folder)
    known, notes = read_known(matrix, [tables[-1]])
    assert notes == [] and len(known) == 4
    write_results(matrix, collect(matrix, known), "command")
    assert [table.read_text() for table in tables] == before
    assert known["plain, seed 1"]["versions"] == {"torch": "2"}
    assert known["plain, seed 1"]["metrics"] == {"bbox/AP": 50.0, "bbox/APl": None}


def test_only_what_is_missing_is_run(write_matrix, made_elsewhere, tmp_path, capsys):
    file = write_matrix()
    kept = made_elsewhere(file, {key: ap for key, ap in APS.items() if key != ("plain", 2)})
    matrix = load_matrix(file)
    known, _ = read_known(matrix, [kept])
    lines = describe(matrix, "train_net.py", known)
    assert lines[0] == f"plain, seed 1: done, bbox/AP 50.00 (in {kept})"
    assert lines[2].startswith("plain, seed 2: train\n")
    script = tmp_path / "script.py"
    script.write_text(EVALUATION)
    assert Runner(matrix, script, known=known).run() == {}
    assert "[3/4]" in capsys.readouterr().out
    assert [run.name for run in matrix.runs if run.folder.exists()] == ["plain, seed 2"]
    table = collect(matrix, known)
    assert [table[run.row, run.seed]["metrics"]["bbox/AP"] for run in matrix.runs] == [
        *(50.0, 51.0, 50.0, 55.0)  # the third is what the script prints
    ]
    # Also in the next start, and on the next machine.
    assert Runner(matrix, script, known=known).pending == []
    write_results(matrix, table, "command")
    assert stock(matrix, matrix.output / "runs.csv")[1] == []


def test_the_folder_goes_before_the_file(write_matrix, made_elsewhere):
    file = write_matrix()
    kept = made_elsewhere(file)
    matrix = load_matrix(file)
    finish(matrix, {("plain", 1): 40.0})
    table = collect(matrix, read_known(matrix, [kept])[0])
    assert table["plain", 1]["metrics"]["bbox/AP"] == 40.0
    assert table["plain", 2]["metrics"]["bbox/AP"] == 52.0


@pytest.mark.parametrize(
    "changes",
    [
        {"common": {"SOLVER.BASE_LR": 0.5}},
        {"train_net_args": ["--num-gpus", 2]},
        {"environment": {"DETECTRON2_DATASETS": "elsewhere"}},
        {"data": ["make other data"]},
        {"checkpoint": {}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_settings_are_not_used(write_matrix, made_elsewhere, config_file, changes):
    kept = made_elsewhere(write_matrix())
    changes = {key: value or {"config": str(config_file)} for key, value in changes.items()}
    matrix = load_matrix(write_matrix(**changes))
    known, notes = read_known(matrix, [kept])
    assert known == {}
    assert notes == [
        f"{kept}: 4 of 4 lines not used, such as plain, seed 1: "
        "it was made with other settings than the matrix now has."
    ]


def test_a_changed_source_changes_all_that_need_it(write_matrix, with_sources, config_file):
    def of(**overrides):
        row = {"config": str(config_file), "overrides": {"SOLVER.BASE_LR": 0.3, **overrides}}
        return fingerprints(load_matrix(write_matrix(**{**with_sources, "checkpoint": row})))

    before, after = of(), of(**{"SOLVER.MAX_ITER": 8})
    assert len(before) == 6 and all(before[name] != after[name] for name in before)
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in before.values())


def test_what_is_no_setting_changes_nothing(write_matrix, made_elsewhere, config_file, tmp_path):
    """Also a config file that says the same in another place."""
    kept = made_elsewhere(write_matrix(metrics=METRICS))
    mine = tmp_path / "mine.yaml"
    mine.write_text(config_file.read_text())
    rows = {
        "new": {"config": str(config_file), "overrides": {"SOLVER.BASE_LR": 0.5}},
        "plain": {"config": str(mine)},
        "lambda 0.1": {"config": str(mine), "overrides": {"MODEL.SWN.LAMBDA_BOX": 0.1}},
    }
    changes = {"title": "Other", "output": str(tmp_path / "other"), "metrics": METRICS[1:]}
    matrix = load_matrix(write_matrix(rows=rows, seeds=[2, 3, 1], **changes))
    done, missing = stock(matrix, kept)
    assert set(done) == {f"{row}, seed {seed}" for row, seed in APS}
    new = [("new", 2), ("new", 3), ("plain", 3), ("lambda 0.1", 3), ("new", 1)]
    assert missing == [f"{row}, seed {seed}" for row, seed in new]


def test_new_keys(write_matrix, monkeypatch):
    """A key that this package gains matters only where it is set, or is one of the weighter's."""

    def fingerprint(**changes):
        return fingerprints(load_matrix(write_matrix(**changes)))["plain, seed 1"]

    before = fingerprint()
    balanced = fingerprint(common={"MODEL.SAMPLE_WEIGHTER.NAME": "IoUBalanced"})

    def with_new_keys(cfg):
        add_swn_config(cfg)
        cfg.MODEL.NMS.NEW = 1.0
        cfg.MODEL.SAMPLE_WEIGHTER.IOUBALANCED.NEW = 1.0

    monkeypatch.setattr(config, "add_swn_config", with_new_keys)
    assert fingerprint() == before
    assert fingerprint(common={"MODEL.NMS.NEW": 2.0}) != before
    assert fingerprint(common={"MODEL.SAMPLE_WEIGHTER.NAME": "IoUBalanced"}) != balanced


def test_keys_of_weighters_that_a_run_does_not_have(write_matrix, monkeypatch):
    """They change nothing; SWN's count for a weighter of a user's, which may read them."""

    def fingerprint(**common):
        matrix = load_matrix(write_matrix(common=common))
        return fingerprints(matrix)["plain, seed 1"]

    lambda_box = {"MODEL.SWN.LAMBDA_BOX": 0.1}
    for common, is_same in (
        ({"MODEL.ROI_HEADS.NAME": "StandardROIHeads"}, True),
        ({"MODEL.SAMPLE_WEIGHTER.NAME": "IoUBalanced"}, True),
        ({"MODEL.SAMPLE_WEIGHTER.NAME": "SWN"}, False),
        ({"MODEL.SAMPLE_WEIGHTER.NAME": "Mine"}, False),
    ):
        if "Mine" in common.values():
            mine = {"Mine": type("Mine", (Uniform,), {"__module__": "mine"})}
            monkeypatch.setattr(
                SAMPLE_WEIGHTER_REGISTRY, "_obj_map", {**SAMPLE_WEIGHTER_REGISTRY._obj_map, **mine}
            )
        assert (fingerprint(**common) == fingerprint(**common, **lambda_box)) == is_same, common
    assert fingerprint() == fingerprint(**{"MODEL.SAMPLE_WEIGHTER.OHEM.NUM_SAMPLES": 7})


def test_lines_that_are_not_used_are_counted(write_matrix, made_elsewhere):
    kept = made_elsewhere(write_matrix())
    older = kept.with_name("older.csv")
    shutil.copy(kept, older)
    edit(older, lambda line: {key: line[key] for key in line if key != "settings"})
    matrix = load_matrix(write_matrix(seeds=[2], metrics=METRICS))
    known, notes = read_known(matrix, [kept, older])
    assert known == {}
    assert notes == [
        f"{kept}: 2 of 4 lines not used, such as plain, seed 1: the matrix has no such run.",
        f"{kept}: 2 of 4 lines not used, such as plain, seed 2: it has no bbox/APl.",
        f"{older}: 2 of 4 lines not used, such as plain, seed 1: the matrix has no such run.",
        f"{older}: 2 of 4 lines not used, such as plain, seed 2: it does not say with which "
        "settings it was made, as files of older versions.",
    ]


def test_files_that_disagree(write_matrix, made_elsewhere):
    file = write_matrix()
    kept, same = made_elsewhere(file), made_elsewhere(file, name="same.csv")
    other = made_elsewhere(file, {**APS, ("plain", 2): 52.5}, name="other.csv")
    matrix = load_matrix(file)
    assert len(read_known(matrix, [kept, same])[0]) == 4
    with pytest.raises(UserError) as error:
        read_known(matrix, [kept, other])
    assert f"plain, seed 2 has bbox/AP 52.0 in {kept}, but 52.5 in {other}" in str(error.value)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "cannot read the known runs of .*: No such file"),
        ("", "is no runs.csv, since it has no column row"),
        ("row,bbox/AP\nplain,50\n", "is no runs.csv, since it has no column seed"),
        (b"row,seed\n\xff,1\n", "is no runs.csv, since it is no CSV file"),
        ({"seconds": "long"}, "a damaged line for plain, seed 1 .*'long'"),
        ({"bbox/AP": "nan"}, "a damaged line for plain, seed 1 .*nan is not finite"),
        ({"versions": "unknown"}, "a damaged line for plain, seed 1"),
    ],
)
def test_files_that_are_none(write_matrix, made_elsewhere, tmp_path, text, message):
    file = write_matrix()
    kept = tmp_path / "runs.csv"
    if isinstance(text, dict):
        edit(made_elsewhere(file), lambda line: {**line, **text})
    elif text is not None:
        kept.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as error:
        read_known(load_matrix(file), [kept])
    assert "\n" not in str(error.value)


ALL = {(row, 1): 50.0 for row in ("checkpoint", "plain", "other", "soft", "softer", "other soft")}


@pytest.mark.parametrize(
    "missing, again",
    [
        ((), ()),
        (("checkpoint",), ("checkpoint",)),  # nothing needs it, but the table lacks it
        # An evaluation: what it evaluates, what that starts from, and its other evaluations.
        (("soft",), ("checkpoint", "plain", "soft", "softer")),
        # A training: what it starts from. Its evaluations can't be of another one.
        (("other",), ("checkpoint", "other", "other soft")),
    ],
)
def test_a_checkpoint_that_is_needed_is_made_again(
    write_matrix, made_elsewhere, with_sources, missing, again
):
    file = write_matrix(**with_sources)
    kept = made_elsewhere(file, ALL)
    edit(kept, lambda line: None if line["row"] in missing else line)
    matrix = load_matrix(file)
    done, to_run = stock(matrix, kept)
    assert to_run == [f"{row}, seed 1" for row in again]
    # For the tables, all that is known is done.
    assert set(done) == {f"{row}, seed 1" for row, _ in ALL if row not in missing}


def test_evaluations_of_the_checkpoint_in_the_folder(
    write_matrix, made_elsewhere, with_sources, tmp_path, capsys
):
    """After "soft" is run, with all that it needs, its folder's figures count."""
    file = write_matrix(**with_sources)
    kept = made_elsewhere(file, {**ALL, ("other", 1): 70.0, ("softer", 1): 60.0})
    edit(kept, lambda line: None if line["row"] == "soft" else line)
    matrix = load_matrix(file)
    known, _ = read_known(matrix, [kept])
    script = tmp_path / "script.py"
    script.write_text(EVALUATION.replace("50.0", "51.0"))
    assert Runner(matrix, script, known=known).run() == {}
    assert "[2/6]" in capsys.readouterr().out
    aps = {row: result["metrics"]["bbox/AP"] for (row, _), result in collect(matrix, known).items()}
    assert aps == {
        **dict.fromkeys(("checkpoint", "plain", "soft", "softer"), 51.0),
        **{"other": 70.0, "other soft": 50.0},
    }
    # Without its result, a known evaluation of "plain" would be of the earlier checkpoint.
    softer = next(run for run in matrix.runs if run.row == "softer")
    shutil.rmtree(softer.folder)
    done, missing = take_stock(matrix, known)
    assert missing == [softer] and softer.name not in done
    # But not if it is the one in the folder, which was brought along.
    source = json.loads((softer.source.folder / "result.json").read_text())
    known = {**known, softer.source.name: {**known[softer.source.name], **source}}
    assert take_stock(matrix, known)[1] == []
