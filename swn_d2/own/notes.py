"""What a run's folder knows of the data sets and code of one's own that the run was given.

``registered.json`` holds names, paths and classes, and the names of Python files that were
imported; never code, and nothing in it is run::

    {"format": "swn_d2 registered", "version": 1,
     "imports": ["my_weighter.py"], "learned": ["cat", "kitten"],
     "data_sets": {
       "cats_train": {"format": "coco", "classes": ["cat", "kitten"], "paths": {
         "annotations": {"absolute": "/data/cats/train.json", "given": "cats/train.json"},
         "images": {"absolute": "/data/cats/images", "given": "cats/images"}}},
       "cells_train": {"format": "voc", "split": "train", "year": 2012,
         "classes": ["RBC", "WBC"], "paths": {
           "folder": {"absolute": "/data/cells", "given": "cells"}}}}}

``learned`` are the classes of a training, which evaluations may follow on other data. A path is
looked for where it was, from whichever folder; and else, where a whole project has moved,
as it was given, from the current folder.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data import register_coco, register_voc
from ..data.datasets import Origin, origin_of
from ..data.voc import VOC_EVALUATOR_TYPE
from ..errors import UserError, phase
from ..files import read_json, write_text
from .imports import imported_files, is_imported

__all__ = ["REGISTERED", "check_learned_classes", "learned_classes", "note_own", "recall"]

#: The name of the file.
REGISTERED = "registered.json"

_HEAD = {"format": "swn_d2 registered", "version": 1}
# Format -> its paths, and the words of the option that registers it.
_PATHS = {"coco": ("annotations", "images"), "voc": ("folder",)}
_OPTIONS = {
    "coco": "--register-coco {} ANNOTATIONS.json IMAGE_DIR",
    "voc": "--register-voc {} FOLDER {}",
}


@phase("noting the run's data sets")
def note_own(folder: str | Path, cfg: CfgNode, *, is_training: bool = False) -> None:
    """Write what is one's own of a run's data sets, and the files that were imported, to what its
    folder knows already. Nothing is written where there is nothing.

    Args:
        is_training: whether the classes of ``DATASETS.TRAIN``, which are registered, are learned.

    Raises:
        UserError: the file is there and not one of these, or it can't be written.
    """
    file = Path(folder) / REGISTERED
    before = _read(file)
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    new = {name: _describe(name, origin) for name in names if (origin := origin_of(name))}
    data_sets = {**before["data_sets"], **new}
    imports = list(dict.fromkeys((*before["imports"], *imported_files())))
    learned = before.get("learned")
    if is_training and cfg.DATASETS.TRAIN:
        learned = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
    if data_sets or imports:
        content = {**_HEAD, "imports": imports, "data_sets": data_sets}
        if learned is not None:
            content["learned"] = list(learned)
        write_text(file, json.dumps(content, indent=1) + "\n")


def _describe(name: str, origin: Origin) -> dict[str, Any]:
    metadata = MetadataCatalog.get(name)
    if metadata.evaluator_type == VOC_EVALUATOR_TYPE:
        kind, paths = "voc", (metadata.dirname,)
        more = {"split": metadata.split, "year": metadata.year}
    else:
        kind, paths, more = "coco", (metadata.json_file, metadata.image_root), {}
    classes = metadata.get("thing_classes")
    if classes is None:  # it has not been loaded yet
        categories = read_json(metadata.json_file)["categories"]
        classes = [c["name"] for c in sorted(categories, key=lambda c: c["id"])]
    places = zip(_PATHS[kind], paths, origin.given, strict=True)
    return {
        "format": kind,
        **more,
        "classes": list(classes),
        "paths": {
            what: {"absolute": os.path.abspath(path), "given": given}
            for what, path, given in places
        },
    }


def learned_classes(folder: str | Path) -> list[str] | None:
    """The classes that the training in a folder learned last, in their order; None if the folder
    does not know them.

    Raises:
        UserError: the file is not one of these.
    """
    return _read(Path(folder) / REGISTERED).get("learned")


def check_learned_classes(
    folder: str | Path,
    categories: Mapping[str, Sequence[str]],
    remedy: str = ", or start a run of another OUTPUT_DIR",
) -> None:
    """What a run has learned must be what its data are called now: a detector knows a class by its
    number alone.

    Args:
        folder: the run's.
        categories: of each data set, in the order of their ids.
        remedy: what else can be done about it.

    Raises:
        UserError: they are others, or in another order.
    """
    learned = learned_classes(folder)
    for name, classes in categories.items():
        if learned not in (None, list(classes)):
            now, then = (", ".join(map(str, names)) for names in (classes, learned))
            raise UserError(
                f"Data set {name} has the categories {now}, in the order of their ids, but the run "
                f"in {folder} has learned {then}. Give annotations with the same categories in the "
                f"same order{remedy}."
            )


def recall(folder: str | Path) -> None:
    """Give Detectron2 the names of the data sets that a run's folder knows. Names that are taken
    stay as they are, so what a command line says goes first. Doing so twice does no harm.

    Of data that are gone, and of a name that two runs have for different data, only the classes
    become known; :func:`swn_d2.data.unknown_dataset` then says what is wrong, where they are
    needed.

    Raises:
        UserError: the file is not one of these, or the run needs a Python file that has not been
            imported.
    """
    content = _read(Path(folder) / REGISTERED)
    for name, entry in content["data_sets"].items():
        _recall(name, entry, str(Path(folder)))
    missing = [file for file in content["imports"] if not is_imported(file)]
    if missing:
        again = " ".join(f"--import {file}" for file in missing)
        raise UserError(
            f"{folder} was made with code of your own, which is run only if you say so; give "
            f"{again} again."
        )


def _recall(name: str, entry: dict[str, Any], folder: str) -> None:
    paths = entry["paths"]
    places = [_find(what, paths[what]) for what in _PATHS[entry["format"]]]
    remedy = _OPTIONS[entry["format"]].format(name, entry.get("split"))
    if name in DatasetCatalog:
        origin = origin_of(name)
        if origin and origin.run and not _is(name, entry, places):
            _make_unknown(
                name,
                f"{origin.run} and {folder} have different data under the name {name}; say which "
                f"are meant with {remedy}.",
            )
        return
    if MetadataCatalog.get(name).get("trouble"):
        return
    if None in places:
        gone = paths[_PATHS[entry["format"]][places.index(None)]]
        _make_unknown(
            name,
            f"the data set {name} of {folder} is not where it was, {gone['absolute']}; say where "
            f"it is with {remedy}.",
            entry["classes"],
        )
        return
    origin = Origin(tuple(paths[what]["given"] for what in _PATHS[entry["format"]]), folder)
    if entry["format"] == "coco":
        register_coco(name, *places, origin=origin)
        MetadataCatalog.get(name).thing_classes = entry["classes"]
    else:
        year = entry.get("year", 2012)  # as of earlier versions, which did not note it
        register_voc(name, *places, entry["split"], entry["classes"], year=year, origin=origin)


def _find(what: str, path: dict[str, str]) -> str | None:
    is_there = os.path.isfile if what == "annotations" else os.path.isdir
    return next((p for p in (path["absolute"], path["given"]) if is_there(p)), None)


def _is(name: str, entry: dict[str, Any], places: list[str | None]) -> bool:
    """Whether a registered data set is the one of an entry, which is in these places."""
    metadata = MetadataCatalog.get(name)
    known = [metadata.get(key) for key in ("json_file", "image_root", "dirname")]
    paths = [os.path.realpath(path) for path in known if path]
    return (
        paths == [path and os.path.realpath(path) for path in places]
        and metadata.get("split") == entry.get("split")
        and metadata.get("year") == entry.get("year", metadata.get("year"))
        and metadata.thing_classes == entry["classes"]
    )


def _make_unknown(name: str, trouble: str, classes: list[str] | None = None) -> None:
    classes = MetadataCatalog.get(name).get("thing_classes", classes)
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(trouble=trouble, thing_classes=classes)


def _read(file: Path) -> dict[str, Any]:
    """What is in the file, or in an empty one if there is none."""
    if not os.path.exists(file):  # without an error where it may not be looked for
        return {**_HEAD, "imports": [], "data_sets": {}}
    content = read_json(file)
    try:
        is_whole = (
            content["format"] == _HEAD["format"]
            and content["version"] == _HEAD["version"]
            and all(isinstance(name, str) for name in content["imports"])
            and isinstance(content.get("learned", []), list)
            and all(content["data_sets"])
            and all(map(_is_entry, content["data_sets"].values()))
        )
    except (KeyError, TypeError, AttributeError):
        is_whole = False
    if not is_whole:
        raise UserError(
            f"{file} is not what a run notes of its data; remove it, and name the data on the "
            "command line."
        )
    return content


def _is_entry(entry: dict[str, Any]) -> bool:
    paths = [entry["paths"][what] for what in _PATHS[entry["format"]]]
    texts = [path[key] for path in paths for key in ("absolute", "given")]
    if entry["format"] == "voc":
        texts.append(entry["split"])
    return isinstance(entry["classes"], list) and all(isinstance(text, str) for text in texts)
