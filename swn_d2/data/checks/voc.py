"""Whether a data set in Pascal VOC's layout is whole: its files, images and annotations."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import Metadata

from swn_d2.data.voc import VOCAnnotation, find_voc_listing, read_voc_annotation
from swn_d2.errors import UserError
from swn_d2.files import read_text

from .checked import Checked
from .pictures import check_files_exist, check_picture_size
from .sampling import sample

__all__ = ["check_voc"]


def check_voc(cfg: CfgNode, metadata: Metadata, *, is_train: bool, is_test: bool) -> Checked:
    """Check a Pascal VOC data set: its list of images, the annotations and the images.

    Args:
        cfg: a complete Detectron2 config.
        metadata: of the data set, with ``name``, ``dirname``, ``split``, ``thing_classes`` and
            ``evaluator_type``.
        is_train: the data set is trained on.
        is_test: the data set is evaluated on.

    Raises:
        UserError: the first mistake.
    """
    root = Path(metadata.dirname)
    listing = find_voc_listing(metadata.name, metadata.dirname, metadata.split)
    ids = _read_ids(metadata.name, listing)
    if is_test:
        _check_can_be_evaluated(listing, metadata.thing_classes)
    if is_train and cfg.MODEL.MASK_ON:
        raise UserError(
            f"Data set {metadata.name} has no masks to train on; add the override MODEL.MASK_ON "
            "False."
        )
    files = [root / "Annotations" / f"{image_id}.xml" for image_id in ids]
    pictures = [root / "JPEGImages" / f"{image_id}.jpg" for image_id in ids]
    check_files_exist(listing, files)
    check_files_exist(listing, pictures)
    classes = list(metadata.thing_classes)
    annotations = [read_voc_annotation(str(f), classes, is_evaluated=is_test) for f in files]
    for picture, file, annotation in sample(list(zip(pictures, files, annotations, strict=True))):
        check_picture_size(str(picture), (annotation.width, annotation.height), str(file))
    return Checked(classes, _without_objects(metadata, listing, annotations, is_train, is_test))


def _read_ids(name: str, listing: Path) -> list[str]:
    """The ids of the images."""
    ids = read_text(listing).split()
    if len(ids) < 2:
        number = "only one" if ids else "no"
        raise UserError(f"Data set {name}: {listing} names {number} image; Detectron2 needs two.")
    repeated = [image_id for image_id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(f"{listing} names {repeated[0]} more than once.")
    if cut := [image_id for image_id in ids if "#" in image_id]:
        raise UserError(
            f"{listing} names {cut[0]}, whose name is cut at the # when it is read; rename it."
        )
    return ids


def _check_can_be_evaluated(listing: Path, classes: Sequence[str]) -> None:
    """Detectron2 reads every line of the list again, and names files after the classes."""
    if not all(line.strip() for line in read_text(listing).splitlines()):
        raise UserError(f"{listing} has an empty line, at which an evaluation stops; remove it.")
    if odd := [name for name in classes if "/" in name]:
        raise UserError(
            f"the class {odd[0]!r} has a slash in its name, after which an evaluation names a "
            "file; give it another name."
        )


def _without_objects(
    metadata: Metadata,
    listing: Path,
    annotations: list[VOCAnnotation],
    is_train: bool,
    is_test: bool,
) -> dict[str, str]:
    """The ``lacks`` of a :class:`Checked`; there must be something to be found in a test."""
    are_difficult = [o.is_difficult for annotation in annotations for o in annotation.objects]
    trains_on_difficult = metadata.evaluator_type == "pascal_voc"
    lacks_training = is_train and not (are_difficult and trains_on_difficult)
    if not ((lacks_training or is_test) and all(are_difficult)):
        return {}
    sentence = (
        f"{listing} names {len(annotations)} images, whose annotations have "
        f"{len(are_difficult)} objects, all of them difficult; those do not count."
        if are_difficult
        else f"{listing} names {len(annotations)} images, none of which has an object."
    )
    if is_test:
        raise UserError(sentence)
    return {"object": sentence}
