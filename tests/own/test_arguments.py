import argparse

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.engine import default_argument_parser

from swn_d2.data import make_digit_scenes, origin_of
from swn_d2.errors import UserError
from swn_d2.own import add_own_arguments, register_own, take_overrides
from tests.voc import voc_object, write_voc

pytestmark = pytest.mark.usefixtures("clean_catalog")


@pytest.fixture
def coco(tmp_path_factory):
    root = make_digit_scenes(tmp_path_factory.mktemp("own") / "digits", num_train=2, num_val=1)
    return str(root / "annotations" / "instances_train.json"), str(root / "train")


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """A folder of two splits, of which one lacks a class."""
    monkeypatch.chdir(tmp_path)
    red, white = voc_object("RBC"), voc_object("WBC")
    write_voc(tmp_path / "cells", {"a": [red], "b": [white, red]}, "train")
    write_voc(tmp_path / "cells", {"c": [red], "d": []}, "val")
    return tmp_path / "cells"


def parse(*argv, parser=None):
    parser = parser or argparse.ArgumentParser()
    add_own_arguments(parser)
    return parser.parse_args(argv)


def test_coco(coco):
    args = parse("--register-coco", "one", *coco, "--register-coco", "two", *coco)
    register_own(args)
    register_own(args)  # as a parent and its worker in one process would
    assert len(DatasetCatalog.get("one")) == len(DatasetCatalog.get("two")) == 2
    assert MetadataCatalog.get("one").thing_classes == list("0123456789")
    assert MetadataCatalog.get("one").evaluator_type == "coco"
    assert origin_of("one").given == coco and origin_of("coco_2017_train") is None
    register_own(parse())  # the options may be left out


def test_voc_with_its_classes(cells, capsys):
    args = parse("--register-voc", "own", "cells", "train", "WBC", "RBC")
    for _ in range(2):
        register_own(args)
    assert MetadataCatalog.get("own").thing_classes == ["WBC", "RBC"]
    classes = [[a["category_id"] for a in r["annotations"]] for r in DatasetCatalog.get("own")]
    assert classes == [[1], [0, 1]]
    assert origin_of("own").given == ("cells",)
    assert capsys.readouterr().out == ""


def test_a_run_that_is_taken_for_a_class(cells):
    (cells.parent / "run").mkdir()
    (cells.parent / "run" / "config.yaml").touch()
    args = parse("--register-voc", "own", "cells", "train", "RBC", "run")
    with pytest.raises(UserError, match="--register-voc own takes run for a class"):
        register_own(args)


def test_voc_without_classes(cells, capsys):
    args = parse(
        *("--register-voc", "own_train", "cells", "train"),
        *("--register-voc", "own_val", "cells", "val"),
    )
    for _ in range(2):  # looked up and told once
        register_own(args)
    for name in ("own_train", "own_val"):  # also where a split has no object of a class
        assert MetadataCatalog.get(name).thing_classes == ["RBC", "WBC"]
    told = capsys.readouterr().out.splitlines()
    assert [line.split(".")[0] for line in told] == [
        f"own_{split}: 2 classes, found in cells: RBC, WBC" for split in ("train", "val")
    ]


def test_vocs_own_classes(tmp_path):
    write_voc(tmp_path / "voc", {"a": [voc_object("dog")], "b": [voc_object("cat")]})
    register_own(parse("--register-voc", "own", str(tmp_path / "voc"), "train"))
    assert MetadataCatalog.get("own").thing_classes == list(CLASS_NAMES)


def test_files_of_no_split_do_no_harm(cells):
    (cells / "Annotations" / "broken.xml").write_text("<annotation>")
    (cells / "Annotations" / "nameless.xml").write_text("<annotation><object/></annotation>")
    register_own(parse("--register-voc", "own", "cells", "train"))
    assert MetadataCatalog.get("own").thing_classes == ["RBC", "WBC"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["own"], "--register-voc own: give a name, a folder and a split"),
        (["", "cells", "train"], "give a name, a folder"),
        (["own", "nowhere", "train"], "own: there is no file nowhere/ImageSets/Main/train.txt"),
        (["own", "cells", "test"], "no file cells/ImageSets/Main/test.txt, which has the names"),
        (["own", "empty", "train"], "no annotation in empty/Annotations has an object"),
        (["coco_2017_train", "cells", "train"], "coco_2017_train is already taken"),
    ],
)
def test_voc_that_is_not_there(cells, words, message):
    write_voc(cells.parent / "empty", {"a": [], "b": []})
    with pytest.raises(UserError, match=message):
        register_own(parse("--register-voc", *words))
    assert "own" not in DatasetCatalog


@pytest.mark.parametrize(
    "words, classes, opts",
    [
        (["RBC", "MODEL.MASK_ON", "False"], ["RBC"], ["MODEL.MASK_ON", "False"]),
        (["SEED", "1"], [], ["SEED", "1"]),
        (["RECORDING.PERIOD", "0"], [], ["RECORDING.PERIOD", "0"]),
        (["MODEL", "SEEDS", "MODLE.X"], ["MODEL", "SEEDS", "MODLE.X"], []),
        (["RBC", "--resume", "SEED", "1"], ["RBC"], ["SEED", "1"]),
    ],
)
def test_overrides_are_no_classes(words, classes, opts):
    args = parse(
        "--register-voc", "own", "cells", "train", *words, parser=default_argument_parser()
    )
    take_overrides(args)
    assert args.register_voc == [["own", "cells", "train", *classes]]
    assert args.opts == opts and args.resume == ("--resume" in words)


def test_the_help_shows_them(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--register-voc NAME FOLDER SPLIT [CLASS ...]" in text
    assert "--register-coco NAME ANNOTATIONS.json IMAGE_DIR" in text and "--import FILE.py" in text
