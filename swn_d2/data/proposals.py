"""Files of precomputed proposals."""

from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..errors import UserError
from ..pickled_arrays import read_pickled_arrays

__all__ = ["check_are_of_the_data", "read_proposal_ids"]

#: Of a file, and what they were called before Detectron2.
_KEYS = {"ids": "indexes", "boxes": "boxes", "objectness_logits": "scores"}


def read_proposal_ids(cfg: CfgNode, *, is_train: bool) -> dict[str, set[str]]:
    """Data set of ``DATASETS.TRAIN`` or ``TEST`` -> the images that its file of proposals has.
    No code in a file is run, as Detectron2 would.

    Raises:
        UserError: there are not as many files as data sets, or one can't be read, or is none of
            proposals.
    """
    which = "TRAIN" if is_train else "TEST"
    names, files = cfg.DATASETS[which], cfg.DATASETS[f"PROPOSAL_FILES_{which}"]
    if not names:  # then nobody looks at the files
        return {}
    if len(names) != len(files):
        raise UserError(
            f"MODEL.LOAD_PROPOSALS is True, and DATASETS.{which} has {len(names)} data sets, but "
            f"DATASETS.PROPOSAL_FILES_{which} {len(files)} files; give one for each."
        )
    return {name: _read(file) for name, file in zip(names, files, strict=True)}


def _read(file: str) -> set[str]:
    content = read_pickled_arrays(file)
    columns = {key: content.get(key, content.get(old)) for key, old in _KEYS.items()}
    if missing := [key for key, column in columns.items() if column is None]:
        raise UserError(f"{file} has no {missing[0]!r}, and so is no file of proposals.")
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(
            f"{file} does not have as many ids as boxes and objectness_logits: {lengths}."
        )
    return set(map(str, columns["ids"]))


def check_are_of_the_data(proposals: Mapping[str, set[str]]) -> None:
    """Raise a :class:`UserError` if an image has no proposals; the data have no mistakes.

    Args:
        proposals: see :func:`read_proposal_ids`.
    """
    for name, known in proposals.items():
        ids = [str(record["image_id"]) for record in DatasetCatalog.get(name)]
        if missing := [id_ for id_ in ids if id_ not in known]:
            raise UserError(
                f"the data set {name} has no proposals for {len(missing)} of its {len(ids)} "
                f"images, such as the one with the id {missing[0]}. Give the file that was made "
                "for it."
            )
