"""The batches of a training, each of which follows from the seed and its place in the training."""

import itertools
import multiprocessing
import operator
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial

import torch
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import UserError
from ..random_numbers import IMAGE, drawing_at

__all__ = ["TrainStream", "end_with_parent"]

# An image and, for what its augmentations draw, its place among all images of the training.
_Draw = tuple[int, int]


class TrainStream:
    """The batches of Detectron2's training loader: its samplers, and images of similar aspect ratio
    grouped. But any batch can be the first, at the cost of counting to it: what comes before it is
    not loaded. And what the augmentations of an image draw follows from its place in the stream,
    and so neither from the number of processes that load nor from what else the training draws.

    Every iteration over the stream begins where :meth:`begin_at` has said.

    Attributes:
        num_images: in the data set.
    """

    def __init__(self, cfg, *, dataset: list[dict], mapper: Callable[[dict], dict]):
        """
        Args:
            cfg: the run's config, with Detectron2's ``DATALOADER``, ``SOLVER`` and ``SEED``.
            dataset: the dataset dicts.
            mapper: makes of a dataset dict what the model is given.

        Raises:
            UserError: there is no such sampler, or the shapes of the images, by which they are to
                be grouped, are not known.
        """
        self.num_images = len(dataset)
        self._make_sampler = _choose_sampler(cfg, dataset)
        if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
            _check_have_shapes(dataset)
        # As Detectron2's AspectRatioGroupedDataset tells them apart.
        self._is_wide = [
            cfg.DATALOADER.ASPECT_RATIO_GROUPING and image["width"] > image["height"]
            for image in dataset
        ]
        self._images = MapDataset(DatasetFromList(dataset, copy=False), mapper)
        self._batch_size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        self._num_workers = cfg.DATALOADER.NUM_WORKERS
        self._iteration, self._seed = 0, cfg.SEED

    def begin_at(self, iteration: int, *, seed: int) -> None:
        """
        Args:
            iteration: how many batches are left out.
            seed: at least 0, the same in every process.
        """
        self._iteration, self._seed = iteration, seed

    def __iter__(self) -> Iterator[list[dict]]:
        # A generator: a trainer may ask for the iterator long before the first batch, as
        # Detectron2's does, and nothing must be loaded before it is known where to begin.
        seed = self._seed if self._seed >= 0 else comm.shared_random_seed()
        loader = DataLoader(
            _Augmented(self._images, seed),
            # Image by image: a batch would be much work for one process while the others wait.
            sampler=_From(self._iteration * self._batch_size, self._draws(seed)),
            collate_fn=operator.itemgetter(0),
            num_workers=self._num_workers,
            worker_init_fn=end_with_parent,
            generator=torch.Generator(),  # else it draws a number of the training's
        )
        images = iter(loader)
        while True:
            yield list(itertools.islice(images, self._batch_size))

    def _draws(self, seed: int) -> Iterator[_Draw]:
        """The draws of this process, those of a batch one after the other."""
        rank, world_size = comm.get_rank(), comm.get_world_size()
        groups: tuple[list[_Draw], list[_Draw]] = ([], [])
        for count, image in enumerate(self._make_sampler(seed=seed)):
            group = groups[self._is_wide[image]]
            group.append((image, count * world_size + rank))
            if len(group) == self._batch_size:
                yield from group
                group.clear()


class _From(Sampler):
    """What an iterator gives after its first ``start``."""

    def __init__(self, start: int, draws: Iterator[_Draw]):
        self._draws = itertools.islice(draws, start, None)

    def __iter__(self) -> Iterator[_Draw]:
        return self._draws


class _Augmented(Dataset):
    """Images, each of which draws the random numbers of its place."""

    def __init__(self, images: Dataset, seed: int):
        self._images = images
        self._seed = seed

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, draw: _Draw) -> dict:
        image, place = draw
        with drawing_at(self._seed, IMAGE, place):
            return self._images[image]


def end_with_parent(worker: int) -> None:
    """Have a process that loads images ended by its parent, however that ends, and by it alone.

    Schedulers, and a terminal, send a signal to all processes of a job. The parent may want to
    finish its iteration then, and would fail without this one. A parent that is killed tells
    nobody; where a server has forked this process for it, as Python 3.14 does, torch watches the
    server, which lives as long as this process.
    """

    def wait_for_signal():
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(0)

    def wait_for_end():
        parent.join()
        os._exit(1)

    parent = multiprocessing.parent_process()  # not os.getppid(), which may be the server's
    threading.Thread(target=wait_for_end, daemon=True).start()
    if not hasattr(signal, "sigwaitinfo"):  # on macOS, where nothing tells who has sent a signal
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait_for_signal, daemon=True).start()


def _check_have_shapes(dataset: list[dict]) -> None:
    without = [record for record in dataset if not {"width", "height"} <= record.keys()]
    if without:
        raise UserError(
            f"{len(without)} of the {len(dataset)} records of the training set have no width and "
            f"height (the first is that of {without[0].get('file_name')}), by which images are "
            "grouped; have the function that loads the data set give both, or set "
            "DATALOADER.ASPECT_RATIO_GROUPING to False."
        )


def _choose_sampler(cfg, dataset: list[dict]) -> Callable[..., Sampler]:
    """The sampler that the config names, which still needs a ``seed``."""
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return partial(TrainingSampler, len(dataset))
    if name == "RepeatFactorTrainingSampler":
        of_version = {}
        if "REPEAT_SQRT" in cfg.DATALOADER:  # which Detectron2 has since 2023
            of_version["sqrt"] = cfg.DATALOADER.REPEAT_SQRT
        return partial(
            RepeatFactorTrainingSampler,
            RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
                dataset, cfg.DATALOADER.REPEAT_THRESHOLD, **of_version
            ),
        )
    raise UserError(
        f"DATALOADER.SAMPLER_TRAIN is {name!r}, but a training can be resumed with TrainingSampler "
        "and RepeatFactorTrainingSampler; for another, write a build_train_loader of your own."
    )
