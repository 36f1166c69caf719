"""What a trained detector finds in pictures that belong to no data set."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from ..config import load_config
from ..engine import SafeCheckpointer, check_values, choose_device, folder_of_run
from ..errors import UserError
from ..evaluation.drawing import PALETTE, draw_box
from ..evaluation.pictures import Objects, read_dataset
from ..files import cannot_write
from ..own import recall
from .run_folder import RunFolder

__all__ = [
    "build_predictor",
    "class_names",
    "draw_predictions",
    "find_pictures",
    "load_run_config",
    "output_files",
    "save_picture",
]

#: What is taken for a picture in a folder; files that are named are read whatever they are called.
PICTURE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

_JPEG_ENDINGS = (".jpeg", ".jpg")
_LONG_SIDE = 900  # pixels, about, to which small pictures are enlarged


def load_run_config(run: str, opts: Sequence[str] = ()) -> CfgNode:
    """The config to predict with, ``MODEL.WEIGHTS`` being the checkpoint.

    Args:
        run: a run's folder, which gives its config.yaml and its last checkpoint; or a config file,
            that of a run for its folder.
        opts: ``KEY VALUE`` overrides.

    Raises:
        UserError: there is no config, it is not valid, or there is no checkpoint.
    """
    run = folder_of_run(run) or run
    recall(run if os.path.isdir(run) else os.path.dirname(run))
    if os.path.isdir(run):
        checkpoint = ["MODEL.WEIGHTS", str(RunFolder(run).checkpoint or "")]
        cfg = load_config(os.path.join(run, "config.yaml"), [*checkpoint, *opts])
        cfg.OUTPUT_DIR = run  # it may have been moved
    elif os.path.isfile(run):
        cfg = load_config(run, opts)
    else:
        raise UserError(
            f"there is no {run}; give the folder of a training, like output/demo, or a config file."
        )
    if not cfg.MODEL.WEIGHTS:
        missing = f"{run} has no MODEL.WEIGHTS."
        if os.path.isdir(run):
            missing = RunFolder(run).problem("checkpoint")
        raise UserError(f"{missing} Give a checkpoint to predict with: --weights FILE.")
    return cfg


def build_predictor(cfg: CfgNode, *, score_threshold: float) -> DefaultPredictor:
    """Detectron2's predictor, on the GPU or where there is none on the CPU.

    Args:
        cfg: the config, with the checkpoint in ``MODEL.WEIGHTS``.
        score_threshold: detections down to this score are wanted.

    Raises:
        UserError: the checkpoint can't be read, or is of another detector.
    """
    cfg = cfg.clone()
    choose_device(cfg)
    check_values(cfg)
    # The detector itself leaves out those with lower scores.
    for detector in (cfg.MODEL.ROI_HEADS, cfg.MODEL.RETINANET):
        detector.SCORE_THRESH_TEST = min(detector.SCORE_THRESH_TEST, score_threshold)
    # The predictor would accept a checkpoint that does not fit, and find nothing of use.
    checkpoint, cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS, ""
    predictor = DefaultPredictor(cfg)
    SafeCheckpointer(predictor.model).load_whole(checkpoint)
    return predictor


def class_names(cfg: CfgNode) -> list[str]:
    """The names of the detector's classes, which its data sets have.

    Raises:
        UserError: none of them can be read here.
    """
    datasets = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    for name in datasets:
        names = MetadataCatalog.get(name).get("thing_classes")
        if names:
            return names
    reasons = []
    for name in datasets:
        try:
            read_dataset(name)  # which gives it its names
        except UserError as error:
            reasons.append(str(error))
        else:
            return MetadataCatalog.get(name).get("thing_classes", [])
    raise UserError((reasons or ["the config names no data set."])[0])


def find_pictures(patterns: Iterable[str]) -> list[Path]:
    """The pictures that a user named, each once, in that order.

    Args:
        patterns: files, folders (whose pictures are taken, not those in folders below) and globs,
            in which ``**`` goes through folders.

    Raises:
        UserError: there are none for one of them.
    """
    pictures: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_file():  # a name may have brackets in it
            found = [path]
        else:
            names = path.iterdir() if path.is_dir() else glob.iglob(str(path), recursive=True)
            found = [file for file in sorted(map(Path, names)) if _is_picture(file)]
        if not found:
            raise UserError(
                f"found no picture for {pattern}; give files, folders with pictures "
                f"({', '.join(PICTURE_ENDINGS)}), or globs in quotes."
            )
        pictures.update(dict.fromkeys(found))
    return list(pictures)


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in PICTURE_ENDINGS and file.is_file()


def output_files(pictures: Sequence[Path], folder: Path) -> list[Path]:
    """Where to write each picture's result: its name in ``folder``, with a number if two have the
    same, and .png in place of an ending other than JPEG's.

    Raises:
        UserError: one of the pictures would be overwritten.
    """
    files: dict[Path, None] = {}
    for picture in pictures:
        ending = picture.suffix if picture.suffix.lower() in _JPEG_ENDINGS else ".png"
        file, number = folder / (picture.stem + ending), 1
        while file in files:
            number += 1
            file = folder / f"{picture.stem}-{number}{ending}"
        files[file] = None
    originals = {picture.resolve() for picture in pictures}
    for file in files:
        if file.resolve() in originals:
            raise UserError(
                f"{file} would be overwritten; give another folder than that of the pictures "
                "with --output."
            )
    return list(files)


def draw_predictions(pixels: np.ndarray, instances: Instances, names: Sequence[str]) -> np.ndarray:
    """A picture with boxes, classes, scores and, if there are any, masks.

    Small pictures are enlarged so that the labels can be read.

    Args:
        pixels: (height, width, 3) RGB, uint8.
        instances: a detector's prediction for it.
        names: of the classes; a class without one is called "class 3".

    Returns:
        (height, width, 3) RGB, uint8, in that size times a whole number.
    """
    height, width = pixels.shape[:2]
    enlarged = max(1, round(_LONG_SIDE / max(height, width)))
    side = enlarged * max(height, width)
    # At 72 dots per inch a point is a pixel; a little more, as what it comes to is rounded down.
    size = ((enlarged * width + 0.01) / 72, (enlarged * height + 0.01) / 72)
    figure = Figure(figsize=size, dpi=72)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")

    instances = instances[instances.scores.argsort(descending=True)]
    objects = Objects(
        instances.pred_boxes.tensor.numpy(),
        instances.pred_classes.numpy(),
        instances.scores.numpy(),
    )
    colors = [PALETTE[k % len(PALETTE)] for k in objects.classes]
    if instances.has("pred_masks"):
        pixels = pixels.copy()
        for mask, color in zip(instances.pred_masks.numpy(), colors, strict=True):
            pixels[mask] = 0.5 * pixels[mask] + 0.5 * 255 * np.array(to_rgb(color))
    # Unlike axes.imshow, this does not touch a pixel.
    picture = Image.fromarray(pixels).resize((enlarged * width, enlarged * height))
    figure.figimage(np.asarray(picture), zorder=-1)
    style = {"font_size": max(11, side / 60), "line_width": max(2, side / 400)}
    for box, label, color in zip(objects.boxes, objects.labels(names), colors, strict=True):
        draw_box(axes, box, label, color, **style)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def save_picture(pixels: np.ndarray, file: Path) -> None:
    """Write a picture, and the folder for it.

    Args:
        pixels: (height, width, 3) RGB, uint8.
        file: its ending chooses the format.

    Raises:
        UserError: it can't be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file, quality=92)
    except OSError as error:
        raise cannot_write(file, error) from error
