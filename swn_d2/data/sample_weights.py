"""Weights of single objects: the optional keys :data:`GIVEN_WEIGHTS` of an annotation.

Detectron2 loads only the keys of an annotation that it knows, and its mapper hands on only those
that its detectors know; the functions here are for the loading and for the mapper.
"""

import logging
from collections.abc import Iterable
from functools import partial
from numbers import Real

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY

__all__ = [
    "BOX_WEIGHT",
    "GIVEN_WEIGHTS",
    "LABEL_WEIGHT",
    "MASK_WEIGHT",
    "SAMPLE_WEIGHT",
    "WEIGHTS_ARE",
    "is_sample_weight",
    "keep_sample_weights",
    "without_weights",
]

#: What an object counts in all losses, in the question which class it has, and in the box and the
#: mask loss.
SAMPLE_WEIGHT, LABEL_WEIGHT = "sample_weight", "label_weight"
BOX_WEIGHT, MASK_WEIGHT = "box_weight", "mask_weight"
#: Keys of an annotation, in a COCO file and in Detectron2's dataset dicts.
GIVEN_WEIGHTS = (SAMPLE_WEIGHT, LABEL_WEIGHT, BOX_WEIGHT, MASK_WEIGHT)

# A factor of losses: long before they overflow, a training ends as with such a learning rate.
_LARGEST = 1e6
#: What a weight must be, for messages.
WEIGHTS_ARE = "a number from 0 to 1000000"


def is_sample_weight(value: object) -> bool:
    """Whether ``value`` can weight an object: :data:`WEIGHTS_ARE`."""
    # NaN fails the comparison, too; a bool is a Real, but more likely a mistake.
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def without_weights(cfg: CfgNode) -> str | None:
    """What to say of a weight where the detector is one of Detectron2's own, which does not look
    at it; None where it does."""
    key, name = "MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE
    if not _is_detectron2s(META_ARCH_REGISTRY, name):
        return None
    if "RetinaNet" not in name:
        key, name = "MODEL.ROI_HEADS.NAME", cfg.MODEL.ROI_HEADS.NAME
        if not _is_detectron2s(ROI_HEADS_REGISTRY, name):
            return None
    return (
        f"Detectron2's own {name}. Set {key} to one of the classes that start with SWN; with "
        "MODEL.SAMPLE_WEIGHTER.NAME Uniform it trains as Detectron2's."
    )


def _is_detectron2s(registry, name: str) -> bool:
    return name in registry and registry.get(name).__module__.startswith("detectron2.")


def keep_sample_weights(names: Iterable[str]) -> None:
    """Have data sets loaded with the weights of their annotations, where there are any.

    This changes, in the ``DatasetCatalog``, how a data set is loaded that Detectron2's
    ``register_coco_instances`` has registered: Detectron2's own COCO names, and those that
    :func:`swn_d2.data.register_coco` gives. Any other data set has a function of its own, which
    may return such weights as well. No file is touched. Doing so twice does no harm.

    Args:
        names: of data sets, as in ``DATASETS.TRAIN``; unknown ones are left to Detectron2.
    """
    for name in DatasetCatalog.keys() & set(names):
        registered = getattr(DatasetCatalog[name], "__qualname__", "")
        if registered.startswith(f"{register_coco_instances.__name__}."):
            DatasetCatalog[name] = partial(_load, name)


def _load(name: str) -> list[dict]:
    metadata = MetadataCatalog.get(name)
    records = load_coco_json(metadata.json_file, metadata.image_root, name, list(GIVEN_WEIGHTS))
    annotations = [a for record in records for a in record["annotations"]]
    for key in GIVEN_WEIGHTS:
        if number := sum(key in a for a in annotations):
            logging.getLogger(__name__).info(
                f"{metadata.json_file}: {number} of {len(annotations)} annotations have a {key}."
            )
    return records
