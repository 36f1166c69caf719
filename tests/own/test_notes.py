"""What a run's folder knows of its data, written and read again as by other processes."""

import json
import shutil
import sys

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from swn_d2.data import make_digit_scenes, register_coco, register_voc, unknown_dataset
from swn_d2.engine import check_run
from swn_d2.errors import UserError
from swn_d2.own import import_file, note_own, recall
from swn_d2.own.notes import REGISTERED
from tests.tiny import tiny_config
from tests.voc import CLASSES, voc_object, write_voc

pytestmark = pytest.mark.usefixtures("clean_catalog")
DIGITS = list("0123456789")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with data in both formats."""
    folder = tmp_path_factory.mktemp("project")
    make_digit_scenes(folder / "digits", num_train=3, num_val=2)
    write_voc(folder / "pets", {"a": [voc_object()], "b": [voc_object("cat")]})
    return folder


@pytest.fixture
def here(project, tmp_path, monkeypatch):
    """A copy of it, as the current folder, with a run that knows the data."""
    here = tmp_path / "project"
    shutil.copytree(project, here)
    monkeypatch.chdir(here)
    yield here
    forget()  # what is known of data that are gone


def forget():
    """As in a new process."""
    for name in ("own_digits", "own_pets"):
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog:
                catalog.remove(name)


def files(folder="digits"):
    return f"{folder}/annotations/instances_train.json", f"{folder}/train"


def note(run="run", *names, folder="digits"):
    """The folder of a run on data with these names."""
    names = names or ("own_digits", "own_pets")
    if "own_digits" in names:
        register_coco("own_digits", *files(folder))
    if "own_pets" in names:
        register_voc("own_pets", "pets", "train", CLASSES)
    note_own(run, tiny_config("DATASETS.TRAIN", names[:1], "DATASETS.TEST", names[1:]))
    forget()
    return run


def num_images(*names):
    return [len(DatasetCatalog.get(name)) for name in names]


def test_names_and_classes_are_known_again(here, tmp_path, monkeypatch):
    note()
    monkeypatch.chdir(tmp_path)  # the paths were relative
    for _ in range(2):
        recall("project/run")
    assert MetadataCatalog.get("own_digits").thing_classes == DIGITS  # and nothing is read
    assert num_images("own_digits", "own_pets") == [3, 2]
    assert MetadataCatalog.get("own_pets").thing_classes == list(CLASSES)
    assert MetadataCatalog.get("own_pets").split == "train"


def test_whose_ap_a_voc_data_set_has_is_known_again(here):
    register_voc("own_pets", "pets", "train", CLASSES, year=2007)
    note_own("run", tiny_config("DATASETS.TRAIN", ("own_pets",)))
    file = here / "run" / REGISTERED
    forget()
    recall("run")
    assert MetadataCatalog.get("own_pets").year == 2007
    content = json.loads(file.read_text())
    del content["data_sets"]["own_pets"]["year"]  # as an earlier version wrote it
    file.write_text(json.dumps(content))
    forget()
    recall("run")
    assert MetadataCatalog.get("own_pets").year == 2012


def test_classes_that_a_run_has_not_learned(here):
    annotations, images = files()
    register_coco("own_digits", annotations, images)
    DatasetCatalog.get("own_digits")
    note_own("run", tiny_config("DATASETS.TRAIN", ("own_digits",)), is_training=True)
    content = json.loads((here / annotations).read_text())
    content["categories"].reverse()
    for number, category in enumerate(content["categories"]):
        category["id"] = number  # 9 is what was 0
    (here / "reversed.json").write_text(json.dumps(content))
    register_coco("reversed", "reversed.json", images)
    (here / "run" / "model_final.pth").touch()
    cfg = tiny_config(
        *("DATASETS.TRAIN", ("reversed",), "DATASETS.TEST", ("reversed",)),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 10, "OUTPUT_DIR", "another"),
    )
    check_run(cfg, eval_only=False, resume=False)  # a run of its own
    refusal = "reversed has the categories 9, 8.* the run in run has learned 0, 1"
    cfg.MODEL.WEIGHTS = "run/model_final.pth"
    check_run(cfg, eval_only=False, resume=False)  # which may begin with other classes
    with pytest.raises(UserError, match=refusal):
        check_run(cfg, eval_only=True, resume=False)
    (here / "run" / "model_final.pth").unlink()
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = "run", ""
    check_run(cfg, eval_only=False, resume=True)  # nothing is learned yet
    for name in ("model_0000009.pth", "last_checkpoint"):
        (here / "run" / name).write_text("model_0000009.pth")
    with pytest.raises(UserError, match=refusal):
        check_run(cfg, eval_only=False, resume=True)
    # What is evaluated there teaches nothing.
    note_own("run", tiny_config("DATASETS.TEST", ("reversed",)))
    assert json.loads((here / "run" / REGISTERED).read_text())["learned"] == DIGITS


def test_what_it_looks_like(here):
    note()
    content = json.loads((here / "run" / REGISTERED).read_text())
    digits, pets = content.pop("data_sets").values()
    assert content == {"format": "swn_d2 registered", "version": 1, "imports": []}
    annotations, images = files()
    assert digits == {
        "format": "coco",
        "classes": DIGITS,
        "paths": {
            "annotations": {"absolute": str(here / annotations), "given": annotations},
            "images": {"absolute": str(here / images), "given": images},
        },
    }
    assert pets == {
        "format": "voc",
        "split": "train",
        "year": 2012,
        "classes": list(CLASSES),
        "paths": {"folder": {"absolute": str(here / "pets"), "given": "pets"}},
    }


def test_nothing_is_written_where_nothing_is_ones_own(tmp_path):
    cfg = tiny_config("DATASETS.TRAIN", ("coco_2017_train", "unknown"))
    note_own(tmp_path, cfg)
    recall(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_was_known_stays_known(here):
    note("run", "own_digits")
    before = json.loads((here / "run" / REGISTERED).read_text())["data_sets"]
    note("run", "own_pets")  # an evaluation on other data
    after = json.loads((here / "run" / REGISTERED).read_text())["data_sets"]
    assert list(after) == ["own_digits", "own_pets"]
    assert after["own_digits"] == before["own_digits"]


def test_a_project_that_has_moved_as_a_whole(here, tmp_path, monkeypatch):
    note()
    here.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    recall("run")
    assert num_images("own_digits", "own_pets") == [3, 2]
    note_own("run", tiny_config("DATASETS.TRAIN", ("own_digits",)))  # as when it is resumed
    text = (tmp_path / "moved" / "run" / REGISTERED).read_text()
    assert str(tmp_path / "moved" / "digits") in text and str(here / "digits") not in text


@pytest.mark.parametrize(
    "name, folder, option",
    [
        ("own_digits", "digits", "--register-coco own_digits ANNOTATIONS.json IMAGE_DIR."),
        ("own_pets", "pets", "--register-voc own_pets FOLDER train."),
    ],
)
def test_data_that_have_moved(here, name, folder, option):
    note()
    (here / folder).rename(here / "moved")
    for _ in range(2):
        recall("run")
    assert name not in DatasetCatalog
    message = unknown_dataset(name)
    assert f"the data set {name} of run is not where it was, {here / folder}" in message
    assert message.endswith(f"say where it is with {option}")
    assert MetadataCatalog.get(name).thing_classes  # which are enough to label pictures
    if name == "own_digits":  # given anew
        register_coco(name, *files("moved"))
        assert num_images(name) == [3]


def test_the_command_line_goes_first(here):
    note("run", "own_digits")
    shutil.copytree("digits", "others")
    register_coco("own_digits", *files("others"))
    recall("run")
    assert MetadataCatalog.get("own_digits").json_file == files("others")[0]
    note_own("run", tiny_config("DATASETS.TRAIN", ("own_digits",)))
    assert str(here / "others" / "train") in (here / "run" / REGISTERED).read_text()


def test_one_name_for_different_data(here):
    shutil.copytree("digits", "others")
    note("a", "own_digits")
    note("b", "own_digits", folder="others")
    recall("a")
    recall("a/../a")  # the same data
    assert "own_digits" in DatasetCatalog
    recall("b")
    assert "own_digits" not in DatasetCatalog
    assert "a and b have different data under the name own_digits; say which are meant with" in (
        unknown_dataset("own_digits")
    )
    recall("a")
    assert "own_digits" not in DatasetCatalog


@pytest.mark.parametrize("change", [{"split": "val"}, {"classes": ["cat", "dog"]}])
def test_one_name_for_another_split_or_other_classes(here, change):
    note("a", "own_pets")
    note("b", "own_pets")
    content = json.loads((here / "b" / REGISTERED).read_text())
    content["data_sets"]["own_pets"] |= change
    (here / "b" / REGISTERED).write_text(json.dumps(content))
    recall("a"), recall("b")
    assert "a and b have different data under the name own_pets" in unknown_dataset("own_pets")


@pytest.mark.usefixtures("forget_imports")
def test_code_is_asked_for_and_never_run(here, capsys):
    code = here / "my_noted_code.py"
    code.write_text("print('runs')")
    import_file("my_noted_code.py")
    note_own("run", tiny_config("DATASETS.TRAIN", ("coco_2017_train",)))
    recall("run")
    assert "runs" in capsys.readouterr().out
    del sys.modules["my_noted_code"]
    with pytest.raises(UserError, match="run was made .* give --import my_noted_code.py again"):
        recall("run")
    assert capsys.readouterr().out == ""
    assert "runs" not in (here / "run" / REGISTERED).read_text()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content.update(format="other"),
        lambda content: content.update(version=2),
        lambda content: content.update(imports=[1]),
        lambda content: content.pop("data_sets"),
        lambda content: content.update(data_sets=[]),
        lambda content: content.update(data_sets={"": content["data_sets"]["own_pets"]}),
        lambda content: content["data_sets"]["own_digits"].update(format="voc"),
        lambda content: content["data_sets"]["own_digits"].update(format=[]),
        lambda content: content["data_sets"]["own_digits"].update(classes=None),
        lambda content: content["data_sets"]["own_digits"]["paths"].pop("images"),
        lambda content: content["data_sets"]["own_pets"]["paths"]["folder"].update(absolute=3),
    ],
)
def test_what_is_no_such_file(here, spoil):
    note()
    file = here / "run" / REGISTERED
    content = json.loads(file.read_text())
    spoil(content)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="registered.json is not what a run notes"):
        recall("run")
    before = file.read_bytes()
    with pytest.raises(UserError, match="registered.json is not what a run notes"):
        note("run", "own_digits")
    assert file.read_bytes() == before


def test_a_file_that_is_cut(here):
    (here / "run").mkdir()
    (here / "run" / REGISTERED).write_text('{"format"')
    with pytest.raises(UserError, match="registered.json is not valid JSON"):
        recall("run")
