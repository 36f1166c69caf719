"""tools/check_gpu.py on the CPU, where it runs everything at a small size."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from swn_d2.checks.detectors import DETECTORS
from swn_d2.checks.outcomes import Check, CheckFailed, Figure
from tests import processes

TOOL = Path(__file__).parents[2] / "tools" / "check_gpu.py"
sys.path.insert(0, str(TOOL.parent))
tool = importlib.import_module("check_gpu")


def test_everything_passes_on_the_cpu(tmp_path):
    result = processes.run(TOOL, "--cpu", "--output", "folder/found.json", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "folder" / "found.json").read_text())
    assert found["environment"]["device"] == "cpu"
    checks = {check["name"]: check for check in found["checks"]}
    for name, check in checks.items():
        assert check["status"] == "passed" and check["figures"], (name, check)
        assert f"| {name} | {check['figures'][0]['name']} |" in result.stdout
    for detector in DETECTORS:
        for about in (
            "losses and gradients, float32",
            "losses and gradients, bfloat16",
            "synchronisations",
            "cost, 2 pictures, float32",
            "cost, 3 pictures",
            "training, bfloat16",
            "inference",
            "resume",
            "kernels",
        ):
            assert f"{detector}: {about}" in checks
    for name in ("weighting step", "weighting step, compiled", "suppression", "processes: 2"):
        assert name in checks
    assert not any("torch.compile failed" in str(check) for check in checks.values())
    assert str(Path.home()) not in json.dumps(found)


def run(monkeypatch, *arguments, checks=()):
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", *map(str, arguments)])
    monkeypatch.setattr(tool, "all_checks", lambda *args: checks)
    tool.main()


def test_a_failed_check_is_exit_status_1_and_a_missed_goal_is_not(monkeypatch, tmp_path, capsys):
    def fail():
        raise CheckFailed("the loss differs")

    missed = Check("slow", lambda: [Figure("ratio", 2.0, goal=1.0)], 0)
    run(monkeypatch, "--cpu", "--output", tmp_path / "missed.json", checks=[missed])
    assert "| slow | ratio | 2 | ≤ 1 | **goal missed** |" in capsys.readouterr().out
    output = tmp_path / "failed.json"
    with pytest.raises(SystemExit, match="error: 1 of 2 checks failed"):
        run(monkeypatch, "--cpu", "--output", output, checks=[Check("wrong", fail, 0), missed])
    printed = capsys.readouterr().out
    assert "wrong: failed: the loss differs (0.0 s)" in printed
    assert "| wrong |  | **failed** |  | the loss differs |" in printed
    statuses = [check["status"] for check in json.loads(output.read_text())["checks"]]
    assert statuses == ["failed", "passed"]


def test_a_file_that_exists_is_kept(monkeypatch, tmp_path):
    output = tmp_path / "found.json"
    output.write_text("mine")
    with pytest.raises(SystemExit, match="found.json exists already; remove it, or give another"):
        run(monkeypatch, "--cpu", "--output", output)
    assert output.read_text() == "mine"


def test_without_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="error: torch finds no GPU here; --cpu runs the same"):
        run(monkeypatch, "--output", tmp_path / "found.json")


def test_bad_budget(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="error: --budget must be more than 0"):
        run(monkeypatch, "--cpu", "--budget", "nan", "--output", tmp_path / "found.json")
