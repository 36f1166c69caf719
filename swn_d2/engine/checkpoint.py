"""A checkpointer that never loses the last good checkpoint, and says when one does not fit."""

import os
import pickle
from typing import Any, Callable, List

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..errors import UserError

__all__ = ["SafeCheckpointer", "is_sample_weighter_key"]

_PARTIAL = "partial-"


def is_sample_weighter_key(key: str) -> bool:
    """Whether ``key`` of a model's state dict belongs to a sample weighter."""
    return "sample_weighter." in key


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with files that appear whole or not at all."""

    # What load() demands of a checkpoint: given the model's keys that it does not fill.
    _is_enough: Callable[[List[str], nn.Module], bool] = staticmethod(lambda unfilled, model: True)

    def save(self, name: str, **kwargs: Any) -> None:
        """Save a checkpoint as ``name``.pth.

        Raises:
            UserError: it could not be written, the disk being full for instance. The checkpoint
                before it, and the note of which one is the last, are as they were.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        try:
            super().save(_PARTIAL + name, **kwargs)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
            partial = os.path.join(self.save_dir, f"{_PARTIAL}{name}.pth")
            if os.path.exists(partial):
                os.remove(partial)
            last = self.get_checkpoint_file() if self.has_checkpoint() else None
            kept = f"The last good checkpoint is {last}; " if last else "There is none before it; "
            raise UserError(
                f"cannot write the checkpoint {os.path.join(self.save_dir, name)}.pth ({error}). "
                f"{kept}make room on the disk and start again with --resume."
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        # Detectron2's save() calls this when the file is complete.
        name = last_filename_basename
        if name.startswith(_PARTIAL):
            name = name[len(_PARTIAL) :]
            os.replace(
                os.path.join(self.save_dir, last_filename_basename),
                os.path.join(self.save_dir, name),
            )
        tag = os.path.join(self.save_dir, "last_checkpoint")
        with open(tag + ".new", "w") as f:
            f.write(name)
        os.replace(tag + ".new", tag)

    def load_whole(self, path: str) -> None:
        """Load the detector in ``path`` for evaluation.

        Raises:
            UserError: the file can't be read, or holds another detector. The weights of a sample
                weighter may be missing: inference does not use them.
        """
        if not path:
            raise UserError(
                "there is nothing to evaluate: give a checkpoint as MODEL.WEIGHTS PATH."
            )
        self._load(path, checkpointables=[], is_enough=_all_but_sample_weighter)

    def resume_or_load(self, path: str, *, resume: bool = True):
        """As Detectron2's. A checkpoint to resume from must fit entirely; one to start from, at
        least partly: a backbone alone, or a new number of classes, are usual.

        Raises:
            UserError: the file can't be read, or doesn't fit.
        """
        if resume and self.has_checkpoint():
            return self._load(self.get_checkpoint_file(), None, is_enough=_everything)
        return self._load(path, checkpointables=[], is_enough=_anything)

    def _load(self, path, checkpointables, is_enough: Callable[[List[str], nn.Module], bool]):
        self._is_enough = is_enough
        try:
            return self.load(path, checkpointables=checkpointables)
        except UserError:
            raise
        # The many ways in which torch, pickle, zip files and state dicts report a bad file.
        except (AssertionError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"cannot load the checkpoint {path}: {error}") from error
        except (EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"{path} is not a checkpoint, or is damaged: {error}") from error

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
        return incompatible


def _everything(unfilled: List[str], model: nn.Module) -> bool:
    return not unfilled


def _all_but_sample_weighter(unfilled: List[str], model: nn.Module) -> bool:
    return all(is_sample_weighter_key(key) for key in unfilled)


def _anything(unfilled: List[str], model: nn.Module) -> bool:
    return not set(unfilled).issuperset(name for name, _ in model.named_parameters())
