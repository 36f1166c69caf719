"""tools/make_voc_subset.py."""

from pathlib import Path

from swn_d2.data.voc_subset import voc_part_of
from tests import processes
from tests.voc import voc_object, write_voc

TOOL = Path(__file__).parents[2] / "tools" / "make_voc_subset.py"


def test_it_makes_the_folder_once(tmp_path):
    names = [f"{i:06}" for i in range(1, 9)]
    objects = [voc_object("dog", (1, 1, 100, 100))]
    voc = write_voc(tmp_path / "VOC2007", dict.fromkeys(names, objects), split="test")
    output = tmp_path / "small"
    result = processes.run(TOOL, voc, output)
    assert result.returncode == 0, result.stderr
    parts = [voc_part_of(f"{name}.jpg") for name in names]
    numbers = ", ".join(f"{part} {parts.count(part)}" for part in ("train", "val", "held_out"))
    assert result.stdout == f"Pictures: {numbers}. They are in {output}.\n"
    assert len(list((output / "images").iterdir())) == 8

    again = processes.run(TOOL, voc, output)
    assert again.returncode == 1 and again.stdout == ""
    assert again.stderr == f"error: {output} exists already; remove it, or give another name.\n"
