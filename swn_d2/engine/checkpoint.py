"""A checkpointer that never loses the last good checkpoint, and says when one does not fit."""

import logging
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from ..errors import UserError
from ..files import check_is_file, read_text, write_text, write_whole
from ..pickled_arrays import read_pickled_arrays

__all__ = [
    "BEST",
    "SafeCheckpointer",
    "checkpoints",
    "is_sample_weighter_key",
    "last_checkpoint",
    "read_checkpoint",
    "write_checkpoint",
    "write_new_checkpoint",
]

_logger = logging.getLogger(__name__)

#: The detector with the best AP so far in a run's folder, see :mod:`.best`. No run goes on from it.
BEST = "model_best.pth"


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder that a run can be resumed from, in order."""
    return sorted(file for file in Path(folder).glob("model_*.pth") if file.name != BEST)


def last_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint to resume a run from: the one that its file last_checkpoint names. None if
    there is no such file.

    Raises:
        UserError: that file can't be read, is empty, or names no checkpoint in the folder.
    """
    folder = Path(folder)
    note = folder / "last_checkpoint"
    if not os.path.lexists(note):
        return None
    name = read_text(note).strip()
    if not name:
        problem = "is empty"
    elif Path(name).name != name:
        problem = f"names {name!r}, which leads out of the folder"
    elif name == BEST:
        problem = f"names {name!r}, which holds a detector and no state of its training"
    elif not os.path.isfile(folder / name):
        problem = f"names {name!r}, which is not there"
    else:
        return folder / name
    there = ", ".join(file.name for file in checkpoints(folder))
    raise UserError(
        f"{note} {problem}; write into it the name of a checkpoint in the folder to go on from "
        f"({there or 'but there is none'})."
    )


def read_checkpoint(path: str) -> dict[str, Any]:
    """The dictionary in a file of torch.save. No code in the file is run.

    Raises:
        UserError: the file can't be read, or does not hold a dictionary.
    """
    check_is_file(path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:  # a file of another kind can raise nearly everything
        raise UserError(
            f"{path} is not a PyTorch checkpoint, is damaged, or holds more than tensors and plain "
            "Python values; save the state dict of a model with torch.save."
        ) from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, not the state dict of a model.")
    return data


def write_checkpoint(data: dict[str, Any], path: str) -> None:
    """Write a file with torch.save. It appears, or replaces the one before it, whole or not at all.

    Raises:
        UserError: it can't be written.
    """
    write_whole(Path(path), lambda partial: torch.save(data, partial))


def write_new_checkpoint(data: dict[str, Any], path: str) -> None:
    """As :func:`write_checkpoint`, for a file that a user named.

    Raises:
        UserError: the file exists already, has no ``.pth`` ending, or can't be written.
    """
    if not path.endswith(".pth"):
        # The ending tells Detectron2 how to read a file.
        raise UserError(f"cannot write {path}: the name must end with .pth.")
    if os.path.exists(path):
        raise UserError(f"{path} exists already; remove it, or give another name.")
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}.") from error
    write_checkpoint(data, path)


def is_sample_weighter_key(key: str) -> bool:
    """Whether ``key`` of a model's state dict belongs to a sample weighter."""
    return "sample_weighter." in key


class _TorchFiles(Checkpointer):
    """What Detectron2's checkpointer builds on. This one runs no code in a file on any torch."""

    def _load_file(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)


