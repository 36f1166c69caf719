"""Names for data sets: DigitScenes, and COCO-format data of one's own.

Detectron2 itself names COCO 2017 (``coco_2017_train``, ...) and Pascal VOC (``voc_2007_trainval``,
...). Names live in one process only, so a worker that is started anew registers them again.
"""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.utils.file_io import PathManager

from swn_d2.errors import UserError

from .sample_weights import SAMPLE_WEIGHT

__all__ = [
    "SPLIT_HINT",
    "Origin",
    "digit_scenes_root",
    "forget_trouble",
    "origin_of",
    "register_coco",
    "register_digit_scenes",
    "unknown_dataset",
]


#: What to do with annotations as they mostly come along.
SPLIT_HINT = (
    "of a folder of Pascal VOC's XML files, or of one file for all pictures, "
    "python tools/new_project.py --split NAME ANNOTATIONS IMAGE_DIR makes two data sets"
)


@dataclass(frozen=True)
class Origin:
    """Where a data set of one's own comes from, kept in its metadata as ``origin``.

    Attributes:
        given: its paths as they were given; the metadata have those that are opened.
        run: the folder of the run that knows it, None if it was named on the command line or by a
            script.
    """

    given: tuple[str, ...]
    run: str | None = None


def origin_of(name: str) -> Origin | None:
    """Where a registered data set comes from, None if it is not one's own."""
    return MetadataCatalog.get(name).get("origin") if name in DatasetCatalog else None


def forget_trouble(name: str) -> None:
    """Forget why a name was unknown, see :func:`unknown_dataset`, since it is given anew."""
    if MetadataCatalog.get(name).get("trouble"):
        MetadataCatalog.remove(name)


def unknown_dataset(name: str) -> str:
    """What to say of a name that Detectron2 does not know: why, or what may be meant, and how to
    mend it."""
    trouble = MetadataCatalog.get(name).get("trouble")  # see swn_d2.own.notes
    if trouble:
        return trouble
    near = difflib.get_close_matches(name, DatasetCatalog.list())
    return (
        f"There is no data set named {name}. "
        + (f"Did you mean {' or '.join(near)}? " if near else "")
        + "Name your own data with --register-coco NAME ANNOTATIONS.json IMAGE_DIR or "
        "--register-voc NAME FOLDER SPLIT."
    )


def digit_scenes_root() -> Path:
    """Where DigitScenes is: in ``$DETECTRON2_DATASETS``, which is ``datasets`` if it is not set."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser() / "digit_scenes"


def register_digit_scenes() -> None:
    """Register ``digit_scenes_train`` and ``digit_scenes_val`` under ``$DETECTRON2_DATASETS``, and
    two training sets that know which annotations are noisy, as no weighter does:
    ``digit_scenes_train_clean``, where they are exact, and ``digit_scenes_train_oracle``, where
    they have weight 0.

    No file is touched. Names that exist are kept.
    """
    root = digit_scenes_root()
    for name, correct in (
        ("digit_scenes_train_clean", _take_clean),
        ("digit_scenes_train_oracle", _leave_out_noisy),
    ):
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, partial(_load_corrected, name, correct))
            MetadataCatalog.get(name).set(
                json_file=str(root / "annotations" / "instances_train.json"),
                image_root=str(root / "train"),
                evaluator_type="coco",
            )
    for split in ("train", "val"):
        name = f"digit_scenes_{split}"
        if name not in DatasetCatalog:
            annotations = root / "annotations" / f"instances_{split}.json"
            register_coco_instances(name, {}, str(annotations), str(root / split))


def _load_corrected(name: str, correct: Callable[[dict, list, int], None]) -> list[dict]:
    metadata = MetadataCatalog.get(name)
    clean = ["clean_bbox", "clean_category_id"]
    records = load_coco_json(metadata.json_file, metadata.image_root, name, clean)
    classes = metadata.thing_dataset_id_to_contiguous_id
    for record in records:
        for annotation in record["annotations"]:
            true_class = annotation["category_id"]
            if "clean_category_id" in annotation:  # only a set with class noise has it
                true_class = classes[annotation["clean_category_id"]]
            correct(annotation, annotation["clean_bbox"], true_class)
    return records


def _take_clean(annotation: dict, box: list, class_id: int) -> None:
    annotation.update(bbox=box, category_id=class_id)


def _leave_out_noisy(annotation: dict, box: list, class_id: int) -> None:
    if annotation["bbox"] != box or annotation["category_id"] != class_id:
        annotation[SAMPLE_WEIGHT] = 0.0


def register_coco(
    name: str, json_file: str, image_dir: str, *, origin: Origin | None = None
) -> None:
    """Register a COCO-format data set under ``name``. Doing so twice does no harm.

    What is inside ``json_file`` is not read here but in :func:`swn_d2.data.check_datasets`: a large
    file takes long to parse, and not every name that is registered is used.

    Args:
        origin: by default, the paths as they are given here.

    Raises:
        UserError: the name belongs to another data set, or the file or the folder does not exist.
    """
    if not name:
        raise UserError("--register-coco has an empty name for a data set; give it one.")
    json_file, image_dir = os.fspath(json_file), os.fspath(image_dir)
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name)
        files = known.get("json_file"), known.get("image_root")
        if files == (json_file, image_dir):
            return
        raise UserError(
            f"The data set name {name} is already taken"
            + (f" by {files[0]} with images in {files[1]}" if files[0] else "")
            + ". Choose another name after --register-coco."
        )
    try:
        if not PathManager.isfile(json_file):
            raise UserError(
                f"Data set {name}: there is no annotation file {json_file}"
                + (f", but a folder; {SPLIT_HINT}." if PathManager.isdir(json_file) else ".")
            )
        if not PathManager.isdir(image_dir):
            raise UserError(f"Data set {name}: there is no image folder {image_dir}.")
    except NotImplementedError:
        raise UserError(
            f"Data set {name}: {json_file} or {image_dir} is a URL; download it, and give its path."
        ) from None
    forget_trouble(name)
    origin = origin or Origin((json_file, image_dir))
    register_coco_instances(name, {"origin": origin}, json_file, image_dir)
