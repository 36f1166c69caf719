"""Predictions on one's own pictures: what is found, read, drawn and written."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from swn_d2.analysis.predictions import (
    build_predictor,
    class_names,
    draw_predictions,
    find_pictures,
    load_run_config,
    output_files,
    save_picture,
)
from swn_d2.data import make_digit_scenes, register_coco
from swn_d2.engine import SafeCheckpointer
from swn_d2.errors import UserError
from swn_d2.evaluation.drawing import PALETTE
from swn_d2.evaluation.pictures import read_pixels
from tests.tiny import tiny_config, tiny_model


@pytest.fixture
def folder(tmp_path):
    """A folder with pictures, one below, and other files."""
    (tmp_path / "below").mkdir()
    for name in ("b.jpg", "a.PNG", "[1].png", "below/c.jpg"):
        Image.new("RGB", (4, 3)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize(
    "patterns, names",
    [
        (["b.jpg", "[1].png"], ["b.jpg", "[1].png"]),
        (["notes.txt"], ["notes.txt"]),  # it was named, so that is said when it is read
        ([""], ["[1].png", "a.PNG", "b.jpg"]),
        (["*"], ["[1].png", "a.PNG", "b.jpg"]),
        (["**/*.jpg"], ["b.jpg", "below/c.jpg"]),
        (["b.jpg", "*"], ["b.jpg", "[1].png", "a.PNG"]),
    ],
)
def test_files_folders_and_globs(folder, patterns, names):
    found = find_pictures([str(folder / pattern) for pattern in patterns])
    assert found == [folder / name for name in names]


@pytest.mark.parametrize("pattern", ["none.jpg", "*.gif", "*.txt", "empty"])
def test_no_picture(folder, pattern):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="found no picture for .*" + pattern.replace("*", r"\*")):
        find_pictures([str(folder / "b.jpg"), str(folder / pattern)])


def test_outputs_keep_their_names(folder):
    pictures = [folder / name for name in ("b.jpg", "below/b.jpg", "b.webp", "b-2.jpg", "c.JPEG")]
    files = output_files(pictures, folder / "out")
    names = ["b.jpg", "b-2.jpg", "b.png", "b-2-2.jpg", "c.JPEG"]
    assert files == [folder / "out" / name for name in names]


def test_no_original_is_overwritten(folder):
    pictures = [folder / "b.jpg", folder / "below" / "c.jpg"]
    with pytest.raises(UserError, match="c.jpg would be overwritten.*--output"):
        output_files(pictures, folder / "below" / ".." / "below")


def test_pictures_are_read_upright(tmp_path):
    pixels = np.arange(30, dtype=np.uint8).reshape(2, 5, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert (read_pixels(tmp_path / "turned.png") == np.rot90(pixels, -1)).all()
    assert (read_pixels(tmp_path / "turned.png", "BGR") == np.rot90(pixels, -1)[..., ::-1]).all()


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n cut", None])
def test_unreadable_pictures_are_one_sentence(tmp_path, content):
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*bad\.png: .*\w\.$"):
        read_pixels(tmp_path / "bad.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a training as it is left, here without the training."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    cfg = tiny_config(
        *("DATASETS.TEST", ("predicted_val",)),
        *("OUTPUT_DIR", "where/it/was/trained"),
        *("MODEL.WEIGHTS", "what/it/started/from.pth"),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0),
    )
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    SafeCheckpointer(tiny_model(cfg), str(folder)).save("model_0000007")
    return folder


def test_the_folder_of_a_training_gives_config_and_checkpoint(run):
    cfg = load_run_config(str(run), ["INPUT.MIN_SIZE_TEST", "64"])
    assert cfg.MODEL.WEIGHTS == str(run / "model_0000007.pth")
    assert cfg.OUTPUT_DIR == str(run)
    assert cfg.INPUT.MIN_SIZE_TEST == 64
    assert load_run_config(str(run), ["MODEL.WEIGHTS", "mine.pth"]).MODEL.WEIGHTS == "mine.pth"


def test_the_config_of_a_training_stands_for_its_folder(run):
    cfg = load_run_config(str(run / "config.yaml"), ["MODEL.DEVICE", "cpu"])
    assert cfg == load_run_config(str(run), ["MODEL.DEVICE", "cpu"])


def test_a_config_file_gives_its_own_checkpoint(run, tmp_path):
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    cfg = load_run_config(str(tmp_path / "config.yaml"))
    assert cfg.MODEL.WEIGHTS == "what/it/started/from.pth"
    assert cfg.OUTPUT_DIR == "where/it/was/trained"


def test_what_is_missing_is_named(run, tmp_path):
    with pytest.raises(UserError, match="there is no .*nowhere"):
        load_run_config(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=f"{tmp_path.name}/config.yaml"):
        load_run_config(str(tmp_path))
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(UserError, match="no checkpoint.*--weights"):
        load_run_config(str(tmp_path))


def test_a_checkpoint_that_does_not_fit_is_refused(run):
    cfg = load_run_config(str(run), ["MODEL.ROI_HEADS.NUM_CLASSES", 7])
    with pytest.raises(UserError, match="does not fit this model"):
        build_predictor(cfg, score_threshold=0.5)
    cfg.MODEL.WEIGHTS = "none.pth"
    with pytest.raises(UserError, match="none.pth"):
        build_predictor(cfg, score_threshold=0.5)


def test_the_predictor_has_the_checkpoint_and_goes_down_to_the_threshold(run):
    predictor = build_predictor(load_run_config(str(run)), score_threshold=0.2)
    saved = torch.load(run / "model_0000007.pth")["model"]
    for name, tensor in predictor.model.state_dict().items():
        assert torch.equal(tensor.cpu(), saved[name]), name
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    # The config's own threshold, 1.0, lets nothing through.
    assert len(predictor(pixels)["instances"]) > 0


def test_class_names(tmp_path, clean_catalog):
    cfg = tiny_config("DATASETS.TEST", ("predicted_val",), "DATASETS.TRAIN", ("predicted_train",))
    with pytest.raises(UserError, match="no data set named predicted_val.*--register-coco"):
        class_names(cfg)
    root = make_digit_scenes(tmp_path / "digits", num_train=1, num_val=1, image_size=(96, 64))
    annotations = root / "annotations" / "instances_train.json"
    # As another process finds it: registered, and not read yet.
    register_coco("predicted_train", str(annotations), str(root / "train"))
    assert class_names(cfg) == [str(digit) for digit in range(10)]
    cfg.DATASETS.TEST = ("coco_2017_val",)
    assert class_names(cfg)[0] == "person"


def prediction(boxes, classes, size, masks=None):
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    instances.scores = torch.linspace(0.6, 0.9, len(classes))
    if masks is not None:
        instances.pred_masks = masks
    return instances


def rgb(color):
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])


def test_without_detections_the_picture_is_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (701, 1001, 3), dtype=np.uint8)
    pixels = pixels[..., ::-1]  # as from a BGR picture
    assert (draw_predictions(pixels, prediction([], [], (701, 1001)), []) == pixels).all()


def test_small_pictures_are_enlarged():
    pixels = np.full((30, 45, 3), 77, dtype=np.uint8)
    drawn = draw_predictions(pixels, prediction([], [], (30, 45)), [])
    assert drawn.shape == (600, 900, 3) and (drawn == 77).all()


def test_boxes_are_drawn_in_the_colors_of_their_classes():
    pixels = np.full((700, 1000, 3), 128, dtype=np.uint8)
    boxes = [[100, 200, 400, 500], [600, 200, 900, 500]]
    drawn = draw_predictions(pixels, prediction(boxes, [1, 6], (700, 1000)), ["cat"] * 7)
    # The middle of a line that is 2.5 pixels wide.
    assert abs(drawn[498:502, 250] - rgb(PALETTE[1])).max(axis=1).min() <= 2
    assert abs(drawn[350, 898:902] - rgb(PALETTE[0])).max(axis=1).min() <= 2
    # What is away from the boxes and their labels is as it was.
    changed = (drawn != pixels).any(axis=2)
    assert changed[350, 95:105].any() and changed[150:200, 100:200].any()
    assert not changed[205:495, 105:395].any() and not changed[:150].any()


def test_masks_are_half_of_what_is_seen():
    size = (600, 1000)
    masks = torch.zeros(1, *size, dtype=torch.bool)
    masks[0, 300:400, 100:200] = True
    pixels = np.full((*size, 3), 100, dtype=np.uint8)
    instances = prediction([[50, 100, 500, 500]], [2], size, masks)
    drawn = draw_predictions(pixels, instances, [])
    expected = (100 + rgb(PALETTE[2])) / 2
    assert abs(drawn[305:395, 105:195] - expected).max() <= 1
    assert (drawn[305:395, 210:490] == 100).all()
    assert (pixels == 100).all()


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*a.png: "):
        save_picture(np.zeros((2, 2, 3), np.uint8), tmp_path / "file" / "a.png")