class SafeCheckpointer(DetectionCheckpointer, _TorchFiles):
    """Detectron2's checkpointer, with files that appear whole or not at all, and of which none can
    run code when it is loaded."""

    # What load() demands of a checkpoint: given the model's keys that it does not fill.
    _is_enough: Callable[[list[str], nn.Module], bool] = staticmethod(lambda unfilled, model: True)
    # What it must have beside the model, which Detectron2's load() would leave as it is.
    _needed: Collection[str] = ()

    def save(self, name: str, **kwargs: Any) -> None:
        """Save a checkpoint as ``name``.pth; ``kwargs`` are stored beside the model.

        Raises:
            UserError: it could not be written, the disk being full for instance. The checkpoint
                before it, and the note of which one is the last, are as they were.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: value.state_dict() for key, value in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        try:
            write_checkpoint(data, path)
            self.tag_last_checkpoint(f"{name}.pth")
        except UserError as error:
            last = self.get_checkpoint_file() if self.has_checkpoint() else None
            kept = f"the last good checkpoint is {last}" if last else "there is none before it"
            raise UserError(
                f"{error} If the disk is full, make room and start again with --resume; {kept}."
            ) from error

    def save_best(self, **kwargs: Any) -> None:
        """Save the detector alone as :data:`BEST`; ``kwargs`` are stored beside it. The note of
        which checkpoint is the last stays as it is.

        Raises:
            UserError: it could not be written. The best one before it is as it was.
        """
        path = os.path.join(self.save_dir, BEST)
        write_checkpoint({"model": self.model.state_dict(), **kwargs}, path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_text(Path(self.save_dir, "last_checkpoint"), last_filename_basename)

    def load_whole(self, path: str, *, with_weighter: bool = False) -> None:
        """Load the detector in ``path`` for evaluation, or ``with_weighter`` as it was trained.

        Raises:
            UserError: the file can't be read, or holds another detector. The parameters of a sample
                weighter may be missing where inference does not use them.
        """
        if not path:
            raise UserError(
                "there is nothing to evaluate: give a checkpoint as MODEL.WEIGHTS PATH."
            )
        is_enough = _everything if with_weighter else _all_but_sample_weighter
        self._load(path, checkpointables=[], is_enough=is_enough)

    def resume_or_load(self, path: str, *, resume: bool = True):
        """As Detectron2's. A checkpoint to resume from must fit entirely; of one to start from,
        the backbone: a new number of classes, or a backbone alone, are usual.

        Raises:
            UserError: the file can't be read, or doesn't fit.
        """
        if resume and (last := last_checkpoint(self.save_dir)):
            return self._load(str(last), None, is_enough=_everything)
        return self._load(path, checkpointables=[], is_enough=_a_backbone)

    def _load(self, path, checkpointables, is_enough: Callable[[list[str], nn.Module], bool]):
        self._is_enough = is_enough
        self._needed = self.checkpointables if checkpointables is None else checkpointables
        try:
            return self.load(path, checkpointables=checkpointables)
        except UserError:
            raise
        except Exception as error:  # of a file of something else, nearly everything
            reason = " ".join(str(error).split())
            remedy = "give one of Detectron2's, or a backbone's weights"
            if "://" in path:
                remedy = "download it, and give its path"
            raise UserError(f"cannot load the checkpoint {path}: {reason}; {remedy}.") from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        """As Detectron2's, which would let the first two kinds of files run code."""
        self._file = filename
        if filename.endswith(".pkl"):
            data = read_pickled_arrays(filename)
            if "model" in data and "__author__" in data:  # of Detectron2's model zoo
                return data
            blobs = data.get("blobs", data)  # which a classifier of Caffe2 does not have
            weights = {key: blob for key, blob in blobs.items() if not key.endswith("_momentum")}
            return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        if filename.endswith(".pyth"):  # of pycls
            state = read_checkpoint(filename)["model_state"]
            weights = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
            return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
        return super()._load_file(filename)

    def _load_model(self, checkpoint):
        incompatible = super()._load_model(checkpoint)
        unfilled = incompatible.missing_keys + [key for key, *_ in incompatible.incorrect_shapes]
        if not self._is_enough(unfilled, self.model):
            examples = ", ".join(unfilled[:3])
            raise UserError(
                f"the checkpoint does not fit this model: {len(unfilled)} of its parameters are "
                f"missing in it or have another shape ({examples}, ...). It belongs to another "
                "architecture or another number of classes; use the config that it was trained "
                "with, or another checkpoint."
            )
        # Which would find nothing, or be taken for a training that diverges.
        parameters = self.model.named_parameters()
        if broken := [name for name, value in parameters if not value.isfinite().all()]:
            raise UserError(
                f"{self._file} has NaN or infinity among its parameters ({broken[0]}), as of a "
                "training that has diverged; take an earlier checkpoint."
            )
        if lacking := [key for key in self._needed if key not in checkpoint]:
            raise UserError(
                f"{self._file} holds a detector and no state of its {lacking[0]}, so that no "
                "training can go on from it; write into last_checkpoint the name of one that does, "
                "or start a new run with it as MODEL.WEIGHTS."
            )
        # In place of Detectron2's table of their names, which is in log.txt.
        total = len(self.model.state_dict())
        _logger.info(f"Weights: {total - len(unfilled)} of {total} tensors from {self._file}")
        return incompatible


def _everything(unfilled: list[str], model: nn.Module) -> bool:
    return not unfilled


def _all_but_sample_weighter(unfilled: list[str], model: nn.Module) -> bool:
    return all(is_sample_weighter_key(key) for key in unfilled)


def _a_backbone(unfilled: list[str], model: nn.Module) -> bool:
    """Most of it: what comes after it, or a part of it, may well be new."""
    names = [name for name, _ in model.named_parameters()]
    backbone = [name for name in names if name.startswith("backbone.bottom_up.")] or names
    return 2 * len(set(unfilled).intersection(backbone)) < len(backbone)
